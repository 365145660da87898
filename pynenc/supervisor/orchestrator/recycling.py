"""When workers are replaced by fresh ones, and when one is ended for the memory that it takes.

A worker that has had its calls, is too old or is nearly full is given nothing more: what it has not begun goes to others, and
when it is empty, a fresh one takes its place. So no call is lost or run twice for it. One that takes more than a worker may is
ended with the call that it runs. When the machine itself is short, the call ends that began last, to be run again when there
is room: otherwise the kernel chooses, and it chooses the largest process, whoever that is.
"""

from __future__ import annotations

from pynenc.status import InvocationStatus
from pynenc.supervisor.events import (
    AddWorker,
    Effect,
    Ended,
    KillWorker,
    MeasureWorkers,
    RetireWorker,
    WorkerLost,
    WorkersMeasured,
    WorkerUnfit,
)
from pynenc.supervisor.orchestrator.concurrent import Concurrent
from pynenc.supervisor.orchestrator.leases import ConcurrentLeases, Leased, Wear, WorkerLeases
from pynenc.supervisor.orchestrator.outcomes import transition
from pynenc.supervisor.orchestrator.seats import is_busy

FULL_SHARE = 0.8
"""A worker that takes more than this share of what it may is replaced between two calls."""

PATIENCE_S = 0.05
"""Memory that a call may have found there when it began is not held against it for so long: it may be about to end."""

FAR_SHARE = 1.5
"""There is no such patience when a worker takes so many times what it may."""

MIN_LOOK_S = 0.005
"""However fast memory is taken, it is not read more often."""

WORTH_BYTES = 16 << 20
WORTH_SHARE = 0.25
"""When the machine is short, workers that take less, or less than this share of what the largest takes, are left alone: their
end would bring nothing."""

MAX_EVICTIONS = 3
"""So often a call is ended for the machine's sake and run again; then it has failed."""


