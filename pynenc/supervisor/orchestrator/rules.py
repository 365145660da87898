"""The rules: each event changes the orchestrator's state and gives effects.

They stand in layers, each of which uses those below: `rules` (what interrupts calls), `recycling`, `concurrent`, `losses`,
`leasing`, `arrivals`, `outcomes`.
"""

from __future__ import annotations

from typing import assert_never

from pynenc.status import InvocationStatus
from pynenc.supervisor.events import (
    BatchArrived,
    BatchesShelved,
    BatchOffered,
    BatchRecovered,
    CallFailed,
    CallsSucceeded,
    CallsWithdrawn,
    CutReached,
    CutSettled,
    Effect,
    Ended,
    Event,
    KillWorker,
    Looked,
    PauseWorker,
    RetryDue,
    StopsChecked,
    TaskDeclared,
    ThreadsWait,
    TimesChecked,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
    WorkersMeasured,
    WorkerUnfit,
)
from pynenc.supervisor.orchestrator.concurrency import stretches
from pynenc.supervisor.orchestrator.leases import ConcurrentLeases, WorkerLeases
from pynenc.supervisor.orchestrator.outcomes import transition
from pynenc.supervisor.orchestrator.recycling import Recycling
from pynenc.supervisor.orchestrator.state import TaskRules, UnfinishedBatch

SLOT_S = 0.012
"""How much earlier than its call a slot's time may be."""


