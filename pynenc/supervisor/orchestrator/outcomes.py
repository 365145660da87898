"""What becomes of calls: they succeed, fail, are tried again or end without having run; and who may go on because of that."""

from __future__ import annotations

from collections import deque

from pynenc.protocol.extras import KEY_BYTES, key_at
from pynenc.protocol.messages import NOT_RETRIABLE, invocation_number, split_number
from pynenc.status import InvocationStatus
from pynenc.supervisor.broker import Broker, Order, Range
from pynenc.supervisor.events import (
    NO_LIMITS,
    AddWorker,
    BatchFinished,
    CallFailed,
    CallLater,
    CallsSucceeded,
    Effect,
    EndCalls,
    Ended,
    KeepAttempt,
    KeepOutcome,
    KeepTransition,
    ResumeCall,
    ResumeWorker,
    RetireWorker,
    RetryDue,
    UncutWorker,
    WorkerLimits,
)
from pynenc.supervisor.orchestrator.concurrency import KeyHolders, stretches
from pynenc.supervisor.orchestrator.dependencies import Dependencies
from pynenc.supervisor.orchestrator.leases import ConcurrentLeases, Leased, WorkerLeases
from pynenc.supervisor.orchestrator.seats import Seats
from pynenc.supervisor.orchestrator.state import TaskRules, UnfinishedBatch

MAX_WORKERS = 512
"""How many workers there are at most when nothing but one more of them can go on."""


def transition(calls: Range, status: InvocationStatus, worker: int, ran: bool = False) -> KeepTransition:
    """A step of calls on the way to their outcome."""
    return KeepTransition(calls.batch, calls.first, calls.stop, status, worker, ran)


