"""The orchestrator against a small model of its workers: whatever happens, each call gets exactly one outcome."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pynenc.protocol.extras import KEY_BYTES, NONE, Dependency, Extras, dependencies_column, key_at
from pynenc.protocol.messages import DEFAULT_DELAY, NOT_RETRIABLE, invocation_number, split_number
from pynenc.status import InvocationStatus
from pynenc.supervisor.broker import Range
from pynenc.supervisor.events import (
    AddWorker,
    AnswerOffer,
    BatchArrived,
    BatchesShelved,
    BatchFinished,
    BatchOffered,
    BatchRecovered,
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
    FailLost,
    KeepAttempt,
    KeepOutcome,
    KeepTransition,
    KillWorker,
    LeaseCalls,
    LookAgain,
    Looked,
    MeasureWorkers,
    PauseWorker,
    ResumeCall,
    ResumeWorker,
    RetireWorker,
    RetryDue,
    StopCall,
    StopsChecked,
    TaskDeclared,
    TaskOptions,
    ThreadsWait,
    TimesChecked,
    UncutWorker,
    WatchStops,
    WatchTimes,
    WorkerJoined,
    WorkerLimits,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
    WorkersMeasured,
    WorkerUnfit,
)
from pynenc.supervisor.orchestrator import Orchestrator
from tests import examples

NO_CUT = 1 << 60

MIB = 1 << 20
LIMIT_BYTES = 100 * MIB

KEYED = {3: 1, 4: 1, 5: 2, 7: 1, 8: 2}
"""How many calls of a key may run at once, for the tasks that have keys; the second of them does not wait for its turn."""

NOT_WAITING = (4, 8)

CONCURRENT = {6: 2, 7: 3, 8: 3}
"""How many calls run at once in one worker, for the tasks that have workers of their own."""


class Held(NamedTuple):
    """A call in a worker's hands; `end` is the position behind the last one of its lease."""

    position: int
    batch: int
    index: int  # type: ignore[assignment]
    end: int


class ModelWorker:
    """What a worker process does, a call at a time; its slot, and what it has not shipped."""

    def __init__(self, most: int = 0) -> None:
        self.queue: deque[Held] = deque()
        self.waiting: list[tuple[Held, list[Held], int]] = []  # the call, the rest of its lease, what it waits for
        self.position = 0
        self.cut = (NO_CUT, NO_CUT)
        self.dropped_to = 0
        self.unshipped: list[tuple[int, int, bool]] = []  # batch, index, failed
        self.reached: int | None = None
        self.unsettled: list[int] = []  # serials of cuts
        self.resuming = self.is_unfit = False
        self.most = most
        self.served = 0  # calls that it began, but for those that ran on top of others

    def run_one(self, fails: bool) -> tuple[int, int] | None:
        position, batch, index, _ = self.queue.popleft()
        self.position = position
        if self.cut[0] <= position < self.cut[1]:
            self.reached, self.dropped_to = position, self.cut[1]
            self.queue = deque(one for one in self.queue if one.position >= self.dropped_to)
            return None
        self.unshipped.append((batch, index, fails))
        self.begin()
        return batch, index

    def begin(self) -> None:
        self.served += not self.waiting
        assert self.served <= (self.most or self.served), "a worker began more calls than it may"