class Orchestrator(Recycling):
    """Decides what runs where, and that each call gets exactly one outcome.

    Args:
        size: How many workers are to run calls at once.
        spares: How many more there may be while some of them only wait.
        lease_s: Seconds of work that a worker may have in hand. Enough that it never waits for the next call,
            and so little that it can be given back.
        limits: When workers are replaced or ended.
    """

    def handle(self, event: Event) -> list[Effect]:
        """Take one event in; what is to be done for it, leases aside."""
        match event:
            case CallsSucceeded():
                return self.calls_succeeded(event)
            case BatchArrived():
                return self.batch_arrived(event)
            case BatchOffered():
                return self.batch_offered(event)
            case BatchRecovered():
                return self.batch_recovered(event)
            case CallFailed():
                return self.call_failed(event)
            case TaskDeclared():
                self.tasks.setdefault(event.task, TaskRules(event.options))
                return []
            case WorkerJoined():
                return self.worker_joined(event)
            case WorkerPaused():
                return self.worker_paused(event)
            case WorkerResumed():
                return self.worker_resumed(event)
            case ThreadsWait():
                if event.worker in self.workers:
                    self.workers[event.worker].threads = event.count
                return []
            case WorkerLost():
                return self.worker_lost(event)
            case CutSettled():
                return self.cut_settled(event)
            case CutReached():
                return self.cut_reached(event)
            case WorkerUnfit():
                return self.worker_unfit(event)
            case Looked():
                return self.looked(event)
            case StopsChecked():
                return self.stops_checked(event)
            case RetryDue():
                return self.retry_due(event)
            case CallsWithdrawn():
                return self.calls_withdrawn(event)
            case BatchesShelved():
                return self.batches_shelved(event)
            case TimesChecked():
                return self.times_checked(event)
            case WorkersMeasured():
                return self.workers_measured(event)
            case _:
                assert_never(event)

    def calls_withdrawn(self, event: CallsWithdrawn) -> list[Effect]:
        """End calls that have not begun; take those that lie in workers' hands back first.

        Those that run are left alone, or with `force` their workers are ended.
        """
        batch = self.batches.get(event.batch)
        if batch is None:
            return []
        event = event._replace(stop=min(event.stop, batch.count))
        effects: list[Effect] = []
        expired = event.why is Ended.EXPIRED
        for ready in self._unqueue(event.batch, event.first, event.stop):
            if expired and ready.attempt:
                self._queue(ready)  # It had begun in time, and is tried again.
            else:
                effects += self._end(ready, event.why)
        effects += self._withdraw_kept_back(event, batch)
        if event.batch not in self.batches:
            return effects
        if not expired:
            for index in sorted(one for one in batch.waiting if event.first <= one < event.stop):
                batch.waiting.discard(index)
                effects += self._end(self._range(event.batch, index, index + 1), event.why)
        for number, worker in self.workers.items():
            effects += self._withdraw_from(number, worker, event, event.positions.get(number, 0))
        return effects + (self._stop_running(event) if event.force else [])

    def batches_shelved(self, event: BatchesShelved) -> list[Effect]:
        """Stop all calls of some batches; they get no outcome.

        Those that wait for results of each other are taken out first, so that none of them fails because of another.
        """
        batches = [number for number in event.batches if number in self.batches]
        waiting = {number: self.dependencies.remove(number, 0, self.batches[number].count) for number in batches}
        effects: list[Effect] = []
        for number in batches:
            for index in waiting[number]:
                effects += self._end(self._range(number, index, index + 1), Ended.SHELVED)
            if number in self.batches:
                count = self.batches[number].count
                effects += self.calls_withdrawn(CallsWithdrawn(number, 0, count, Ended.SHELVED, True, event.positions))
        return effects

    def _withdraw_kept_back(self, event: CallsWithdrawn, batch: UnfinishedBatch) -> list[Effect]:
        """End those of the calls that wait for their keys, or for results of others."""
        effects: list[Effect] = []
        column = batch.extras.running
        if column:
            keys = {key for key, _, _ in stretches(column, event.first, event.stop)}
            for blocked in self.keys.remove(keys, event.batch, event.first, event.stop):
                if event.why is Ended.EXPIRED and blocked.attempt:
                    self._queue(blocked)
                else:
                    effects += self._end(blocked, event.why)
            for key in keys:
                effects += self._wake(key)  # Had one of those that were queued been woken, another takes its place.
        for index in self.dependencies.remove(event.batch, event.first, event.stop):
            effects += self._end(self._range(event.batch, index, index + 1), event.why)
        return effects

    def _withdraw_from(self, number: int, worker: WorkerLeases, event: CallsWithdrawn, position: int) -> list[Effect]:
        begun = doomed = False
        shelved = event.why is Ended.SHELVED
        why = Ended.SHELVED if shelved else Ended.KILLED
        for leased in worker.outstanding:
            if leased.calls.batch != event.batch or (event.why is Ended.EXPIRED and leased.calls.attempt):
                continue
            _, inside = leased.calls.split(event.first, event.stop)
            if inside is None:
                continue
            for index in range(inside.first, inside.stop):
                at = leased.position + index - leased.calls.first
                if (
                    at > position or shelved
                ):  # What has run and was not shipped is kept back, too, should the worker die.
                    self.batches[event.batch].withdrawn[index] = event.why
                    begun = True
                if at == position and event.force:
                    worker.doomed = (position, why)
                    doomed = True
        for leased, _ in worker.paused:
            if event.force and leased.calls.batch == event.batch and event.first <= leased.calls.first < event.stop:
                if shelved:
                    self.batches[event.batch].withdrawn[leased.calls.first] = event.why
                worker.doomed = (leased.position, why)
                doomed = True
        return self._cut(number, worker, position + 1) if begun or doomed else []

    def times_checked(self, event: TimesChecked) -> list[Effect]:
        """End workers whose call runs for longer than its task allows."""
        self._watching_times = False
        effects: list[Effect] = []
        for number, (position, seconds) in event.running.items():
            worker = self.workers.get(number)
            leased = worker.leased_at(position) if worker is not None else None
            if worker is None or leased is None or worker.doomed is not None:
                continue
            limit_s = self.tasks[leased.calls.task].options.timeout_s
            if limit_s and seconds > limit_s + SLOT_S:
                worker.doomed = (position, Ended.TIMED_OUT)
                effects += self._cut(number, worker, position + 1)
        for number, worker in self.workers.items():
            late = self._first_late(worker, event.now)
            if late is not None and worker.doomed is None:
                worker.doomed = (late, Ended.TIMED_OUT)
                effects += self._kill(number, worker)
        for number, position in event.overdue.items():
            concurrent = self.concurrent.get(number)
            if concurrent is not None and concurrent.doomed is None and position in concurrent.held:
                calls = concurrent.held[position].calls
                withdrawn = self.batches[calls.batch].withdrawn.get(calls.first)
                why = Ended.TIMED_OUT if withdrawn is None else Ended.KILLED
                concurrent.doomed = (position, withdrawn if withdrawn is Ended.SHELVED else why)
                effects.append(KillWorker(number))
        held = [
            one.calls
            for worker in self.workers.values()
            for one in [*worker.outstanding, *(waiting for waiting, _ in worker.paused)]
        ]
        if any(self.tasks[calls.task].options.timeout_s for calls in held) or self._any_must_end():
            effects += self._watch_times()
        return effects

    def _first_late(self, worker: WorkerLeases, now: float) -> int | None:
        """The position of a call that waits and whose time is over."""
        for (waiting, _), began in zip(worker.paused, worker.began, strict=True):
            limit_s = self.tasks[waiting.calls.task].options.timeout_s
            if limit_s and now - began > limit_s + SLOT_S:
                return waiting.position
        return None

    def worker_joined(self, event: WorkerJoined) -> list[Effect]:
        """Have one more worker to lease calls to."""
        if event.concurrent:
            self.concurrent[event.worker] = ConcurrentLeases()
            self._joining_concurrent = max(0, self._joining_concurrent - 1)
        else:
            self.workers[event.worker] = WorkerLeases()
            self._joining = max(0, self._joining - 1)
        return []

    def worker_paused(self, event: WorkerPaused) -> list[Effect]:
        """A call waits: what lies behind it goes to others, and the worker gets what it waits for."""
        if event.worker in self.concurrent:
            return self.call_paused(event, self.concurrent[event.worker])
        worker = self.workers.get(event.worker)
        if worker is None:
            return []
        if not worker.outstanding or worker.outstanding[0].position != event.position:
            return self._kill(event.worker, worker)  # It has lost its senses: no such call is in its hands.
        effects = self._requeue(event.worker, worker.take_since(event.position + 1))
        for number in self._with_dependencies(event.awaited):
            self._put_first(number)
        calls = worker.outstanding[-1].calls
        effects += [*self._let_go(event.worker, calls), transition(calls, InvocationStatus.PAUSED, event.worker)]
        worker.pause(event.position + 1 < event.end, event.awaited, event.began)
        effects.append(PauseWorker(event.worker, worker.cut))
        if worker.doomed is not None and not worker.is_dying:
            # The cut at whose settling it was to be ended is gone with the pause.
            if worker.doomed[0] == event.position:
                return effects + self._kill(event.worker, worker)
            worker.doomed = None  # Its call ended by itself.
        return effects

    def worker_resumed(self, event: WorkerResumed) -> list[Effect]:
        """What it waited for is there: it gets nothing more for its pause."""
        if event.worker in self.concurrent:
            return self.call_resumed(event, self.concurrent[event.worker])
        worker = self.workers.get(event.worker)
        if worker is None:
            return []
        if not worker.paused:
            return self._kill(event.worker, worker)  # It has lost its senses: nothing of it waits.
        effects = self._requeue(event.worker, worker.take_since(event.position + 1))
        if not self._hold_again(event.worker, worker.paused[-1][0].calls):
            worker.resuming = True
            return effects
        return effects + self._resume(event.worker)