class Outcomes:
    """The state, and the rules about the outcomes of calls; the first layer of `Orchestrator`."""

    def __init__(self, lease_s: float, size: int = 1, spares: int = 0, limits: WorkerLimits = NO_LIMITS) -> None:
        self.lease_s = lease_s
        self.limits = limits
        self._size = size
        self._spares = spares
        self._joining = 0
        self.broker = Broker()
        self.brokers: dict[int, Broker] = {}
        self.isolated = Broker()
        self.concurrent: dict[int, ConcurrentLeases] = {}
        self._joining_concurrent = 0
        self.tasks: dict[int, TaskRules] = {}
        self.batches: dict[int, UnfinishedBatch] = {}
        self.workers: dict[int, WorkerLeases] = {}
        self.keys = KeyHolders()
        self.dependencies = Dependencies()
        self._registered: dict[bytes, tuple[int, int, bytes]] = {}
        self._arrivals = 0
        self._looking = False
        self._stood_at: dict[int, int] = {}
        self._watching_stops = False
        self._crossed = False
        self._watching_times = False
        self._measuring = False
        self._leaving: set[int] = set()
        self._is_any_unfit = False
        self._seats = Seats()
        self._spare = (0, 0.0)

    @property
    def ready(self) -> int:
        """How many calls are queued."""
        return self.broker.ready + self.concurrent_ready

    @property
    def concurrent_ready(self) -> int:
        """How many of them are of concurrent tasks."""
        return self.isolated.ready + sum(broker.ready for broker in self.brokers.values())

    def held_by(self, number: int) -> list[Leased]:
        """What lies in a worker's hands."""
        if number in self.concurrent:
            return list(self.concurrent[number].held.values())
        return list(self.workers[number].outstanding) if number in self.workers else []

    def in_hands_of(self, number: int) -> list[Leased]:
        """The same, with the calls that wait for others."""
        worker = self.workers.get(number)
        return self.held_by(number) + ([waiting for waiting, _ in worker.paused] if worker is not None else [])

    def calls_succeeded(self, event: CallsSucceeded) -> list[Effect]:
        """Keep results, unless the calls were taken from the worker in the meantime."""
        worker = self.workers.get(event.worker) or self.concurrent.get(event.worker)
        if worker is None or not worker.done(event.batch, event.first, event.stop):
            return []
        count = event.stop - event.first
        batch = self.batches[event.batch]
        self.tasks[batch.task].learn(count, event.seconds)
        batch.succeeded.append((event.first, event.stop))
        if self.dependencies.waiting:
            self._put_ready(self.dependencies.succeeded(event.batch, event.first, event.stop))
        effects: list[Effect] = [KeepOutcome(event.batch, event.first)]
        if batch.extras.running:
            effects += self._let_go(event.worker, self._range(event.batch, event.first, event.stop))
        return effects + self._finish(event.batch, count) + self._uncut_behind_last(event.worker, worker)

    def call_failed(self, event: CallFailed) -> list[Effect]:
        """Keep an exception and try again, or keep it as the outcome; unless the call was taken from the worker."""
        worker = self.workers.get(event.worker) or self.concurrent.get(event.worker)
        if worker is None or not worker.done(event.batch, event.index, event.index + 1):
            return []
        batch = self.batches[event.batch]
        task = self.tasks[batch.task]
        task.learn(1, event.seconds)
        effects = self._let_go(event.worker, self._range(event.batch, event.index, event.index + 1))
        retries = batch.retries.get(event.index, 0)
        if batch.withdrawn.get(event.index) is Ended.SHELVED and task.options.rerun_on_worker_loss:
            # Whether it failed, or was stopped in its middle, nobody can tell.
            return effects + self._end(self._range(event.batch, event.index, event.index + 1), Ended.SHELVED)
        if event.retry_s == NOT_RETRIABLE or event.index in batch.withdrawn or retries >= task.options.max_retries:
            effects.append(KeepOutcome(event.batch, event.index))
            effects += self._failed(event.batch, event.index, event.index + 1)
        else:
            effects.append(KeepAttempt(event.batch, event.index))
            effects += self._try_again(event.batch, event.index, task.delay_s(retries, event.retry_s, event.chance))
        return effects + self._uncut_behind_last(event.worker, worker)

    def retry_due(self, event: RetryDue) -> list[Effect]:
        """Queue a call whose next attempt's time has come, unless it was withdrawn."""
        batch = self.batches.get(event.batch)
        if batch is not None and event.index in batch.waiting:
            batch.waiting.discard(event.index)
            self._queue(self._range(event.batch, event.index, event.index + 1))
        return []

    def _put_ready(self, calls: list[tuple[int, int]]) -> None:
        """Queue calls that wait for nothing any more; those that lie side by side together, if they were never tried."""
        start = 0
        for at in range(1, len(calls) + 1):
            batch, first = calls[start]
            retries = self.batches[batch].retries
            if (
                at == len(calls)
                or calls[at] != (batch, calls[at - 1][1] + 1)
                or (retries and (first in retries or calls[at][1] in retries))
            ):
                self._queue(self._range(batch, first, calls[at - 1][1] + 1))
                start = at

    def _end(self, calls: Range, why: Ended, worker: int = 0, root: int = 0, began: float = 0.0) -> list[Effect]:
        where = (calls.batch, calls.task, calls.first, calls.stop)
        ended = EndCalls(*where, calls.attempt, why, worker, began=began, root=root)
        return [ended, *self._failed(calls.batch, calls.first, calls.stop, root)]

    def _failed(self, batch: int, first: int, stop: int, root: int = 0) -> list[Effect]:
        """Calls have ended without results: so do those that wait for these results, and those that wait for theirs."""
        effects: list[Effect] = []
        todo = [(batch, first, stop, root)]
        for number, start, end, cause in todo:
            self.batches[number].failed.append((start, end, cause))
            for dependent, index in self.dependencies.failed(number, start, end):
                because = cause or self.batches[number].root_of_failure(number, start, end)
                task = self.batches[dependent].task
                effects.append(EndCalls(dependent, task, index, index + 1, 0, Ended.DEPENDENCY, root=because))
                todo.append((dependent, index, index + 1, because))
        for number, start, end, _ in todo:
            effects += self._finish(number, end - start)
        return effects

    def _finish(self, batch: int, count: int) -> list[Effect]:
        state = self.batches[batch]
        state.unfinished -= count
        if state.unfinished:
            return []
        del self.batches[batch]
        self.dependencies.finished(batch)
        if not (keys := state.extras.registration):
            return [BatchFinished(batch)]
        for index in range(len(keys) // KEY_BYTES):
            found = self._registered.get(key_at(keys, index))
            if found is not None and found[0] == batch:
                del self._registered[key_at(keys, index)]
        return [BatchFinished(batch)]

    def _try_again(self, batch: int, index: int, delay_s: float) -> list[Effect]:
        state = self.batches[batch]
        state.retries[index] = state.retries.get(index, 0) + 1
        if not delay_s:
            self._queue(self._range(batch, index, index + 1))
            return []
        state.waiting.add(index)
        return [CallLater(delay_s, RetryDue(batch, index))]

    def _uncut_behind_last(self, number: int, worker: WorkerLeases | ConcurrentLeases) -> list[Effect]:
        effects: list[Effect] = []
        if worker.cut is not None and worker.reached == worker.cut[1] and not worker.paused:
            # It had begun its last call before the cut was made, so it never comes to it.
            worker.uncut()
            effects.append(UncutWorker(number))
        return effects

    def _let_go(self, number: int, calls: Range) -> list[Effect]:
        """Calls left a worker's hands: wake one that waited for their key."""
        column = self.batches[calls.batch].extras.running
        if not column:
            return []
        effects: list[Effect] = []
        holder = self._holder(number, calls)
        for key, first, stop in stretches(column, calls.first, calls.stop):
            if not self.keys.holds(key, holder):
                # It waits for others, and perhaps for its key.
                if holder in self.keys.resuming.get(key, ()):
                    self.keys.resume_no_more(key, holder)
            elif self.keys.let_go(key, holder, stop - first):
                effects += self._wake(key)
        return effects

    def _holder(self, number: int, calls: Range) -> int:
        """Who holds the key of calls in a worker's hands: the worker, or the call if it runs beside others."""
        return -invocation_number(calls.batch, calls.first) if self.tasks[calls.task].options.concurrency else number

    def _hold_again(self, number: int, calls: Range) -> bool:
        """Whether a call that waited for others has its key again; if not it is in line for it."""
        column = self.batches[calls.batch].extras.running
        if not column:
            return True
        key, holder = key_at(column, calls.first), self._holder(number, calls)
        if self.keys.may_hold(key, holder, self.tasks[calls.task].options.max_running):
            self.keys.hold(key, holder, 1)
            return True
        self.keys.resuming.setdefault(key, deque()).append(holder)
        return False

    def _wake(self, key: bytes) -> list[Effect]:
        resuming = self.keys.resuming.get(key)
        if resuming:
            return self._go_on(key, resuming[0])
        woken = self.keys.wake(key)
        if woken is not None:
            batch = self.batches[woken.batch]
            batch.rerouted = True
            self._queue_back(woken._replace(priority=batch.priority))
        return []

    def _go_on(self, key: bytes, holder: int) -> list[Effect]:
        """Let the call go on that is first in line for its key, if that is free."""
        if holder < 0:
            batch, index = split_number(-holder)
            number, position = next(
                (one, at) for one, worker in self.concurrent.items() if (at := worker.position_of(batch, index))
            )
            task = self.batches[batch].task
        else:
            number, task = holder, self.workers[holder].paused[-1][0].calls.task
        if not self.keys.may_hold(key, holder, self.tasks[task].options.max_running):
            return []
        self.keys.resume_no_more(key, holder)
        self.keys.hold(key, holder, 1)
        if holder > 0:
            return self._resume(number)
        return self._resume_call(number, position)

    def _resume(self, number: int) -> list[Effect]:
        worker = self.workers[number]
        uncut = not worker.resume() and worker.cut is not None
        if uncut:
            worker.uncut()
        resumed = transition(worker.outstanding[-1].calls, InvocationStatus.RESUMED, number)
        return [resumed, ResumeWorker(number, uncut), *self._fit_workers()]

    def _resume_call(self, number: int, position: int) -> list[Effect]:
        worker = self.concurrent[number]
        worker.go_on(position)
        resumed = transition(worker.held[position].calls, InvocationStatus.RESUMED, number)
        return [resumed, ResumeCall(number, position)]

    def _fit_workers(self) -> list[Effect]:
        """Have as many workers that can run calls as processors are meant to be used, as long as there is work."""
        effects: list[Effect] = []
        able, total, most = self._count_able(), self._count_workers(), self._most_workers()
        while self.broker.ready and able < self._size and total < most:
            effects.append(AddWorker())
            self._joining += 1
            able, total = able + 1, total + 1
        for number in [number for number, worker in self.workers.items() if worker.is_idle and worker.cut is None]:
            if able <= self._size or total <= self._size or self.broker.ready:
                break
            del self.workers[number]
            effects.append(RetireWorker(number))
            able, total = able - 1, total - 1
        return effects

    def _may_add_worker(self) -> bool:
        """Whether one more worker would be started if calls were queued."""
        return self._count_able() < self._size and self._count_workers() < self._most_workers()

    def _most_workers(self) -> int:
        most = self._size + self._spares
        if not self._count_able() and any(worker.threads or worker.wear.is_unfit for worker in self.workers.values()):
            return max(most, MAX_WORKERS)  # What they wait for can go on nowhere else.
        return most

    def _count_able(self) -> int:
        """How many workers can run calls that nobody waits for, or are about to."""
        return sum(not worker.is_waiting for worker in self.workers.values()) + self._joining

    def _count_workers(self) -> int:
        return len(self.workers) + self._joining

    def _requeue(self, number: int, taken: list[Leased]) -> list[Effect]:
        """Queue calls again that were taken out of a worker's hands."""
        effects: list[Effect] = []
        for leased in taken:
            effects += self._let_go(number, leased.calls) + self._put_back(leased.calls)
        return effects

    def _put_back(self, calls: Range) -> list[Effect]:
        runnable, ended = self.batches[calls.batch].sort_out(calls)
        for one in reversed(runnable):
            self._queue_back(one._replace(priority=self.batches[calls.batch].priority))
        return [effect for one, why in ended for effect in self._end(one, why)]

    def _queue(self, calls: Range) -> None:
        self._broker_of(calls).put(calls)

    def _queue_back(self, calls: Range) -> None:
        self._broker_of(calls).put_back(calls)

    def _broker_of(self, calls: Range) -> Broker:
        if not self.tasks[calls.task].options.concurrency:
            return self.broker
        if calls.stop == calls.first + 1 and calls.first in self.batches[calls.batch].isolated:
            return self.isolated
        return self.brokers.setdefault(calls.task, Broker())

    def _unqueue(self, number: int, first: int, stop: int) -> list[Range]:
        """Take out those calls of a batch that are queued."""
        batch = self.batches[number]
        if not self.tasks[batch.task].options.concurrency:
            return self.broker.remove(number, batch.source, batch.priority, first, stop)
        brokers = (self.isolated, self.brokers.setdefault(batch.task, Broker()))
        return [one for broker in brokers for one in broker.remove(number, batch.source, batch.priority, first, stop)]

    def _range(self, batch: int, first: int, stop: int) -> Range:
        """Calls of an unfinished batch as they are queued; one call, unless they were never tried."""
        state = self.batches[batch]
        return Range(batch, state.task, state.source, first, stop, state.retries.get(first, 0), state.priority)

    def _order(self, calls: Range) -> Order:
        batch = self.batches[calls.batch]
        return (-batch.priority, batch.arrival, calls.first)
