"""The rules: each event changes the orchestrator's state and gives effects."""

from __future__ import annotations

from collections import deque
from typing import assert_never

from pynenc.protocol.extras import KEY_BYTES, key_at
from pynenc.protocol.messages import DEFAULT_DELAY, MAX_BATCH_CALLS, NOT_RETRIABLE
from pynenc.supervisor.broker import Broker, Range
from pynenc.supervisor.events import (
    AddWorker,
    AnswerOffer,
    BatchArrived,
    BatchFinished,
    BatchOffered,
    CallFailed,
    CallLater,
    CallsSucceeded,
    CallsWithdrawn,
    CutReached,
    CutSettled,
    CutWorker,
    Effect,
    EndCalls,
    Ended,
    Event,
    FailLost,
    KeepAttempt,
    KeepOutcome,
    KillWorker,
    LeaseCalls,
    LookAgain,
    Looked,
    PauseWorker,
    ResumeWorker,
    RetireWorker,
    RetryDue,
    Reused,
    TaskDeclared,
    ThreadsWait,
    TimesChecked,
    UncutWorker,
    WatchTimes,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)
from pynenc.supervisor.orchestrator.concurrency import KeyHolders, Order, first_stretch, stretches
from pynenc.supervisor.orchestrator.dependencies import Dependencies
from pynenc.supervisor.orchestrator.leases import Leased, WorkerLeases
from pynenc.supervisor.orchestrator.state import TaskRules, UnfinishedBatch

LOOK_AGAIN_S = 0.002
"""How long a worker is idle before the calls of the others are looked at."""

SHORT_S = 0.002
"""Work shorter than this is not worth dividing between workers."""

MAX_WORKERS = 512
"""How many workers there are at most when nothing but one more of them can go on."""

AWAITED = 1 << 20
"""Above every priority that a task can have."""

TIMES_S = 0.05
"""How often the running times of calls with a time limit are looked at, at the least."""

SLOT_S = 0.012
"""How much earlier than its call a slot's time may be."""


