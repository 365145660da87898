"""The rules: each event changes the orchestrator's state and gives effects."""

from __future__ import annotations

from typing import assert_never

from pynenc.supervisor.broker import Broker, Range
from pynenc.supervisor.events import (
    BatchArrived,
    BatchFinished,
    CallFailed,
    CallsSucceeded,
    CutReached,
    CutSettled,
    CutWorker,
    Effect,
    Event,
    FailLost,
    KeepOutcome,
    LeaseCalls,
    LookAgain,
    Looked,
    TaskDeclared,
    UncutWorker,
    WorkerJoined,
    WorkerLost,
)
from pynenc.supervisor.orchestrator.leases import Leased, WorkerLeases

LOOK_AGAIN_S = 0.002
"""How long a worker is idle before the calls of the others are looked at."""

SHORT_S = 0.002
"""Work shorter than this is not worth dividing between workers."""

SMOOTHING = 0.4
"""How much the latest shipment counts in a task's expected duration."""


class TaskRules:
    """What the orchestrator knows of a task; `call_s` is its expected duration once one call has run."""

    __slots__ = ("call_s", "max_worker_losses", "rerun_on_worker_loss")

    def __init__(self, max_worker_losses: int, rerun_on_worker_loss: bool) -> None:
        self.max_worker_losses = max_worker_losses
        self.rerun_on_worker_loss = rerun_on_worker_loss
        self.call_s: float | None = None

    def learn(self, count: int, seconds: float) -> None:
        """Take what calls took into the expected duration."""
        measured = max(seconds / count, 1e-7)
        self.call_s = measured if self.call_s is None else self.call_s + SMOOTHING * (measured - self.call_s)


class UnfinishedBatch:
    """A batch with calls that have no outcome yet."""

    __slots__ = ("losses", "source", "task", "unfinished")

    def __init__(self, task: int, source: int, count: int) -> None:
        self.task = task
        self.source = source
        self.unfinished = count
        self.losses: dict[int, int] = {}