class ModelConcurrentWorker:
    """What a worker does that runs many calls at once: each by its position, and those that wait, for which batch."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[int, int]] = {}
        self.waiting: dict[int, int] = {}
        self.resuming: set[int] = set()
        self.stopping: set[int] = set()
        self.position = 0

    def running(self) -> list[int]:
        return [at for at in self.held if at <= self.position and at not in self.waiting]


class Cluster(RuleBasedStateMachine):
    """Clients submit, workers run, ship and die, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.orchestrator = Orchestrator(0.02)
        self.workers: dict[int, ModelWorker] = {}
        self.concurrent: dict[int, ModelConcurrentWorker] = {}
        self.outcomes: dict[tuple[int, int], str] = {}
        self.runs: dict[tuple[int, int], int] = {}
        self.losses: dict[tuple[int, int], int] = {}
        self.sizes: dict[int, int] = {}
        self.finished: set[int] = set()
        self.last_worker = 0
        self.looking = False
        self.watching = self.watching_stops = self.measuring = False
        self.now = 0.0
        self.dying: set[int] = set()
        self.later: list[RetryDue | CallsWithdrawn] = []
        self.retries: dict[tuple[int, int], int] = {}

        self.joining: list[bool] = []
        self.steps: dict[tuple[int, int], InvocationStatus] = {}
        self.tasks: dict[int, int] = {}
        self.extras: dict[int, Extras] = {}
        self.offered: set[int] = set()
        self.registered: dict[bytes, tuple[int, int]] = {}

    @initialize(
        count=st.integers(1, 3),
        reruns=st.booleans(),
        most=st.integers(0, 2),
        retries=st.integers(0, 2),
        delay=st.sampled_from([0.0, 1.0]),
        timeout=st.sampled_from([0.0, 5.0]),
        expires=st.sampled_from([0.0, 0.0, 5.0]),
        max_calls=st.sampled_from([0, 0, 1, 3]),
        memory=st.sampled_from([0, LIMIT_BYTES]),
    )
    def begin(
        self,
        count: int,
        reruns: bool,
        most: int,
        retries: int,
        delay: float,
        timeout: float,
        expires: float,
        max_calls: int,
        memory: int,
    ) -> None:
        self.reruns, self.most, self.most_retries, self.size = reruns, most, retries, count
        self.limits = WorkerLimits(memory, 0.1, max_calls)
        self.orchestrator = Orchestrator(0.02, count, 1, self.limits)
        options = TaskOptions(
            most,
            reruns,
            max_retries=retries,
            retry_delay_s=delay,
            timeout_s=timeout,
            retry_on_timeout=retries > 1,
            retry_on_memory=retries > 1,
            expires_s=expires,
        )
        self.options = {1: options, 2: options._replace(priority=1), 6: options._replace(concurrency=CONCURRENT[6])}
        for task, running in KEYED.items():
            keyed = options._replace(max_running=running, reroute=task not in NOT_WAITING)
            self.options[task] = keyed._replace(concurrency=CONCURRENT.get(task, 0))
        self.start()

    def start(self) -> None:
        for task, options in self.options.items():
            self.tell(TaskDeclared(task, options))
        for _ in range(self.size):
            self.join()

    @precondition(lambda self: any(self.sizes.values()))
    @rule()
    def supervisor_dies(self) -> None:
        """Another one takes over what is not finished; workers and all that waited are gone."""
        self.orchestrator = Orchestrator(0.02, self.size, 1, self.limits)
        for gone in (self.workers, self.concurrent, self.dying, self.later, self.joining, self.steps):
            gone.clear()
        self.looking = self.watching = self.measuring = False
        self.registered = {
            key_at(self.extras[batch].registration, index): (batch, index)
            for batch in sorted(self.offered - self.finished)
            for index in range(self.sizes[batch])
            if (batch, index) not in self.outcomes
        }
        self.start()
        for batch in sorted(self.sizes.keys() - self.finished):
            indices = range(self.sizes[batch])
            if not self.reruns:
                for index in indices:
                    self.outcomes.setdefault((batch, index), "lost")
                self.finished.add(batch)
                continue
            ended = {index: self.outcomes[batch, index] for index in indices if (batch, index) in self.outcomes}
            succeeded = [(index, index + 1) for index, how in ended.items() if how == "succeeded"]
            failed = [(index, index + 1) for index, how in ended.items() if how != "succeeded"]
            retries = {index: self.retries[batch, index] for index in indices if (batch, index) in self.retries}
            settled = {}
            for on in self.extras[batch].depended_on():
                if on.batch in self.finished:
                    taken = [(on.batch, at) for at in range(on.first, on.stop)]
                    bad = next((call for call in taken if self.outcomes[call] != "succeeded"), None)
                    settled[on[1:]] = invocation_number(*bad) if bad else 0
            arrived = BatchArrived(batch, self.tasks[batch], len(indices), 1, self.extras[batch], settled)
            self.tell(BatchRecovered(arrived, succeeded, failed, retries))

    def join(self, concurrent: bool = False) -> None:
        self.last_worker += 1
        if concurrent:
            self.concurrent[self.last_worker] = ModelConcurrentWorker()
            lasting = [one for one in self.orchestrator.concurrent.values() if self.orchestrator._left(one) > 0]
            assert len(lasting) < self.size, "there are enough workers that take calls"
        else:
            self.workers[self.last_worker] = ModelWorker(self.limits.max_calls)
        self.tell(WorkerJoined(self.last_worker, concurrent))

    def tell(self, event, outcome=None) -> None:  # type: ignore[no-untyped-def]
        for effect in [*self.orchestrator.handle(event), *self.orchestrator.lease_ready_calls()]:
            self.apply(effect, outcome)
        while self.joining:
            self.join(self.joining.pop())

    def apply(self, effect: Effect, outcome: tuple[int, int, int, str] | None) -> None:
        match effect:
            case LeaseCalls() if effect.worker in self.concurrent:
                self.lease_concurrent(effect)
            case ResumeCall():
                self.go_on_concurrent(effect.worker, effect.position)
            case StopCall():
                self.concurrent[effect.worker].stopping.add(effect.position)
            case LeaseCalls():
                worker = self.workers[effect.worker]
                assert not worker.is_unfit, "it has said that it runs no more calls"
                assert not worker.resuming, "a call that waits for its key is under nothing else"
                assert worker.cut[0] == NO_CUT or not worker.unsettled or effect.position >= worker.cut[1]
                for offset in range(effect.stop - effect.first):
                    call = (effect.batch, effect.first + offset)
                    assert call not in self.outcomes, "a call with an outcome was leased"
                    end = effect.position + effect.stop - effect.first
                    worker.queue.append(Held(effect.position + offset, *call, end))
            case KeepOutcome():
                assert outcome is not None
                batch, first, stop, kind = outcome
                assert (effect.batch, effect.first) == (batch, first)
                for index in range(first, stop):
                    assert (batch, index) not in self.outcomes, "two outcomes for one call"
                    self.outcomes[batch, index] = kind
            case FailLost():
                assert (effect.batch, effect.index) not in self.outcomes
                self.outcomes[effect.batch, effect.index] = "lost"
                assert not self.reruns or effect.losses > self.most
            case EndCalls():
                for index in range(effect.first, effect.stop):
                    assert (effect.batch, index) not in self.outcomes, "two outcomes for one call"
                    if effect.again:
                        self.count_retry((effect.batch, index))
                    else:
                        self.outcomes[effect.batch, index] = effect.why.value
                        if effect.why is Ended.MEMORY:
                            assert self.limits.memory_bytes
                        if effect.why is Ended.SHORT:
                            assert self.reruns, "a call was chosen that must not run again"
                        if effect.why is Ended.DEPENDENCY:
                            root = split_number(effect.root)
                            assert root == (effect.batch, index) or self.outcomes[root] != "succeeded"
                            assert any(
                                self.outcomes.get(on, "succeeded") != "succeeded"
                                for on in self.taken(effect.batch, index)
                            )
                        if effect.why is Ended.CONTROLLED:
                            assert self.tasks[effect.batch] in NOT_WAITING
            case AnswerOffer():
                self.check_answer(effect)
            case KeepAttempt():
                assert outcome is not None
                assert outcome[:2] == (effect.batch, effect.index)
                self.count_retry((effect.batch, effect.index))
            case KeepTransition():
                self.check_transition(effect)
            case KillWorker():
                self.dying.add(effect.worker)
            case WatchTimes():
                self.watching = True
            case MeasureWorkers():
                self.measuring = True
            case CallLater():
                self.later.append(effect.event)
            case BatchFinished():
                assert effect.batch not in self.finished
                self.finished.add(effect.batch)
            case CutWorker():
                worker = self.workers[effect.worker]
                worker.cut = (effect.start, effect.stop)
                worker.unsettled.append(effect.serial)
            case UncutWorker():
                self.workers[effect.worker].cut = (NO_CUT, NO_CUT)
            case LookAgain():
                self.looking = True
            case WatchStops():
                self.watching_stops = True
            case PauseWorker():
                worker = self.workers[effect.worker]
                worker.cut = effect.cut or (NO_CUT, NO_CUT)
                worker.queue.clear()
            case ResumeWorker():
                worker = self.workers[effect.worker]
                if effect.uncut:
                    worker.cut = (NO_CUT, NO_CUT)
                call, rest, _ = worker.waiting.pop()
                worker.queue = deque(rest)
                worker.position = call.position
                worker.unshipped.append((call.batch, call.index, False))
                worker.resuming = False
                self.check_may_run(effect.worker, call[1:3])
            case AddWorker():
                self.joining.append(effect.concurrent)
            case RetireWorker() if effect.worker in self.concurrent:
                assert not self.concurrent.pop(effect.worker).held
            case RetireWorker():
                worker = self.workers.pop(effect.worker)
                assert not worker.queue
                assert not worker.waiting

    def check_transition(self, step: KeepTransition) -> None:
        for index in range(step.first, step.stop):
            call = (step.batch, index)
            assert call not in self.outcomes, "something became of a call that had ended"
            before = self.steps.get(call)
            if step.status is InvocationStatus.RESUMED:
                assert before is InvocationStatus.PAUSED
            self.steps[call] = step.status

    def batches(self) -> st.SearchStrategy[int]:
        return st.sampled_from([batch for batch, size in self.sizes.items() if size])

    def count_retry(self, call: tuple[int, int]) -> None:
        self.retries[call] = self.retries.get(call, 0) + 1
        assert self.retries[call] <= self.most_retries

    def positions(self) -> dict[int, int]:
        return {number: worker.position for number, worker in (*self.workers.items(), *self.concurrent.items())}

    def taken(self, batch: int, index: int) -> list[tuple[int, int]]:
        """The calls whose results a call takes."""
        on = [one for one in self.extras[batch].depended_on() if one.index == index]
        return [(one.batch, at) for one in on for at in range(one.first, one.stop)]

    def key(self, call: tuple[int, int]) -> bytes:
        return key_at(self.extras[call[0]].running, call[1])

    def check_may_run(self, number: int, call: tuple[int, int]) -> None:
        """A call runs on a worker; those that others have begun and not shipped may run beside it."""
        assert call not in self.outcomes, "a call ran that had ended"
        assert all(self.outcomes.get(on) == "succeeded" for on in self.taken(*call)), "a call ran without its arguments"
        if not self.key(call):
            return
        beside = [
            worker.unshipped[-1][:2]
            for other, worker in self.workers.items()
            if other != number and worker.unshipped and self.key(worker.unshipped[-1][:2]) == self.key(call)
        ]
        beside += [
            worker.held[at]
            for worker in self.concurrent.values()
            for at in worker.running()
            if worker.held[at] != call and self.key(worker.held[at]) == self.key(call)
        ]
        assert len(beside) < KEYED[self.tasks[call[0]]], f"{call} ran beside {beside}"

    def add(self, task: int, count: int, extras: Extras = NONE) -> int:
        batch = len(self.sizes) + 1
        self.sizes[batch], self.tasks[batch], self.extras[batch] = count, task, extras
        return batch

    @rule(
        count=st.integers(1, 40),
        source=st.integers(1, 3),
        task=st.integers(1, 8),
        keys=st.lists(st.sampled_from("aaaabc"), min_size=1, max_size=5),
    )
    def submit(self, count: int, source: int, task: int, keys: list[str]) -> None:
        extras = NONE
        if task in KEYED:
            column = [f"{task}{key}".encode().ljust(KEY_BYTES) for key in keys]
            extras = Extras(running=b"".join(column[i % len(keys)] for i in range(count)) if keys[1:] else column[0])
        batch = self.add(task, count, extras)
        self.tell(BatchArrived(batch, task, count, source, extras))

    @precondition(lambda self: any(self.sizes.values()))
    @rule(data=st.data(), count=st.integers(1, 4), task=st.sampled_from([1, 3, 6, 7]))
    def submit_dependents(self, data: st.DataObject, count: int, task: int) -> None:
        found, settled = [], {}
        for _ in range(data.draw(st.integers(1, 6))):
            batch = data.draw(self.batches())
            first = data.draw(st.integers(0, self.sizes[batch] - 1))
            stop = data.draw(st.integers(first + 1, min(first + 5, self.sizes[batch])))
            found.append(Dependency(data.draw(st.integers(0, count - 1)), batch, first, stop))
            if batch in self.finished:
                bad = [at for at in range(first, stop) if self.outcomes[batch, at] != "succeeded"]
                settled[batch, first, stop] = invocation_number(batch, bad[0]) if bad else 0
        running = f"{task}a".encode().ljust(KEY_BYTES) if task in KEYED else b""
        extras = Extras(running=running, dependencies=dependencies_column(found))
        number = self.add(task, count, extras)
        self.tell(BatchArrived(number, task, count, 1, extras, settled))

    @rule(keys=st.lists(st.sampled_from("defg"), min_size=1, max_size=4, unique=True), arguments=st.sampled_from("xy"))
    def offer(self, keys: list[str], arguments: str) -> None:
        count = len(keys)
        column = b"".join(key.encode().ljust(KEY_BYTES) for key in keys)
        extras = Extras(registration=column, arguments=arguments.encode().ljust(KEY_BYTES) * count)
        batch = self.add(1, count, extras)
        self.tell(BatchOffered(BatchArrived(batch, 1, count, 2, extras), self.positions()))

    @precondition(lambda self: self.sizes.keys() - self.finished)
    @rule(data=st.data())
    def shelve(self, data: st.DataObject) -> None:
        """A client is interrupted: some batches stop, without that calls fail because of others that stop as well."""
        unfinished = sorted(self.sizes.keys() - self.finished)
        batches = data.draw(st.sets(st.sampled_from(unfinished), min_size=1))
        before = set(self.outcomes)
        self.tell(BatchesShelved(tuple(sorted(batches)), self.positions()))
        at_once = {call: how for call, how in self.outcomes.items() if call not in before and call[0] in batches}
        assert set(at_once.values()) <= {"shelved"}
        assert not any(ready.batch in batches for ready in self.queued())
        running = [
            leased.calls.batch
            for number, worker in self.orchestrator.workers.items()
            for leased in worker.outstanding
            if leased.position <= self.workers[number].position < leased.end and not worker.is_dying and not worker.cut
        ]
        assert not batches.intersection(running), "nobody would stop it"

    def check_answer(self, answer: AnswerOffer) -> None:
        extras = self.extras[answer.batch]
        registered = {
            key: call for key, call in self.registered.items() if call not in self.outcomes and not self.has_begun(call)
        }
        keys = [key_at(extras.registration, index) for index in range(self.sizes[answer.batch])]
        assert {one.index: (one.batch, one.there) for one in answer.reused} == {
            at: registered[key] for at, key in enumerate(keys) if key in registered
        }
        for one in answer.reused:
            same = self.extras[one.batch].arguments[:KEY_BYTES] == extras.arguments[:KEY_BYTES]
            assert one.differs != same
        if answer.reused:
            self.sizes[answer.batch] = 0
            self.finished.add(answer.batch)
        else:
            self.offered.add(answer.batch)
            self.registered |= {key: (answer.batch, at) for at, key in enumerate(keys)}

    def has_begun(self, call: tuple[int, int]) -> bool:
        """Whether a worker has come to a call; it may have left it out because of a cut."""
        if any(call in worker.held.values() for worker in self.concurrent.values()):
            return True
        return any(
            leased.calls.batch == call[0]
            and leased.calls.first <= call[1] < leased.calls.stop
            and leased.position + call[1] - leased.calls.first <= self.workers[number].position
            for number, worker in self.orchestrator.workers.items()
            for leased in [*worker.outstanding, *(waiting for waiting, _ in worker.paused)]
        )

    @precondition(lambda self: self.later)
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.later) - 1))
        self.later.append(self.later.pop(at))
        self.time_passes_now()

    @precondition(lambda self: any(self.sizes.values()))
    @rule(data=st.data(), force=st.booleans())
    def cancel(self, data: st.DataObject, force: bool) -> None:
        batch = data.draw(self.batches())
        first = data.draw(st.integers(0, self.sizes[batch] - 1))
        stop = data.draw(st.integers(first + 1, self.sizes[batch]))
        self.tell(CallsWithdrawn(batch, first, stop, Ended.CANCELLED, force, self.positions()))

    @precondition(lambda self: self.watching)
    @rule(seconds=st.sampled_from([0.1, 10.0]))
    def check_times(self, seconds: float) -> None:
        self.watching = False
        self.tell(TimesChecked({number: (at, seconds) for number, at in self.positions().items()}, {}, seconds))

    @precondition(lambda self: self.measuring)
    @rule(data=st.data(), short=st.booleans(), passed=st.sampled_from([0.01, 1.0, 10.0]))
    def measure(self, data: st.DataObject, short: bool, passed: float) -> None:
        sizes = st.sampled_from([10 * MIB, 20 * MIB, 90 * MIB, 120 * MIB])
        used = {number: data.draw(sizes) for number in self.positions()}
        aged = [number for number in used if data.draw(st.integers(0, 9)) == 0]
        self.measured(used, aged, -1 if short else 1 << 40, passed)

    def measured(self, used: dict[int, int], aged: list[int], spare_bytes: int, passed: float) -> None:
        self.measuring = False
        self.now += passed
        running = {number: (at, float(number)) for number, at in self.positions().items()}
        self.tell(WorkersMeasured(used, running, frozenset(aged), spare_bytes, self.now))

    @precondition(lambda self: self.dying)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.dying)))
        self.dying.discard(number)
        if number in self.workers or number in self.concurrent:
            self.lose(number)

    @precondition(lambda self: any(w.queue and not w.resuming for w in self.workers.values()))
    @rule(data=st.data(), calls=st.integers(1, 8), fails=st.booleans())
    def run(self, data: st.DataObject, calls: int, fails: bool) -> None:
        number = data.draw(st.sampled_from([n for n, w in self.workers.items() if w.queue and not w.resuming]))
        worker = self.workers[number]
        for _ in range(min(calls, len(worker.queue))):
            if not worker.queue:
                return
            call = worker.run_one(fails)
            if call is None:
                return
            self.check_may_run(number, call)
            self.runs[call] = self.runs.get(call, 0) + 1

    @precondition(lambda self: any(w.queue and not w.resuming for w in self.workers.values()))
    @rule(data=st.data(), children=st.integers(1, 5), task=st.sampled_from([1, 1, 3, 5, 6, 7]))
    def wait_for_children(self, data: st.DataObject, children: int, task: int) -> None:
        number = data.draw(st.sampled_from([n for n, w in self.workers.items() if w.queue and not w.resuming]))
        worker = self.workers[number]
        call = worker.queue[0]
        if worker.cut[0] <= call.position < worker.cut[1]:
            return
        worker.queue.popleft()
        worker.position = call.position
        worker.begin()
        self.check_may_run(number, call[1:3])
        self.runs[call[1:3]] = self.runs.get(call[1:3], 0) + 1
        rest = [one for one in worker.queue if one.end == call.end]
        self.ship_all(number, 0.001, NOT_RETRIABLE)
        self.submit(children, 3, task, ["a"])
        child = len(self.sizes)
        worker.waiting.append((call, rest, child))
        self.tell(WorkerPaused(number, call.position, call.end, 0.0, (child,)))

    @precondition(lambda self: any(w.waiting and not w.resuming for w in self.workers.values()))
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([n for n, w in self.workers.items() if w.waiting and not w.resuming]))
        self.ship_all(number, 0.001, NOT_RETRIABLE)
        self.workers[number].resuming = True
        self.tell(WorkerResumed(number, self.workers[number].position))

    # Workers that run many calls at once.

    def lease_concurrent(self, effect: LeaseCalls) -> None:
        worker = self.concurrent[effect.worker]
        for offset in range(effect.stop - effect.first):
            call = (effect.batch, effect.first + offset)
            assert call not in self.outcomes, "a call with an outcome was leased"
            if call[1] in self.orchestrator.batches[call[0]].isolated and call[0] not in self.extras_with_keys():
                assert worker.held.keys() <= worker.waiting.keys(), "a call that is to run alone has company"
            worker.held[effect.position + offset] = call
        same = [
            at for at, call in worker.held.items() if at not in worker.waiting and self.tasks[call[0]] == effect.task
        ]
        assert len(same) <= CONCURRENT[effect.task]

    def extras_with_keys(self) -> set[int]:
        return {batch for batch, extras in self.extras.items() if extras.running}

    def concurrent_with(self, what: str) -> list[int]:
        """The workers that have calls that were leased, that run, or that wait and could go on."""
        found = {
            "leased": lambda w: any(at > w.position for at in w.held),
            "running": lambda w: bool(w.running()),
            "waiting": lambda w: w.waiting.keys() - w.resuming,
        }[what]
        return [number for number, worker in self.concurrent.items() if found(worker)]

    @precondition(lambda self: self.concurrent_with("leased"))
    @rule(data=st.data())
    def begin_concurrent(self, data: st.DataObject) -> None:
        self.begin_all(data.draw(st.sampled_from(self.concurrent_with("leased"))))

    def begin_all(self, number: int) -> None:
        worker = self.concurrent[number]
        for at in sorted(worker.held):
            if at > worker.position:
                worker.position = at
                assert at <= (self.limits.max_calls or at), "a worker began more calls than it may"
                self.check_may_run(number, worker.held[at])
                self.runs[worker.held[at]] = self.runs.get(worker.held[at], 0) + 1

    @precondition(lambda self: self.concurrent_with("running"))
    @rule(data=st.data(), fails=st.booleans(), retry_s=st.sampled_from([NOT_RETRIABLE, DEFAULT_DELAY, 2.0]))
    def end_concurrent(self, data: st.DataObject, fails: bool, retry_s: float) -> None:
        number = data.draw(st.sampled_from(self.concurrent_with("running")))
        worker = self.concurrent[number]
        self.end_one(number, data.draw(st.sampled_from(sorted(worker.running()))), fails, retry_s)

    @precondition(lambda self: self.concurrent_with("waiting"))
    @rule(data=st.data())
    def end_while_waiting(self, data: st.DataObject) -> None:
        """A call ends although something that it has begun waits still."""
        number = data.draw(st.sampled_from(self.concurrent_with("waiting")))
        self.end_one(number, data.draw(st.sampled_from(sorted(self.concurrent[number].waiting))), False, 0.0)

    def end_one(self, number: int, at: int, fails: bool, retry_s: float) -> None:
        worker = self.concurrent[number]
        batch, index = worker.held.pop(at)
        for known in (worker.stopping, worker.resuming):
            known.discard(at)
        worker.waiting.pop(at, None)
        if fails:
            self.tell(CallFailed(number, batch, index, 0.1, retry_s), (batch, index, index + 1, "failed"))
        else:
            self.tell(CallsSucceeded(number, batch, index, index + 1, 0.1), (batch, index, index + 1, "succeeded"))

    @precondition(lambda self: self.concurrent_with("running"))
    @rule(data=st.data(), children=st.integers(1, 5), task=st.sampled_from([1, 3, 6, 7]))
    def wait_in_concurrent(self, data: st.DataObject, children: int, task: int) -> None:
        number = data.draw(st.sampled_from(self.concurrent_with("running")))
        worker = self.concurrent[number]
        at = data.draw(st.sampled_from(sorted(worker.running())))
        self.submit(children, 3, task, ["a"])
        if worker.held.get(at) is not None:
            worker.waiting[at] = len(self.sizes)
            self.tell(WorkerPaused(number, at, at + 1, 0.0, (len(self.sizes),)))

    @precondition(lambda self: self.concurrent_with("waiting"))
    @rule(data=st.data(), waits_again=st.booleans())
    def ask_to_go_on(self, data: st.DataObject, waits_again: bool) -> None:
        number = data.draw(st.sampled_from(self.concurrent_with("waiting")))
        worker = self.concurrent[number]
        at = data.draw(st.sampled_from(sorted(worker.waiting.keys() - worker.resuming)))
        child = worker.waiting[at]
        worker.resuming.add(at)
        self.tell(WorkerResumed(number, at))
        if waits_again and number in self.concurrent and at in worker.held:
            worker.waiting[at] = child
            worker.resuming.discard(at)
            self.tell(WorkerPaused(number, at, at + 1, 0.0, (child,)))

    def go_on_concurrent(self, number: int, at: int) -> None:
        worker = self.concurrent[number]
        assert at in worker.resuming
        worker.resuming.discard(at)
        del worker.waiting[at]
        self.check_may_run(number, worker.held[at])

    @precondition(lambda self: self.watching and self.concurrent_with("running"))
    @rule(data=st.data())
    def is_overdue(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.concurrent_with("running")))
        at = data.draw(st.sampled_from(sorted(self.concurrent[number].running())))
        self.watching = False
        self.tell(TimesChecked({}, {number: at}, 0.0))

    @precondition(lambda self: bool(self.workers))
    @rule(data=st.data(), count=st.integers(0, 2))
    def threads_wait(self, data: st.DataObject, count: int) -> None:
        busy = [number for number, worker in self.orchestrator.workers.items() if worker.outstanding]
        if busy:
            self.tell(ThreadsWait(data.draw(st.sampled_from(busy)), count))

    @precondition(lambda self: any(w.unshipped or w.reached is not None for w in self.workers.values()))
    @rule(
        data=st.data(),
        call_s=st.sampled_from([1e-6, 1e-3, 0.1]),
        retry_s=st.sampled_from([NOT_RETRIABLE, DEFAULT_DELAY, 0.0, 2.0]),
    )
    def ship(self, data: st.DataObject, call_s: float, retry_s: float) -> None:
        number = data.draw(
            st.sampled_from([n for n, w in self.workers.items() if w.unshipped or w.reached is not None])
        )
        self.ship_all(number, call_s, retry_s)

    def ship_all(self, number: int, call_s: float, retry_s: float) -> None:
        worker = self.workers[number]
        shipped, worker.unshipped = worker.unshipped, []
        reached, worker.reached = worker.reached, None
        while shipped:
            batch, first, failed = shipped.pop(0)
            stop = first + 1
            if failed:
                self.tell(CallFailed(number, batch, first, call_s, retry_s), (batch, first, stop, "failed"))
                continue
            while shipped and shipped[0] == (batch, stop, False):
                shipped.pop(0)
                stop += 1
            # A stretch lies within one lease, as in a worker.
            for at in range(first, stop):
                self.tell(CallsSucceeded(number, batch, at, at + 1, call_s), (batch, at, at + 1, "succeeded"))
        if reached is not None:
            self.tell(CutReached(number, reached))

    @precondition(lambda self: any(worker.unsettled for worker in self.workers.values()))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([n for n, w in self.workers.items() if w.unsettled]))
        serial = self.workers[number].unsettled.pop(0)
        self.tell(CutSettled(number, self.workers[number].position, serial))

    @precondition(lambda self: any(w.queue and not w.resuming for w in self.workers.values()))
    @rule(data=st.data())
    def find_other_modules(self, data: st.DataObject) -> None:
        """A worker comes to calls that mean other modules than it has imported: a fresh one takes its place."""
        number = data.draw(st.sampled_from([n for n, w in self.workers.items() if w.queue and not w.resuming]))
        worker = self.workers[number]
        position, waits = worker.queue[0].position, bool(worker.waiting)
        self.ship_all(number, 0.001, NOT_RETRIABLE)
        worker.queue.clear()
        worker.is_unfit = number not in self.dying
        self.tell(WorkerUnfit(number, position))
        assert waits or number not in self.workers or number in self.dying

    @precondition(lambda self: self.concurrent_with("leased"))
    @rule(data=st.data())
    def find_other_modules_in_concurrent(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.concurrent_with("leased")))
        worker = self.concurrent[number]
        position = min(at for at in worker.held if at > worker.position)
        unless_killed = self.orchestrator.concurrent[number].is_dying or self.orchestrator.concurrent[number].doomed
        if not unless_killed:
            worker.held = {at: call for at, call in worker.held.items() if at < position}
            worker.stopping -= {at for at in worker.stopping if at >= position}
        self.tell(WorkerUnfit(number, position))

    @precondition(lambda self: self.looking)
    @rule()
    def look(self) -> None:
        self.looking = False
        self.tell(Looked({number: worker.position for number, worker in self.workers.items()}))

    @precondition(lambda self: self.watching_stops)
    @rule(data=st.data())
    def look_for_stops(self, data: st.DataObject) -> None:
        self.watching_stops = False
        positions = {number: worker.position for number, worker in self.workers.items()}
        suspects = self.orchestrator.suspects(positions)
        stopped = data.draw(st.sets(st.sampled_from(suspects))) if suspects else set()
        self.tell(StopsChecked(positions, frozenset(stopped)))

    @precondition(lambda self: bool(self.workers))
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.lose(data.draw(st.sampled_from(sorted(self.positions()))))

    def lose(self, number: int) -> None:
        if number in self.concurrent:
            self.tell(WorkerLost(number, self.concurrent.pop(number).position))
            return
        position = self.workers.pop(number).position
        self.tell(WorkerLost(number, position))
        self.join()

    @invariant()
    def nothing_is_finished_early_or_late(self) -> None:
        for batch, size in self.sizes.items():
            done = sum((batch, index) in self.outcomes for index in range(size))
            assert (done == size) == (batch in self.finished)

    @invariant()
    def unfinished_calls_are_queued_or_in_hands(self) -> None:
        held = [
            (leased.calls.batch, index)
            for worker in self.orchestrator.workers.values()
            for leased in [*worker.outstanding, *(waiting for waiting, _ in worker.paused)]
            for index in range(leased.calls.first, leased.calls.stop)
        ]
        held += [
            (leased.calls.batch, leased.calls.first)
            for worker in self.orchestrator.concurrent.values()
            for leased in worker.held.values()
        ]
        queued = [(ready.batch, index) for ready in self.queued() for index in range(ready.first, ready.stop)]
        waiting = [(number, index) for number, batch in self.orchestrator.batches.items() for index in batch.waiting]
        unfinished = {(b, i) for b, size in self.sizes.items() for i in range(size)} - self.outcomes.keys()
        blocked = [
            (calls.batch, index)
            for calls in self.orchestrator.keys.ranges()
            for index in range(calls.first, calls.stop)
        ]
        depending = list(self.orchestrator.dependencies.waiting)
        assert sorted([*held, *queued, *waiting, *blocked, *depending]) == sorted(unfinished)
        assert len(queued) == self.orchestrator.ready

    def queued(self) -> list[Range]:
        orchestrator = self.orchestrator
        brokers = (orchestrator.broker, orchestrator.isolated, *orchestrator.brokers.values())
        return [ready for broker in brokers for ready in broker.ranges()]

    @invariant()
    def keys_are_held_by_those_who_have_calls_of_them(self) -> None:
        holders: dict[bytes, dict[int, int]] = {}
        for number, worker in self.orchestrator.workers.items():
            for leased in worker.outstanding:
                for index in range(leased.calls.first, leased.calls.stop):
                    if key := self.key((leased.calls.batch, index)):
                        held = holders.setdefault(key, {})
                        held[number] = held.get(number, 0) + 1
        for concurrent in self.orchestrator.concurrent.values():
            for at, leased in concurrent.held.items():
                call = (leased.calls.batch, leased.calls.first)
                if at not in concurrent.waiting and (key := self.key(call)):
                    holders.setdefault(key, {})[-invocation_number(*call)] = 1
        keys = self.orchestrator.keys
        assert keys.holders == holders
        queued = {self.key((ready.batch, index)) for ready in self.queued() for index in range(ready.first, ready.stop)}
        assert keys.blocked.keys() <= holders.keys() | queued | keys.resuming.keys(), "nothing would wake them"

    @invariant()
    def workers_that_may_run_nothing_are_looked_at_again(self) -> None:
        held = [one for one in self.orchestrator.workers.values() if one.outstanding or one.paused]
        held += [one for one in self.orchestrator.concurrent.values() if one.held]  # type: ignore[misc]
        kept = [one for one in self.orchestrator._all_workers().values() if one.wear.is_full or one.wear.is_old]
        assert self.measuring or not (held or kept)

    @invariant()
    def what_a_worker_waits_for_does_not_stay_behind_another_call(self) -> None:
        workers = self.orchestrator.workers.values()
        idle = [one for one in workers if one.paused and not (one.outstanding or one.resuming or one.is_dying)]
        awaited = {batch for worker in idle for batch in worker.awaited[-1]}
        behind = [
            leased
            for worker in workers
            if not worker.paused and not worker.is_dying
            for leased in worker.outstanding
            if leased.calls.batch in awaited and self.tasks[leased.calls.batch] not in KEYED
            if leased.end - 1 > worker.outstanding[0].position
            if worker.cut is None or max(leased.position, worker.outstanding[0].position + 1) < worker.cut[0]
        ]
        assert self.looking or not behind

    def teardown(self) -> None:
        """Let everything run to its end: no call may be left, and nobody may wait for ever."""
        for number in list(self.workers):
            self.tell(ThreadsWait(number, 0))
        for _ in range(10_000):
            if len(self.outcomes) == sum(self.sizes.values()):
                break
            for number, worker in list(self.workers.items()):
                if number not in self.workers:
                    continue  # It was retired.
                while worker.unsettled:
                    self.tell(CutSettled(number, worker.position, worker.unsettled.pop(0)))
                if number in self.dying:
                    self.dying.discard(number)
                    self.lose(number)
                    continue
                if worker.queue and not worker.resuming:
                    worker.run_one(False)
                elif worker.waiting and worker.waiting[-1][2] in self.finished and not worker.resuming:
                    worker.resuming = True
                    self.tell(WorkerResumed(number, worker.position))
                shipped, worker.unshipped = worker.unshipped, []
                for batch, index, failed in shipped:
                    kind = "failed" if failed else "succeeded"
                    event = (
                        CallFailed(number, batch, index, 0.1, NOT_RETRIABLE)
                        if failed
                        else CallsSucceeded(number, batch, index, index + 1, 0.1)
                    )
                    self.tell(event, (batch, index, index + 1, kind))
                if worker.reached is not None:
                    reached, worker.reached = worker.reached, None
                    self.tell(CutReached(number, reached))
            for number, concurrent in list(self.concurrent.items()):
                if number in self.dying:
                    self.dying.discard(number)
                    self.lose(number)
                    continue
                self.begin_all(number)
                for at in concurrent.running():
                    self.end_one(number, at, False, 0.0)
                for at, child in list(concurrent.waiting.items()):
                    if child in self.finished and at not in concurrent.resuming:
                        concurrent.resuming.add(at)
                        self.tell(WorkerResumed(number, at))
            while self.later:
                self.time_passes_now()
            if self.looking:
                self.looking = False
                self.tell(Looked({number: worker.position for number, worker in self.workers.items()}))
            if self.measuring:
                self.measured(dict.fromkeys(self.positions(), 10 * MIB), [], 1 << 40, 0.1)
        assert len(self.outcomes) == sum(self.sizes.values()), "calls were left"
        if not self.reruns:
            assert all(self.runs.get(call, 0) <= 1 + self.retries.get(call, 0) for call in self.outcomes)

    def time_passes_now(self) -> None:
        event = self.later.pop()
        if isinstance(event, CallsWithdrawn):
            event = event._replace(positions=self.positions())
        self.tell(event)


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=examples(300), stateful_step_count=40, report_multiple_bugs=False)
