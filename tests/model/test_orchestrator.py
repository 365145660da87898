"""The orchestrator against a small model of its workers: whatever happens, each call gets exactly one outcome."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pynenc.protocol.messages import DEFAULT_DELAY, NOT_RETRIABLE
from pynenc.supervisor.events import (
    AddWorker,
    BatchArrived,
    BatchFinished,
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
    KillWorker,
    LeaseCalls,
    LookAgain,
    Looked,
    PauseWorker,
    ResumeWorker,
    RetireWorker,
    RetryDue,
    TaskDeclared,
    TaskOptions,
    ThreadsWait,
    TimesChecked,
    UncutWorker,
    WatchTimes,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)
from pynenc.supervisor.orchestrator import Orchestrator

NO_CUT = 1 << 60


class Held(NamedTuple):
    """A call in a worker's hands; `end` is the position behind the last one of its lease."""

    position: int
    batch: int
    index: int  # type: ignore[assignment]
    end: int


class ModelWorker:
    """What a worker process does, a call at a time; its slot, and what it has not shipped."""

    def __init__(self) -> None:
        self.queue: deque[Held] = deque()
        self.waiting: list[tuple[Held, list[Held], int]] = []  # the call, the rest of its lease, what it waits for
        self.position = 0
        self.cut = (NO_CUT, NO_CUT)
        self.dropped_to = 0
        self.unshipped: list[tuple[int, int, bool]] = []  # batch, index, failed
        self.reached: int | None = None
        self.unsettled: list[int] = []  # serials of cuts

    def run_one(self, fails: bool) -> tuple[int, int] | None:
        position, batch, index, _ = self.queue.popleft()
        self.position = position
        if self.cut[0] <= position < self.cut[1]:
            self.reached, self.dropped_to = position, self.cut[1]
            self.queue = deque(one for one in self.queue if one.position >= self.dropped_to)
            return None
        self.unshipped.append((batch, index, fails))
        return batch, index