class Orchestrator:
    """Decides what runs where, and that each call gets exactly one outcome.

    Args:
        lease_s: Seconds of work that a worker may have in hand. Enough that it never waits for the next call,
            and so little that it can be given back.
    """

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self.broker = Broker()
        self.tasks: dict[int, TaskRules] = {}
        self.batches: dict[int, UnfinishedBatch] = {}
        self.workers: dict[int, WorkerLeases] = {}
        self._looking = False

    def handle(self, event: Event) -> list[Effect]:
        """Take one event in; what is to be done for it, leases aside."""
        match event:
            case CallsSucceeded():
                return self.calls_succeeded(event)
            case BatchArrived():
                return self.batch_arrived(event)
            case CallFailed():
                return self.call_failed(event)
            case TaskDeclared():
                self.tasks.setdefault(event.task, TaskRules(event.max_worker_losses, event.rerun_on_worker_loss))
                return []
            case WorkerJoined():
                self.workers[event.worker] = WorkerLeases()
                return []
            case WorkerLost():
                return self.worker_lost(event)
            case CutSettled():
                return self.cut_settled(event)
            case CutReached():
                return self.cut_reached(event)
            case Looked():
                return self.looked(event)
            case _:
                assert_never(event)

    def lease_ready_calls(self) -> list[Effect]:
        """Hand ready calls to workers that have room, the least loaded first. Once per turn, after its events."""
        effects: list[Effect] = []
        broker = self.broker
        while broker.ready:
            number, worker = self._worker_with_room()
            if worker is None:
                return effects
            task = self.tasks[broker.peek().task]
            calls = broker.take(self._lease_size(task, worker.load_s))
            position = worker.add(calls, task.call_s or self.lease_s)
            effects.append(LeaseCalls(number, position, calls.batch, calls.task, calls.first, calls.stop))
        if not self._looking and self._someone_idles_beside_a_queue():
            self._looking = True
            effects.append(LookAgain(LOOK_AGAIN_S))
        return effects

    def batch_arrived(self, event: BatchArrived) -> list[Effect]:
        """Queue a new batch; one that is known already was sent again and is left out."""
        if event.batch in self.batches:
            return []
        self.batches[event.batch] = UnfinishedBatch(event.task, event.source, event.count)
        self.broker.put(Range(event.batch, event.task, event.source, 0, event.count))
        return []

    def calls_succeeded(self, event: CallsSucceeded) -> list[Effect]:
        """Keep results, unless the calls were taken from the worker in the meantime."""
        worker = self.workers.get(event.worker)
        if worker is None or not worker.done(event.batch, event.first, event.stop):
            return []
        count = event.stop - event.first
        self.tasks[self.batches[event.batch].task].learn(count, event.seconds)
        effects: list[Effect] = [KeepOutcome(event.batch, event.first), *self._finish(event.batch, count)]
        if worker.cut is not None and worker.reached == worker.cut[1]:
            # It had begun its last call before the cut was made, so it never comes to it.
            worker.cut = None
            effects.append(UncutWorker(event.worker))
        return effects

    def call_failed(self, event: CallFailed) -> list[Effect]:
        """Keep an exception, unless the call was taken from the worker in the meantime."""
        succeeded = CallsSucceeded(event.worker, event.batch, event.index, event.index + 1, event.seconds)
        return self.calls_succeeded(succeeded)

    def worker_lost(self, loss: WorkerLost) -> list[Effect]:
        """Blame the call that ran, and put the rest of the leases back.

        The dead worker's slot names that call, so no other call pays for it. When the slot still names an earlier
        call, the worker died before it began the next one, and nobody is to blame.
        """
        worker = self.workers.pop(loss.worker, None)
        if worker is None:
            return []
        effects: list[Effect] = []
        for leased in worker.take_since(0):
            begun = min(max(loss.position + 1, leased.position), leased.end)
            if begun < leased.end:
                self.broker.put_back(leased.since(begun).calls)
            for position in range(begun - 1, leased.position - 1, -1):
                effects += self._lost_call(loss, leased, position)
        return effects

    def cut_settled(self, event: CutSettled) -> list[Effect]:
        """What lies behind both the cut and the call that runs will not be run by this worker: queue it again."""
        worker = self.workers.get(event.worker)
        if worker is not None and worker.cut is not None:
            self._requeue(worker.take_since(max(worker.cut[0], event.position + 1)))
        return []

    def cut_reached(self, event: CutReached) -> list[Effect]:
        """The worker stands at its cut with empty hands, so it can be leased calls again."""
        worker = self.workers.get(event.worker)
        if worker is None:
            return []
        self._requeue(worker.take_since(event.position))
        worker.cut = None
        return [UncutWorker(event.worker)]

    def looked(self, event: Looked) -> list[Effect]:
        """A worker idles while another holds calls that it has not begun: take half of them back."""
        self._looking = False
        if self.broker.ready or not self._someone_idles_beside_a_queue():
            return []
        most, victim = 0, -1
        for number, position in event.positions.items():
            worker = self.workers.get(number)
            if worker is not None and (count := self._unstarted_count(worker, position)) > most:
                most, victim = count, number
        if victim < 0:
            return []
        worker = self.workers[victim]
        _, stop = worker.unstarted(event.positions[victim])
        start = stop - (most + 1) // 2
        worker.cut = (start, worker.next_position)
        return [CutWorker(victim, start, worker.next_position)]

    def _lease_size(self, task: TaskRules, load_s: float) -> int:
        if task.call_s is None:
            return 1  # Find out first.
        room = int((self.lease_s - load_s) / task.call_s)
        fair = -(-self.broker.ready // (2 * len(self.workers)))
        return max(1, min(room, fair), int(SHORT_S / task.call_s))

    def _worker_with_room(self) -> tuple[int, WorkerLeases | None]:
        """The least loaded worker that may hold more: some milliseconds of work, and one call beside a long one.

        That one keeps the worker from waiting for its next call; if another worker idles, it takes it over.
        """
        least, number, found = float("inf"), -1, None
        for candidate, worker in self.workers.items():
            may_hold_more = worker.load_s < self.lease_s or not worker.several
            if may_hold_more and worker.load_s < least and worker.cut is None:
                least, number, found = worker.load_s, candidate, worker
        return number, found

    def _someone_idles_beside_a_queue(self) -> bool:
        workers = self.workers.values()
        return any(not worker.outstanding for worker in workers) and any(worker.several for worker in workers)

    def _unstarted_count(self, worker: WorkerLeases, position: int) -> int:
        start, stop = worker.unstarted(position)
        return stop - start

    def _requeue(self, taken: list[Leased]) -> None:
        for leased in taken:
            self.broker.put_back(leased.calls)

    def _lost_call(self, loss: WorkerLost, leased: Leased, position: int) -> list[Effect]:
        """Run a call again that had begun when its worker died, or fail it."""
        calls = leased.since(position).before(position + 1).calls
        batch, index = self.batches[calls.batch], calls.first
        task = self.tasks[batch.task]
        ran = position == loss.position
        if ran:
            batch.losses[index] = batch.losses.get(index, 0) + 1
        losses = batch.losses.get(index, 0)
        if task.rerun_on_worker_loss and losses <= task.max_worker_losses:
            self.broker.put_back(calls)
            return []
        return [
            FailLost(loss.worker, calls.task, calls.batch, index, losses, ran, task.rerun_on_worker_loss),
            *self._finish(calls.batch, 1),
        ]

    def _finish(self, batch: int, count: int) -> list[Effect]:
        state = self.batches[batch]
        state.unfinished -= count
        if state.unfinished:
            return []
        del self.batches[batch]
        return [BatchFinished(batch)]