class Orchestrator:
    """Decides what runs where, and that each call gets exactly one outcome.

    Args:
        size: How many workers are to run calls at once.
        spares: How many more there may be while some of them only wait.
        lease_s: Seconds of work that a worker may have in hand. Enough that it never waits for the next call,
            and so little that it can be given back.
    """

    def __init__(self, lease_s: float, size: int = 1, spares: int = 0) -> None:
        self.lease_s = lease_s
        self._size = size
        self._spares = spares
        self._joining = 0
        self.broker = Broker()
        self.tasks: dict[int, TaskRules] = {}
        self.batches: dict[int, UnfinishedBatch] = {}
        self.workers: dict[int, WorkerLeases] = {}
        self.keys = KeyHolders()
        self.dependencies = Dependencies()
        self._registered: dict[bytes, tuple[int, int, bytes]] = {}
        self._arrivals = 0
        self._looking = False
        self._watching_times = False

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

    def lease_ready_calls(self) -> list[Effect]:
        """Hand ready calls to workers that have room, the least loaded first. Once per turn, after its events."""
        effects: list[Effect] = []
        broker = self.broker
        if self._any_waits() or len(self.workers) > self._size:
            effects += self._lease_awaited_calls() + self._fit_workers()
        while broker.ready:
            number, worker = self._worker_with_room()
            if worker is None:
                return effects
            task = self.tasks[broker.peek().task]
            calls = broker.take(self._lease_size(task, worker.load_s))
            if self.batches[calls.batch].extras.running:
                effects += self._lease_keyed(number, calls)
            else:
                effects += self._lease(number, worker, calls)
        if not self._looking and (self._someone_idles_beside_a_queue() or self._waiting_threads_hold_calls()):
            self._looking = True
            effects.append(LookAgain(LOOK_AGAIN_S))
        return effects

    def batch_arrived(self, event: BatchArrived) -> list[Effect]:
        """Queue a new batch; one that is known already was sent again and is left out."""
        if event.batch in self.batches:
            return []
        options = self.tasks[event.task].options
        self._arrivals += 1
        state = UnfinishedBatch(event, options.priority, self._arrivals)
        self.batches[event.batch] = state
        effects: list[Effect] = []
        if options.expires_s:
            late = CallsWithdrawn(event.batch, 0, event.count, Ended.EXPIRED, False, {})
            effects.append(CallLater(options.expires_s, late))
        if not state.depends_on:
            self.broker.put(self._range(event.batch, 0, event.count))
            return effects
        return effects + self._wait_for_dependencies(event)

    def _wait_for_dependencies(self, event: BatchArrived) -> list[Effect]:
        """Queue those calls of a new batch whose dependencies have their results, and end those whose have failed."""
        failed: dict[int, int] = {}
        for on in event.extras.depended_on():
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
            for index in range(event.count)
            if index not in failed and (event.batch, index) not in self.dependencies.waiting
        ]
        self._put_ready(ready)
        effects: list[Effect] = []
        for index, root in failed.items():
            self.dependencies.remove(event.batch, index, index + 1)
            effects += self._end(self._range(event.batch, index, index + 1), Ended.DEPENDENCY, root=root)
        return effects

    def _put_ready(self, calls: list[tuple[int, int]]) -> None:
        """Queue calls that wait for nothing any more; those that lie side by side together."""
        start = 0
        for at in range(1, len(calls) + 1):
            if at == len(calls) or calls[at] != (calls[at - 1][0], calls[at - 1][1] + 1):
                batch, first = calls[start]
                self.broker.put(self._range(batch, first, calls[at - 1][1] + 1))
                start = at

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
        for index in range(offered.count):
            self._registered[key_at(keys, index)] = (offered.batch, index, key_at(arguments, index))
        return [AnswerOffer(offered.batch, []), *self.batch_arrived(offered)]

    def _waits_to_run(self, number: int, index: int, positions: dict[int, int]) -> bool:
        batch = self.batches.get(number)
        if batch is None or batch.has_ended(index):
            return False
        for worker_number, worker in self.workers.items():
            for leased in [*worker.outstanding, *(waiting for waiting, _ in worker.paused)]:
                if leased.calls.batch == number and leased.calls.first <= index < leased.calls.stop:
                    return leased.position + index - leased.calls.first > positions.get(worker_number, 0)
        return True

    def _lease(self, number: int, worker: WorkerLeases, calls: Range) -> list[Effect]:
        task = self.tasks[calls.task]
        position = worker.add(calls, task.call_s or self.lease_s)
        lease = LeaseCalls(number, position, calls.batch, calls.task, calls.first, calls.stop, calls.attempt)
        if task.options.timeout_s and not self._watching_times:
            return [lease, self._watch_times()]
        return [lease]

    def _lease_keyed(self, number: int, calls: Range, in_turn: bool = True) -> list[Effect]:
        """Lease the calls that come first for the key of these calls, if it is free; else these wait for it, or end.

        Args:
            number: The worker that has room; one that holds the key already may get them instead.
            calls: Taken from the broker.
            in_turn: Whether others that wait for the key come before them.
        """
        key, stop = first_stretch(self.batches[calls.batch].extras.running, calls.first, calls.stop)
        options = self.tasks[calls.task].options
        if not options.reroute:
            stop = calls.first + 1  # One by one, so that no more of them are in anybody's hands than may run.
        if stop < calls.stop:
            self.broker.put_back(calls.part(stop, calls.stop))
            calls = calls.part(calls.first, stop)
        keys = self.keys
        if not options.reroute:
            return (
                self._hold(key, number, calls)
                if keys.held(key) < options.max_running
                else self._end(calls, Ended.CONTROLLED)
            )
        free = keys.may_hold(key, number, options.max_running)
        if free and not in_turn:
            return self._hold(key, number, calls)
        keys.block(key, self._order(calls), calls)
        if not free:
            with_room = [one for one in keys.holders[key] if self._has_room(self.workers[one])]
            if not with_room:
                return []
            number = with_room[0]
        return self._lease_blocked(key, number)

    def _lease_blocked(self, key: bytes, number: int) -> list[Effect]:
        """Lease calls that wait for a key to a worker that may hold it: the first of them, and some more if they are short."""
        effects: list[Effect] = []
        worker = self.workers[number]
        while (calls := self.keys.wake(key)) is not None:
            call_s = self.tasks[calls.task].call_s
            room = int((self.lease_s - worker.load_s) / call_s) if call_s else 0
            stop = calls.first + max(room, 0 if effects else 1)
            if stop < calls.stop:
                left = calls.part(max(stop, calls.first), calls.stop)
                self.keys.block(key, self._order(left), left)
            if stop <= calls.first:
                break
            effects += self._hold(key, number, calls.part(calls.first, min(stop, calls.stop)))
        return effects

    def _hold(self, key: bytes, number: int, calls: Range) -> list[Effect]:
        self.keys.hold(key, number, calls.stop - calls.first)
        return self._lease(number, self.workers[number], calls)

    def _order(self, calls: Range) -> Order:
        batch = self.batches[calls.batch]
        return (-batch.priority, batch.arrival, calls.first)

    def _let_go(self, number: int, calls: Range) -> list[Effect]:
        """Calls left a worker's hands: wake one that waited for their key."""
        column = self.batches[calls.batch].extras.running
        if not column:
            return []
        effects: list[Effect] = []
        for key, first, stop in stretches(column, calls.first, calls.stop):
            if self.keys.let_go(key, number, stop - first):
                effects += self._wake(key)
        return effects

    def _wake(self, key: bytes) -> list[Effect]:
        resuming = self.keys.resuming.get(key)
        if resuming:
            number = resuming[0]
            calls = self.workers[number].paused[-1][0].calls
            if not self.keys.may_hold(key, number, self.tasks[calls.task].options.max_running):
                return []
            resuming.popleft()
            self.keys.hold(key, number, 1)
            return self._resume(number)
        woken = self.keys.wake(key)
        if woken is not None:
            batch = self.batches[woken.batch]
            batch.rerouted = True
            self.broker.put_back(woken._replace(priority=batch.priority))
        return []

    def calls_succeeded(self, event: CallsSucceeded) -> list[Effect]:
        """Keep results, unless the calls were taken from the worker in the meantime."""
        worker = self.workers.get(event.worker)
        if worker is None or not worker.done(event.batch, event.first, event.stop):
            return []
        count = event.stop - event.first
        batch = self.batches[event.batch]
        self.tasks[batch.task].learn(count, event.seconds)
        batch.succeeded.append((event.first, event.stop))
        self._put_ready(self.dependencies.succeeded(event.batch, event.first, event.stop))
        effects: list[Effect] = [KeepOutcome(event.batch, event.first)]
        if batch.extras.running:
            effects += self._let_go(event.worker, self._range(event.batch, event.first, event.stop))
        return effects + self._finish(event.batch, count) + self._uncut_behind_last(event.worker, worker)

    def _uncut_behind_last(self, number: int, worker: WorkerLeases) -> list[Effect]:
        effects: list[Effect] = []
        if worker.cut is not None and worker.reached == worker.cut[1] and not worker.paused:
            # It had begun its last call before the cut was made, so it never comes to it.
            worker.uncut()
            effects.append(UncutWorker(number))
        return effects

    def call_failed(self, event: CallFailed) -> list[Effect]:
        """Keep an exception and try again, or keep it as the outcome; unless the call was taken from the worker."""
        worker = self.workers.get(event.worker)
        if worker is None or not worker.done(event.batch, event.index, event.index + 1):
            return []
        batch = self.batches[event.batch]
        task = self.tasks[batch.task]
        task.learn(1, event.seconds)
        effects = self._let_go(event.worker, self._range(event.batch, event.index, event.index + 1))
        retries = batch.retries.get(event.index, 0)
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
            self.broker.put(self._range(event.batch, event.index, event.index + 1))
        return []

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

    def _watch_times(self) -> WatchTimes:
        self._watching_times = True
        return WatchTimes(TIMES_S)

    def _cut(self, number: int, worker: WorkerLeases, start: int) -> list[Effect]:
        if worker.paused:
            # Its one cut keeps calls from running that were taken back; a call of a pause is ended without.
            return [KillWorker(number)] if worker.doomed is not None else []
        if worker.cut_at(start):
            return [CutWorker(number, start, worker.next_position, worker.serial)]
        if worker.settled and worker.doomed is not None and worker.cut is not None:
            # The cut that is there lies early enough: look at the worker again.
            worker.cut_again()
            return [CutWorker(number, *worker.cut, worker.serial)]
        return []

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

    def _resume(self, number: int) -> list[Effect]:
        worker = self.workers[number]
        uncut = not worker.resume() and worker.cut is not None
        if uncut:
            worker.uncut()
        return [ResumeWorker(number, uncut), *self._fit_workers()]

    def _with_dependencies(self, awaited: tuple[int, ...]) -> list[int]:
        """These batches and those whose results their calls take, as far as they are unfinished."""
        found = dict.fromkeys(number for number in awaited if number in self.batches)
        todo = list(found)
        while todo:
            for number in self.batches[todo.pop()].depends_on:
                if number in self.batches and number not in found:
                    found[number] = None
                    todo.append(number)
        return list(found)

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

    def _any_waits(self) -> bool:
        return any(worker.paused or worker.threads for worker in self.workers.values())

    def _lease_awaited_calls(self) -> list[Effect]:
        """Let workers whose call waits run what it waits for, and nothing else: so no wait can become a deadlock.

        The call on top of each worker runs, or waits for one that is queued, which it then runs itself, or for one that
        lies in another worker, and so on: there is always one that runs, unless calls wait for each other in a circle.
        """
        effects: list[Effect] = []
        for number, worker in self.workers.items():
            if not worker.paused or worker.outstanding or worker.resuming or not self.broker.ready:
                continue
            for awaited in self._with_dependencies(worker.awaited[-1]):
                batch = self.batches[awaited]
                task = self.tasks[batch.task]
                count = max(1, int(SHORT_S / task.call_s)) if task.call_s else 1
                calls = self.broker.take_of(awaited, batch.source, batch.priority, count)
                if calls is not None:
                    if batch.extras.running:
                        # Nothing else may run on top of a call that waits.
                        effects += self._lease_keyed(number, calls, in_turn=False)
                    else:
                        effects += self._lease(number, worker, calls)
                    if worker.outstanding:
                        break
        return effects

    def _fit_workers(self) -> list[Effect]:
        """Have as many workers that can run calls as processors are meant to be used, as long as there is work."""
        effects: list[Effect] = []
        able = sum(not worker.is_waiting for worker in self.workers.values()) + self._joining
        total = len(self.workers) + self._joining
        most = self._size + self._spares
        if not able and any(worker.threads for worker in self.workers.values()):
            most = max(most, MAX_WORKERS)  # What the calls wait for in threads can go on nowhere else.
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

    def cut_settled(self, event: CutSettled) -> list[Effect]:
        """What lies behind both the cut and the call that runs will not be run by this worker: queue it again."""
        worker = self.workers.get(event.worker)
        if worker is None or worker.cut is None or event.serial != worker.serial:
            return []
        worker.settled = True
        effects = self._requeue(event.worker, worker.take_since(max(worker.cut[0], event.position + 1)))
        if worker.doomed is not None:
            doomed = worker.doomed[0]
            if event.position != doomed:
                worker.doomed = None  # Its call ended by itself.
            elif worker.cut[0] <= doomed + 1:
                effects.append(KillWorker(event.worker))
        if worker.wanted is not None:
            effects += self._cut(event.worker, worker, worker.wanted)
        return effects

    def cut_reached(self, event: CutReached) -> list[Effect]:
        """The worker stands at its cut with empty hands, so it can be leased calls again."""
        worker = self.workers.get(event.worker)
        if worker is None:
            return []
        if worker.paused:
            # The calls that wait need the cut still; what lay in it was taken back when they paused, and what the worker
            # holds now was leased since.
            return []
        effects = self._requeue(event.worker, worker.take_since(event.position))
        worker.uncut()
        return [*effects, UncutWorker(event.worker)]

    def looked(self, event: Looked) -> list[Effect]:
        """A worker idles while another holds calls that it has not begun: take half of them back."""
        self._looking = False
        effects: list[Effect] = []
        for number, position in event.positions.items():
            worker = self.workers.get(number)
            if worker is not None and worker.threads and worker.cut is None:
                start, stop = worker.unstarted(position)
                if start < stop:
                    effects += self._cut(number, worker, start)
        if effects or self.broker.ready or not self._someone_idles_beside_a_queue():
            return effects
        most, victim = 0, -1
        for number, position in event.positions.items():
            worker = self.workers.get(number)
            if worker is not None and not worker.paused and (count := self._movable(worker, position)) > most:
                most, victim = count, number
        if victim < 0:
            return []
        longest = self.workers[victim]
        return self._cut(victim, longest, self._start_of_last(longest, (most + 1) // 2))

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
            if worker.load_s < least and self._has_room(worker):
                least, number, found = worker.load_s, candidate, worker
        return number, found

    def _has_room(self, worker: WorkerLeases) -> bool:
        if worker.cut is not None or worker.paused or worker.threads:
            return False
        return worker.load_s < self.lease_s or not worker.several

    def _someone_idles_beside_a_queue(self) -> bool:
        workers = self.workers.values()
        return any(worker.is_idle for worker in workers) and any(
            worker.several and self._movable(worker, worker.outstanding[0].position)
            for worker in workers
            if not worker.paused
        )

    def _waiting_threads_hold_calls(self) -> bool:
        return any(worker.threads and worker.several and worker.cut is None for worker in self.workers.values())

    def _movable(self, worker: WorkerLeases, position: int) -> int:
        """How many calls that a worker at `position` has not begun others could run."""
        start, stop = worker.unstarted(position)
        return sum(
            max(0, min(stop, leased.end) - max(start, leased.position))
            for leased in worker.outstanding
            if self._may_run_elsewhere(leased.calls)
        )

    def _start_of_last(self, worker: WorkerLeases, count: int) -> int:
        """The position from which on a worker holds so many calls that others could run."""
        for leased in reversed(worker.outstanding):
            if self._may_run_elsewhere(leased.calls):
                if leased.end - leased.position >= count:
                    return leased.end - count
                count -= leased.end - leased.position
        return worker.outstanding[0].position

    def _may_run_elsewhere(self, calls: Range) -> bool:
        column = self.batches[calls.batch].extras.running
        if not column:
            return True
        return self.keys.may_hold(key_at(column, calls.first), -1, self.tasks[calls.task].options.max_running)

    def _requeue(self, number: int, taken: list[Leased]) -> list[Effect]:
        """Queue calls again that were taken out of a worker's hands."""
        effects: list[Effect] = []
        for leased in taken:
            effects += self._let_go(number, leased.calls) + self._put_back(leased.calls)
        return effects

    def _put_back(self, calls: Range) -> list[Effect]:
        runnable, ended = self.batches[calls.batch].sort_out(calls)
        for one in reversed(runnable):
            self.broker.put_back(one._replace(priority=self.batches[calls.batch].priority))
        return [effect for one, why in ended for effect in self._end(one, why)]

    def _range(self, batch: int, first: int, stop: int) -> Range:
        """Calls of an unfinished batch as they are queued; one call, unless they were never tried."""
        state = self.batches[batch]
        return Range(batch, state.task, state.source, first, stop, state.retries.get(first, 0), state.priority)

    def _end(self, calls: Range, why: Ended, worker: int = 0, root: int = 0) -> list[Effect]:
        ended = EndCalls(calls.batch, calls.task, calls.first, calls.stop, calls.attempt, why, worker, root=root)
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

    def _try_again(self, batch: int, index: int, delay_s: float) -> list[Effect]:
        state = self.batches[batch]
        state.retries[index] = state.retries.get(index, 0) + 1
        if not delay_s:
            self.broker.put(self._range(batch, index, index + 1))
            return []
        state.waiting.add(index)
        return [CallLater(delay_s, RetryDue(batch, index))]

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

    def _finish(self, batch: int, count: int) -> list[Effect]:
        state = self.batches[batch]
        state.unfinished -= count
        if state.unfinished:
            return []
        del self.batches[batch]
        self.dependencies.finished(batch)
        keys = state.extras.registration
        for index in range(len(keys) // KEY_BYTES):
            found = self._registered.get(key_at(keys, index))
            if found is not None and found[0] == batch:
                del self._registered[key_at(keys, index)]
        return [BatchFinished(batch)]