class Recycling(Concurrent):
    """The rules about workers that are replaced, and about memory."""

    def lease_ready_calls(self) -> list[Effect]:
        """Replace workers that have had their calls, then hand ready calls out. Once per turn, after its events."""
        effects = self._replace_worn_out() if self.limits.max_calls or self._is_any_unfit else []
        if self._leaving:
            effects += self._look_at_emptied()
        return effects + super().lease_ready_calls()

    def workers_measured(self, event: WorkersMeasured) -> list[Effect]:
        """Replace, empty and end workers as their memory and their age want it."""
        self._measuring = False
        effects: list[Effect] = []
        look_s = min(self.limits.check_s, self._time_to_shortage(event.spare_bytes, event.now))
        for number, worker in self._all_workers().items():
            if number in event.used:
                look_s = min(look_s, self._time_to_grow(worker.wear, event.used[number], event.now))
                effects += self._worker_measured(number, worker, event)
        if self._leaving:
            look_s = min(look_s, PATIENCE_S)
        busy = [number for number, worker in self.workers.items() if is_busy(worker)]
        self._seats.measured(len(busy), self._size, event.spare_bytes, event.now)
        if event.spare_bytes < 0 and self._seats.may_take(event.now):
            effects += self._evict_youngest(event, len(busy))
        if any(not _is_empty(worker) for worker in self._all_workers().values()):
            effects.append(self._measure(look_s))
        return effects

    def _worker_measured(
        self, number: int, worker: WorkerLeases | ConcurrentLeases, event: WorkersMeasured
    ) -> list[Effect]:
        """Replace a worker that is empty, empty one that is to be replaced, end one that takes too much."""
        wear, limit = worker.wear, self.limits.memory_bytes
        used, position = event.used[number], event.running[number][0]
        is_new = position != wear.position
        wear.used, wear.read_at, wear.position = used, event.now, position
        wear.is_full = bool(limit) and used > FULL_SHARE * limit
        wear.is_old = number in event.aged
        if _is_empty(worker):
            is_worth_it = event.spare_bytes < 0 and used >= WORTH_BYTES
            return self._replace(number) if is_worth_it or self._left(worker) <= 0 else []
        if not (wear.is_full or wear.is_old):
            return []
        self._leaving.add(number)
        if limit and used > limit * (FAR_SHARE if is_new else 1):
            return self._end_for_memory(number, worker, position)
        return self._empty(number, worker, position)

    # Replacing.

    def worker_unfit(self, event: WorkerUnfit) -> list[Effect]:
        """Have a fresh worker run what this one cannot: the name of a module means something else to those calls.

        None of them was begun. What runs beside or waits below them in this worker ends here; it is given nothing more.
        """
        number = event.worker
        worker = self._all_workers().get(number)
        if worker is None or worker.is_dying or (isinstance(worker, ConcurrentLeases) and worker.doomed is not None):
            return []  # What becomes of its calls is told when it is gone.
        effects = self._requeue(number, worker.take_since(event.position))
        worker.wear.is_unfit = self._is_any_unfit = True
        if isinstance(worker, ConcurrentLeases):
            return effects
        if worker.outstanding:
            return effects + self._kill(number, worker)  # It has lost its senses: it says so when it runs nothing.
        if not worker.paused:
            worker.uncut()
        return effects

    def _replace_worn_out(self) -> list[Effect]:
        effects: list[Effect] = []
        self._is_any_unfit = any(worker.wear.is_unfit for worker in self._all_workers().values())
        for number, worker in self._all_workers().items():
            if self._left(worker) <= 0 and _is_empty(worker):
                if not worker.wear.is_unfit and worker.wear.calls < self.limits.max_calls:
                    continue  # Perhaps its memory went with its last call; it is about to be read.
                effects += self._replace(number)
        return effects

    def _replace(self, number: int) -> list[Effect]:
        """Let an empty worker end, and start a fresh one unless others are enough or will be started when they are needed."""
        if self.concurrent.pop(number, None) is not None:
            return [RetireWorker(number)]
        del self.workers[number]
        if len(self.workers) + self._joining >= self._size:
            return [RetireWorker(number)]
        self._joining += 1
        return [RetireWorker(number), AddWorker()]

    def _look_at_emptied(self) -> list[Effect]:
        """Have those read again that were to be replaced and hold nothing any more: a fresh one is started, or it has room."""
        workers = self._all_workers()
        emptied = {number for number in self._leaving if number not in workers or _is_empty(workers[number])}
        self._leaving -= emptied
        return [self._measure(0.0)] if emptied & workers.keys() else []

    def _empty(self, number: int, worker: WorkerLeases | ConcurrentLeases, position: int) -> list[Effect]:
        """Take back what a worker has not begun that is about to be replaced."""
        if isinstance(worker, ConcurrentLeases) or worker.cut is not None:
            return []
        start, stop = worker.unstarted(position)
        return self._cut(number, worker, start) if start < stop else []

    # Ending.

    def _end_for_memory(self, number: int, worker: WorkerLeases | ConcurrentLeases, position: int) -> list[Effect]:
        """End a worker that takes more than one may, and the call that runs with it, if that still does when it comes to that."""
        if worker.doomed is not None or worker.is_dying:
            return []
        if isinstance(worker, ConcurrentLeases):
            begun = [one for one in worker.held if one <= position]
            if not begun:
                return []
            if len(begun) == 1:
                worker.doomed = (begun[0], Ended.MEMORY)
            else:
                worker.is_dying = True  # Nobody knows which of them it was: each counts a loss.
            return [KillWorker(number)]
        if worker.paused:
            # Which of those that lie on top of each other took it nobody knows. The lowest ends; the others run again, without
            # it below them, and whichever took the memory is then found out.
            worker.doomed = (worker.paused[0][0].position, Ended.MEMORY)
            return self._kill(number, worker)
        if worker.leased_at(position) is None:
            return []  # It is between two calls.
        worker.doomed = (position, Ended.MEMORY)
        return self._cut(number, worker, position + 1)

    def _evict_youngest(self, event: WorkersMeasured, busy: int) -> list[Effect]:
        """End the call that began last, of those that may run again and whose end brings memory."""
        if any(worker.doomed is not None or worker.is_dying for worker in self._all_workers().values()):
            return []  # What it holds will be free.
        worth = max(WORTH_BYTES, WORTH_SHARE * max(event.used.values(), default=0))
        found: list[tuple[float, int, int]] = []
        for number, worker in self.workers.items():
            position, seconds = event.running.get(number, (0, 0.0))
            leased = worker.leased_at(position)
            if leased is None or worker.paused or event.used.get(number, 0) < worth:
                continue
            options = self.tasks[leased.calls.task].options
            if options.rerun_on_worker_loss and options.max_worker_losses:
                found.append((seconds, number, position))
        if not found:
            return []
        _, number, position = min(found)
        worker = self.workers[number]
        worker.doomed = (position, Ended.SHORT)
        self._seats.take(busy, event.used[number], event.now)
        return self._cut(number, worker, position + 1)

    def _doomed_call(self, loss: WorkerLost, leased: Leased, why: Ended, began: float = 0.0) -> list[Effect]:
        """A call that was ended for the machine's sake is run again, some times."""
        if why is not Ended.SHORT:
            return super()._doomed_call(loss, leased, why, began)
        calls = leased.since(loss.position).before(loss.position + 1).calls
        batch = self.batches[calls.batch]
        batch.evictions[calls.first] = batch.evictions.get(calls.first, 0) + 1
        if batch.evictions[calls.first] > MAX_EVICTIONS:
            return self._end(calls, why, loss.worker, began=began)
        return [transition(calls, InvocationStatus.REROUTED, loss.worker, ran=True), *self._put_back(calls)]

    # Looking.

    def _time_to_grow(self, wear: Wear, used: int, now: float) -> float:
        """In how many seconds to look again at a worker that grows towards its limit: halfway there."""
        limit = self.limits.memory_bytes
        grown, passed_s = used - wear.used, now - wear.read_at
        if not limit or used >= limit:
            return self.limits.check_s
        edge = FULL_SHARE * limit if used < FULL_SHARE * limit else limit
        return _halfway(edge - used, grown, passed_s)

    def _time_to_shortage(self, spare_bytes: int, now: float) -> float:
        """The same of the machine, whose memory others take, too."""
        (before, at), self._spare = self._spare, (spare_bytes, now)
        return _halfway(spare_bytes, before - spare_bytes, now - at) if spare_bytes > 0 else self.limits.check_s

    def _all_workers(self) -> dict[int, WorkerLeases | ConcurrentLeases]:
        return {**self.workers, **self.concurrent}

    def _measure(self, seconds: float) -> Effect:
        self._measuring = True
        return MeasureWorkers(seconds)


def _halfway(left: float, taken: float, passed_s: float) -> float:
    """In how many seconds half of what is left will be gone, when so much was taken in the time that passed."""
    return max(MIN_LOOK_S, left / (taken / passed_s) / 2) if taken > 0 and passed_s > 0 else float("inf")


def _is_empty(worker: WorkerLeases | ConcurrentLeases) -> bool:
    """Whether a worker holds nothing and is about to be told nothing."""
    if isinstance(worker, ConcurrentLeases):
        return not worker.held and not worker.is_dying and worker.doomed is None
    return worker.is_idle and worker.cut is None and not worker.is_dying
