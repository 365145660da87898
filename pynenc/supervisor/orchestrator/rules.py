"""The rules: each event changes the orchestrator's state and gives effects.

They stand in layers, each of which uses those below: `rules` (what interrupts calls), `leasing`, `arrivals`, `outcomes`.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never

from pynenc.protocol.extras import key_at
from pynenc.protocol.messages import DEFAULT_DELAY, MAX_BATCH_CALLS
from pynenc.supervisor.events import (
    BatchArrived,
    BatchOffered,
    CallFailed,
    CallsSucceeded,
    CallsWithdrawn,
    CutReached,
    CutSettled,
    Effect,
    EndCalls,
    Ended,
    Event,
    FailLost,
    Looked,
    PauseWorker,
    RetryDue,
    TaskDeclared,
    ThreadsWait,
    TimesChecked,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)
from pynenc.supervisor.orchestrator.concurrency import stretches
from pynenc.supervisor.orchestrator.leases import Leased, WorkerLeases
from pynenc.supervisor.orchestrator.leasing import Leasing
from pynenc.supervisor.orchestrator.state import TaskRules, UnfinishedBatch

AWAITED = 1 << 20
"""Above every priority that a task can have."""

SLOT_S = 0.012
"""How much earlier than its call a slot's time may be."""


class Orchestrator(Leasing):
    """Decides what runs where, and that each call gets exactly one outcome.

    Args:
        size: How many workers are to run calls at once.
        spares: How many more there may be while some of them only wait.
        lease_s: Seconds of work that a worker may have in hand. Enough that it never waits for the next call,
            and so little that it can be given back.
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
            case CallFailed():
                return self.call_failed(event)
            case TaskDeclared():
                self.tasks.setdefault(event.task, TaskRules(event.options))
                return []
            case WorkerJoined():
                self.workers[event.worker] = WorkerLeases()
                self._joining = max(0, self._joining - 1)
                return []
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
            case Looked():
                return self.looked(event)
            case RetryDue():
                return self.retry_due(event)
            case CallsWithdrawn():
                return self.calls_withdrawn(event)
            case TimesChecked():
                return self.times_checked(event)
            case _:
                assert_never(event)

    def calls_withdrawn(self, event: CallsWithdrawn) -> list[Effect]:
        """End calls that have not begun; take those that lie in workers' hands back first.

        Those that run are left alone, or with `force` their workers are ended.
        """
        batch = self.batches.get(event.batch)
        if batch is None:
            return []
        effects: list[Effect] = []
        expired = event.why is Ended.EXPIRED
        for ready in self.broker.remove(event.batch, batch.source, batch.priority, event.first, event.stop):
            if expired and ready.attempt:
                self.broker.put(ready)  # It had begun in time, and is tried again.
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
        return effects

    def _withdraw_kept_back(self, event: CallsWithdrawn, batch: UnfinishedBatch) -> list[Effect]:
        """End those of the calls that wait for their keys, or for results of others."""
        effects: list[Effect] = []
        column = batch.extras.running
        if column:
            keys = {key for key, _, _ in stretches(column, event.first, event.stop)}
            for blocked in self.keys.remove(keys, event.batch, event.first, event.stop):
                if event.why is Ended.EXPIRED and blocked.attempt:
                    self.broker.put(blocked)
                else:
                    effects += self._end(blocked, event.why)
            for key in keys:
                effects += self._wake(key)  # Had one of those that were queued been woken, another takes its place.
        for index in self.dependencies.remove(event.batch, event.first, event.stop):
            effects += self._end(self._range(event.batch, index, index + 1), event.why)
        return effects

    def _withdraw_from(self, number: int, worker: WorkerLeases, event: CallsWithdrawn, position: int) -> list[Effect]:
        begun = doomed = False
        for leased in worker.outstanding:
            _, inside = leased.calls.split(event.first, event.stop)
            if inside is None or leased.calls.batch != event.batch:
                continue
            if event.why is Ended.EXPIRED and leased.calls.attempt:
                continue
            for index in range(inside.first, inside.stop):
                at = leased.position + index - leased.calls.first
                if at > position:
                    self.batches[event.batch].withdrawn[index] = event.why
                    begun = True
                elif at == position and event.force:
                    worker.doomed = (position, Ended.KILLED)
                    doomed = True
        for leased, _ in worker.paused:
            if event.force and leased.calls.batch == event.batch and event.first <= leased.calls.first < event.stop:
                worker.doomed = (leased.position, Ended.KILLED)
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
        timed = [
            one
            for worker in self.workers.values()
            for one in worker.outstanding
            if self.tasks[one.calls.task].options.timeout_s
        ]
        if timed:
            effects.append(self._watch_times())
        return effects

    def worker_lost(self, loss: WorkerLost) -> list[Effect]:
        """Blame the call that ran, and put the rest of the leases back.

        The dead worker's slot names that call, so no other call pays for it. When the slot still names an earlier
        call, the worker died before it began the next one, and nobody is to blame.
        """
        worker = self.workers.pop(loss.worker, None)
        if worker is None:
            return []
        effects: list[Effect] = []
        paused = {waiting.position for waiting, _ in worker.paused}
        for leased in worker.take_all():
            if leased.position in paused:
                # It had begun; and if the calls it makes kill workers, it must not run for ever.
                at = loss._replace(position=leased.position)
                if worker.doomed is not None and worker.doomed[0] == leased.position:
                    effects += self._doomed_call(at, leased, worker.doomed[1])
                else:
                    effects += self._lost_call(at, leased, leased.position)
                continue
            begun = min(max(loss.position + 1, leased.position), leased.end)
            if begun < leased.end:
                effects += self._put_back(leased.since(begun).calls)
            if (
                worker.doomed is not None
                and worker.doomed[0] == loss.position
                and begun - 1 == loss.position >= leased.position
            ):
                effects += self._doomed_call(loss, leased, worker.doomed[1])
                begun -= 1
            for position in range(begun - 1, leased.position - 1, -1):
                effects += self._lost_call(loss, leased, position)
        for key in self.keys.let_all_go(loss.worker):
            effects += self._wake(key)
        return effects

    def _doomed_call(self, loss: WorkerLost, leased: Leased, why: Ended) -> list[Effect]:
        """End the call because of which its worker was ended, or try it again."""
        calls = leased.since(loss.position).before(loss.position + 1).calls
        task = self.tasks[calls.task]
        if why is Ended.TIMED_OUT and task.options.retry_on_timeout and calls.attempt < task.options.max_retries:
            attempt = EndCalls(calls.batch, calls.task, calls.first, calls.stop, calls.attempt, why, loss.worker, True)
            delay_s = task.delay_s(calls.attempt, DEFAULT_DELAY, 0.5)
            return [attempt, *self._try_again(calls.batch, calls.first, delay_s)]
        return self._end(calls, why, loss.worker)

    def _lost_call(self, loss: WorkerLost, leased: Leased, position: int) -> list[Effect]:
        """Run a call again that had begun when its worker died, or fail it."""
        calls = leased.since(position).before(position + 1).calls
        batch, index = self.batches[calls.batch], calls.first
        task = self.tasks[batch.task]
        ran = position == loss.position
        if ran:
            batch.losses[index] = batch.losses.get(index, 0) + 1
        losses = batch.losses.get(index, 0)
        if task.options.rerun_on_worker_loss and losses <= task.options.max_worker_losses:
            return self._put_back(calls)
        return [
            FailLost(
                loss.worker,
                calls.task,
                calls.batch,
                index,
                calls.attempt,
                losses,
                ran,
                task.options.rerun_on_worker_loss,
            ),
            *self._failed(calls.batch, index, index + 1),
        ]

    def worker_paused(self, event: WorkerPaused) -> list[Effect]:
        """A call waits: what lies behind it goes to others, and the worker gets what it waits for."""
        worker = self.workers.get(event.worker)
        if worker is None:
            return []
        effects = self._requeue(event.worker, worker.take_since(event.position + 1))
        for number in self._with_dependencies(event.awaited):
            self._put_first(number)
        effects += self._let_go(event.worker, worker.outstanding[-1].calls)
        worker.pause(event.position + 1 < event.end, event.awaited)
        return [*effects, PauseWorker(event.worker, worker.cut)]

    def worker_resumed(self, event: WorkerResumed) -> list[Effect]:
        """What it waited for is there: it gets nothing more for its pause."""
        worker = self.workers.get(event.worker)
        if worker is None:
            return []
        effects = self._requeue(event.worker, worker.take_since(event.position + 1))
        calls = worker.paused[-1][0].calls
        column = self.batches[calls.batch].extras.running
        if column:
            key = key_at(column, calls.first)
            if not self.keys.may_hold(key, event.worker, self.tasks[calls.task].options.max_running):
                worker.resuming = True
                self.keys.resuming.setdefault(key, deque()).append(event.worker)
                return effects
            self.keys.hold(key, event.worker, 1)
        return effects + self._resume(event.worker)

    def _put_first(self, number: int) -> None:
        """Calls that others wait for come before all others; the more wait, the earlier."""
        batch = self.batches.get(number)
        if batch is None:
            return
        queued = self.broker.remove(number, batch.source, batch.priority, 0, MAX_BATCH_CALLS)
        batch.priority = max(batch.priority, AWAITED) + 1
        for one in queued:
            self.broker.put(one._replace(priority=batch.priority))
        column = batch.extras.running
        keys = {key for key, _, _ in stretches(column, 0, batch.count)} if column else set()
        for one in self.keys.remove(keys, number, 0, batch.count):
            self.keys.block(key_at(column, one.first), self._order(one), one)
