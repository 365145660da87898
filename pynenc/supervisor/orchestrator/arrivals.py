"""How batches come in: they are queued, wait for results, or are there already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pynenc.protocol.extras import key_at
from pynenc.supervisor.events import (
    AnswerOffer,
    BatchArrived,
    BatchOffered,
    BatchRecovered,
    CallLater,
    CallsWithdrawn,
    Effect,
    Ended,
    Reused,
)
from pynenc.supervisor.orchestrator.outcomes import Outcomes
from pynenc.supervisor.orchestrator.state import UnfinishedBatch


class Arrivals(Outcomes):
    """The rules about new batches."""

    def batch_arrived(self, event: BatchArrived) -> list[Effect]:
        """Queue a new batch; one that is known already was sent again and is left out."""
        if event.batch in self.batches:
            return []
        state, effects = self._new_batch(event)
        if not state.depends_on:
            self._queue(self._range(event.batch, 0, event.count))
            return effects
        return effects + self._wait_for_dependencies(event, range(event.count))

    def batch_recovered(self, event: BatchRecovered) -> list[Effect]:
        """Queue those calls of a batch that another supervisor had not finished."""
        arrived = event.batch
        if arrived.batch in self.batches:
            return []
        state, effects = self._new_batch(arrived)
        state.succeeded = list(event.succeeded)
        state.failed = [(first, stop, 0) for first, stop in event.failed]
        state.retries = dict(event.retries)
        left = [index for index in range(arrived.count) if not state.has_ended(index)]
        state.unfinished = len(left)
        if arrived.extras.registration:
            self._register(arrived, left)
        if state.depends_on:
            return effects + self._wait_for_dependencies(arrived, left)
        self._put_ready([(arrived.batch, index) for index in left])
        return effects

    def _new_batch(self, event: BatchArrived) -> tuple[UnfinishedBatch, list[Effect]]:
        options = self.tasks[event.task].options
        self._arrivals += 1
        state = self.batches[event.batch] = UnfinishedBatch(event, options.priority, self._arrivals)
        if not options.expires_s:
            return state, []
        late = CallsWithdrawn(event.batch, 0, event.count, Ended.EXPIRED, False, {})
        return state, [CallLater(options.expires_s, late)]

    def _register(self, batch: BatchArrived, indices: Iterable[int]) -> None:
        keys, arguments = batch.extras.registration, batch.extras.arguments
        for index in indices:
            self._registered[key_at(keys, index)] = (batch.batch, index, key_at(arguments, index))

    def _wait_for_dependencies(self, event: BatchArrived, indices: Sequence[int]) -> list[Effect]:
        """Queue those calls of a new batch whose dependencies have their results, and end those whose have failed."""
        failed: dict[int, int] = {}
        for on in event.extras.depended_on():
            if on.index not in indices:
                continue
            there = self.batches.get(on.batch)
            if there is None:
                root, results = event.settled[on.batch, on.first, on.stop], 0
            else:
                root = there.root_of_failure(on.batch, on.first, on.stop)
                results = there.results_left(on.first, on.stop)
            if root:
                failed.setdefault(on.index, root)
            elif results:
                self.dependencies.add(event.batch, on, results)
        ready = [
            (event.batch, index)
            for index in indices
            if index not in failed and (event.batch, index) not in self.dependencies.waiting
        ]
        self._put_ready(ready)
        effects: list[Effect] = []
        for index, root in failed.items():
            self.dependencies.remove(event.batch, index, index + 1)
            effects += self._end(self._range(event.batch, index, index + 1), Ended.DEPENDENCY, root=root)
        return effects

    def batch_offered(self, event: BatchOffered) -> list[Effect]:
        """Take a batch, unless some of its calls are there already and have not begun: then say which."""
        offered = event.batch
        keys, arguments = offered.extras.registration, offered.extras.arguments
        reused = []
        for index in range(offered.count):
            found = self._registered.get(key_at(keys, index))
            if found is not None and self._waits_to_run(*found[:2], event.positions):
                reused.append(Reused(index, *found[:2], found[2] != key_at(arguments, index)))
        if reused or offered.batch in self.batches:
            return [AnswerOffer(offered.batch, reused)]
        self._register(offered, range(offered.count))
        return [AnswerOffer(offered.batch, []), *self.batch_arrived(offered)]

    def _waits_to_run(self, number: int, index: int, positions: dict[int, int]) -> bool:
        batch = self.batches.get(number)
        if batch is None or batch.has_ended(index):
            return False
        if any(worker.position_of(number, index) for worker in self.concurrent.values()):
            return False
        for worker_number, worker in self.workers.items():
            for leased in [*worker.outstanding, *(waiting for waiting, _ in worker.paused)]:
                if leased.calls.batch == number and leased.calls.first <= index < leased.calls.stop:
                    return leased.position + index - leased.calls.first > positions.get(worker_number, 0)
        return True