class Cluster(RuleBasedStateMachine):
    """Clients submit, workers run, ship and die, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.orchestrator = Orchestrator(0.02)
        self.workers: dict[int, ModelWorker] = {}
        self.outcomes: dict[tuple[int, int], str] = {}
        self.runs: dict[tuple[int, int], int] = {}
        self.losses: dict[tuple[int, int], int] = {}
        self.sizes: dict[int, int] = {}
        self.finished: set[int] = set()
        self.last_worker = 0
        self.looking = False
        self.watching = False
        self.dying: set[int] = set()
        self.later: list[RetryDue | CallsWithdrawn] = []
        self.retries: dict[tuple[int, int], int] = {}

        self.joining = 0

    @initialize(
        count=st.integers(1, 3),
        reruns=st.booleans(),
        most=st.integers(0, 2),
        retries=st.integers(0, 2),
        delay=st.sampled_from([0.0, 1.0]),
        timeout=st.sampled_from([0.0, 5.0]),
        expires=st.sampled_from([0.0, 0.0, 5.0]),
    )
    def begin(
        self, count: int, reruns: bool, most: int, retries: int, delay: float, timeout: float, expires: float
    ) -> None:
        self.reruns, self.most, self.most_retries = reruns, most, retries
        self.orchestrator = Orchestrator(0.02, count, spares=1)
        options = TaskOptions(
            most,
            reruns,
            max_retries=retries,
            retry_delay_s=delay,
            timeout_s=timeout,
            retry_on_timeout=retries > 1,
            expires_s=expires,
        )
        self.tell(TaskDeclared(1, options))
        self.tell(TaskDeclared(2, options._replace(priority=1)))
        for _ in range(count):
            self.join()

    def join(self) -> None:
        self.last_worker += 1
        self.workers[self.last_worker] = ModelWorker()
        self.tell(WorkerJoined(self.last_worker))

    def tell(self, event, outcome=None) -> None:  # type: ignore[no-untyped-def]
        for effect in [*self.orchestrator.handle(event), *self.orchestrator.lease_ready_calls()]:
            self.apply(effect, outcome)
        while self.joining:
            self.joining -= 1
            self.join()

    def apply(self, effect: Effect, outcome: tuple[int, int, int, str] | None) -> None:
        match effect:
            case LeaseCalls():
                worker = self.workers[effect.worker]
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
            case KeepAttempt():
                assert outcome is not None
                assert outcome[:2] == (effect.batch, effect.index)
                self.count_retry((effect.batch, effect.index))
            case KillWorker():
                self.dying.add(effect.worker)
            case WatchTimes():
                self.watching = True
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
            case AddWorker():
                self.joining += 1
            case RetireWorker():
                worker = self.workers.pop(effect.worker)
                assert not worker.queue
                assert not worker.waiting

    def count_retry(self, call: tuple[int, int]) -> None:
        self.retries[call] = self.retries.get(call, 0) + 1
        assert self.retries[call] <= self.most_retries

    def positions(self) -> dict[int, int]:
        return {number: worker.position for number, worker in self.workers.items()}

    @rule(count=st.integers(1, 40), source=st.integers(1, 3), task=st.integers(1, 2))
    def submit(self, count: int, source: int, task: int) -> None:
        batch = len(self.sizes) + 1
        self.sizes[batch] = count
        self.tell(BatchArrived(batch, task, count, source))

    @precondition(lambda self: self.later)
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.later) - 1))
        self.later.append(self.later.pop(at))
        self.time_passes_now()

    @precondition(lambda self: self.sizes)
    @rule(data=st.data(), force=st.booleans())
    def cancel(self, data: st.DataObject, force: bool) -> None:
        batch = data.draw(st.sampled_from(sorted(self.sizes)))
        first = data.draw(st.integers(0, self.sizes[batch] - 1))
        stop = data.draw(st.integers(first + 1, self.sizes[batch]))
        self.tell(CallsWithdrawn(batch, first, stop, Ended.CANCELLED, force, self.positions()))

    @precondition(lambda self: self.watching)
    @rule(seconds=st.sampled_from([0.1, 10.0]))
    def check_times(self, seconds: float) -> None:
        self.watching = False
        self.tell(TimesChecked({number: (position, seconds) for number, position in self.positions().items()}))

    @precondition(lambda self: self.dying)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.dying)))
        self.dying.discard(number)
        if number in self.workers:
            self.lose(number)

    @precondition(lambda self: any(worker.queue for worker in self.workers.values()))
    @rule(data=st.data(), calls=st.integers(1, 8), fails=st.booleans())
    def run(self, data: st.DataObject, calls: int, fails: bool) -> None:
        worker = self.workers[data.draw(st.sampled_from([n for n, w in self.workers.items() if w.queue]))]
        for _ in range(min(calls, len(worker.queue))):
            if not worker.queue:
                return
            call = worker.run_one(fails)
            if call is None:
                return
            assert call not in self.outcomes, "a call ran that had ended"
            self.runs[call] = self.runs.get(call, 0) + 1

    @precondition(lambda self: any(worker.queue for worker in self.workers.values()))
    @rule(data=st.data(), children=st.integers(1, 5))
    def wait_for_children(self, data: st.DataObject, children: int) -> None:
        number = data.draw(st.sampled_from([n for n, w in self.workers.items() if w.queue]))
        worker = self.workers[number]
        call = worker.queue[0]
        if worker.cut[0] <= call.position < worker.cut[1]:
            return
        worker.queue.popleft()
        worker.position = call.position
        assert (call.batch, call.index) not in self.outcomes, "a call ran that had ended"
        self.runs[call[1:3]] = self.runs.get(call[1:3], 0) + 1
        rest = [one for one in worker.queue if one.end == call.end]
        self.ship_all(number, 0.001, NOT_RETRIABLE)
        self.submit(children, 3, 1)
        child = len(self.sizes)
        worker.waiting.append((call, rest, child))
        self.tell(WorkerPaused(number, call.position, call.end, (child,)))

    @precondition(lambda self: any(worker.waiting for worker in self.workers.values()))
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([n for n, w in self.workers.items() if w.waiting]))
        self.ship_all(number, 0.001, NOT_RETRIABLE)
        self.tell(WorkerResumed(number, self.workers[number].position))

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

    @precondition(lambda self: self.looking)
    @rule()
    def look(self) -> None:
        self.looking = False
        self.tell(Looked({number: worker.position for number, worker in self.workers.items()}))

    @precondition(lambda self: bool(self.workers))
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.lose(data.draw(st.sampled_from(sorted(self.workers))))

    def lose(self, number: int) -> None:
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
        queued = [
            (ready.batch, index)
            for ready in self.orchestrator.broker.ranges()
            for index in range(ready.first, ready.stop)
        ]
        waiting = [(number, index) for number, batch in self.orchestrator.batches.items() for index in batch.waiting]
        unfinished = {(b, i) for b, size in self.sizes.items() for i in range(size)} - self.outcomes.keys()
        assert sorted([*held, *queued, *waiting]) == sorted(unfinished)
        assert len(queued) == self.orchestrator.broker.ready

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
                if worker.queue:
                    worker.run_one(False)
                elif worker.waiting and worker.waiting[-1][2] in self.finished:
                    self.tell(WorkerResumed(number, worker.position))
                for batch, index, failed in worker.unshipped:
                    kind = "failed" if failed else "succeeded"
                    event = (
                        CallFailed(number, batch, index, 0.1, NOT_RETRIABLE)
                        if failed
                        else CallsSucceeded(number, batch, index, index + 1, 0.1)
                    )
                    self.tell(event, (batch, index, index + 1, kind))
                worker.unshipped.clear()
                if worker.reached is not None:
                    reached, worker.reached = worker.reached, None
                    self.tell(CutReached(number, reached))
            while self.later:
                self.time_passes_now()
            if self.looking:
                self.looking = False
                self.tell(Looked({number: worker.position for number, worker in self.workers.items()}))
        assert len(self.outcomes) == sum(self.sizes.values()), "calls were left"
        if not self.reruns:
            assert all(self.runs.get(call, 0) <= 1 + self.retries.get(call, 0) for call in self.outcomes)

    def time_passes_now(self) -> None:
        event = self.later.pop()
        if isinstance(event, CallsWithdrawn):
            event = event._replace(positions=self.positions())
        self.tell(event)


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
