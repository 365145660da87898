"""The broker's queues and the lines for keys against naive ones, and how the work grows with what is queued."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pynenc.protocol.extras import KEY_BYTES, NONE, Extras
from pynenc.supervisor import broker as broker_module
from pynenc.supervisor.broker import Broker, Order, Range
from pynenc.supervisor.events import BatchArrived, BatchesShelved, CallsWithdrawn, Ended, TaskDeclared, TaskOptions
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.orchestrator.concurrency import KeyHolders
from tests import examples

ALL = 1 << 20
BOUNDS = st.tuples(st.integers(0, 9), st.integers(1, 10)).filter(lambda bounds: bounds[0] < bounds[1]) | st.just(
    (0, ALL)
)


def taken_out(queue: list[Range], batch: int, first: int, stop: int) -> tuple[list[Range], list[Range]]:
    """What is left of a queue without some calls of a batch, and these."""
    left, removed = [], []
    for one in queue:
        outside, inside = one.split(first, stop) if one.batch == batch else ([one], None)
        left += outside
        removed += [inside] if inside else []
    return left, removed


class NaiveBroker:
    """A list for each source, in the order of their turns."""

    def __init__(self) -> None:
        self.queues: list[tuple[int, int, list[Range]]] = []

    def queue(self, priority: int, source: int) -> list[Range]:
        found = next((queue for *whose, queue in self.queues if whose == [priority, source]), None)
        if found is None:
            found = []
            self.queues.append((priority, source, found))
        return found

    def put(self, ready: Range) -> None:
        self.queue(ready.priority, ready.source).append(ready)

    def put_back(self, ready: Range) -> None:
        self.queue(ready.priority, ready.source).insert(0, ready)

    def take(self, count: int) -> Range:
        turn = max(self.queues, key=lambda one: one[0])  # The first of those with the highest priority.
        self.queues.remove(turn)
        queue = turn[2]
        taken = queue.pop(0)
        if taken.stop - taken.first > count:
            queue.insert(0, taken.part(taken.first + count, taken.stop))
            taken = taken.part(taken.first, taken.first + count)
        if queue:
            self.queues.append(turn)
        return taken

    def remove(self, batch: int, source: int, priority: int, first: int, stop: int) -> list[Range]:
        queue = self.queue(priority, source)
        queue[:], removed = taken_out(queue, batch, first, stop)
        self.queues = [one for one in self.queues if one[2]]
        return removed

    def take_of(self, batch: int, source: int, priority: int, count: int) -> Range | None:
        removed = self.remove(batch, source, priority, 0, ALL)
        if not removed:
            return None
        taken, *rest = removed
        if taken.stop - taken.first > count:
            rest.insert(0, taken.part(taken.first + count, taken.stop))
        for one in reversed(rest):
            self.put_back(one)
        return taken.part(taken.first, min(taken.stop, taken.first + count))

    def ranges(self) -> list[Range]:
        return [one for *_, queue in self.queues for one in queue]


class BrokerAgainstNaive(RuleBasedStateMachine):
    """Whatever is put, taken and removed, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.short = broker_module.SHORT
        self.broker, self.naive = Broker(), NaiveBroker()
        self.batches: list[Range] = []
        self.out: list[Range] = []

    @initialize(short=st.sampled_from([0, 0, 3, broker_module.SHORT]))
    def begin(self, short: int) -> None:
        broker_module.SHORT = short

    @rule(count=st.integers(1, 10), source=st.integers(1, 3), priority=st.integers(0, 1), times=st.integers(1, 6))
    def put(self, count: int, source: int, priority: int, times: int) -> None:
        for _ in range(times):
            ready = Range(len(self.batches), 1, source, 0, count, priority=priority)
            self.batches.append(ready)
            self.broker.put(ready)
            self.naive.put(ready)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), behind=st.booleans(), priority=st.integers(0, 1))
    def put_again(self, data: st.DataObject, behind: bool, priority: int) -> None:
        """Calls that were taken or removed come again, as they are or with another priority."""
        ready = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        if data.draw(st.booleans()):
            ready = ready._replace(priority=priority)
        for broker in (self.broker, self.naive):
            (broker.put if behind else broker.put_back)(ready)

    @precondition(lambda self: self.broker.ready)
    @rule(count=st.integers(1, 12), times=st.integers(1, 4))
    def take(self, count: int, times: int) -> None:
        for _ in range(times):
            if self.broker.ready:
                taken = self.broker.take(count)
                assert taken == self.naive.take(count)
                self.out.append(taken)

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), bounds=BOUNDS, priority=st.integers(0, 1))
    def remove(self, data: st.DataObject, bounds: tuple[int, int], priority: int) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        removed = self.broker.remove(batch.batch, batch.source, priority, *bounds)
        assert removed == self.naive.remove(batch.batch, batch.source, priority, *bounds)
        self.out += removed

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), count=st.integers(1, 12), priority=st.integers(0, 1))
    def take_of(self, data: st.DataObject, count: int, priority: int) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        taken = self.broker.take_of(batch.batch, batch.source, priority, count)
        assert taken == self.naive.take_of(batch.batch, batch.source, priority, count)
        self.out += [taken] if taken else []

    @invariant()
    def they_hold_the_same(self) -> None:
        assert sorted(self.broker.ranges()) == sorted(self.naive.ranges())
        assert self.broker.ready == sum(one.stop - one.first for one in self.naive.ranges())
        if self.broker.ready:
            assert self.broker.peek() == max(self.naive.queues, key=lambda one: one[0])[2][0]

    def teardown(self) -> None:
        broker_module.SHORT = self.short
        while self.broker.ready:
            assert self.broker.take(3) == self.naive.take(3)
        assert not self.naive.queues


class KeysAgainstNaive(RuleBasedStateMachine):
    """Calls are blocked, woken and removed, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = KeyHolders()
        self.naive: dict[bytes, list[tuple[Order, Range]]] = {}
        self.out: list[tuple[bytes, Range]] = []
        self.arrived = 0

    def block_in_both(self, key: bytes, calls: Range) -> None:
        order = (-calls.priority, calls.batch, calls.first)
        self.keys.block(key, order, calls)
        self.naive[key] = sorted([*self.naive.get(key, []), (order, calls)])

    @rule(key=st.sampled_from([b"a", b"b"]), priority=st.integers(0, 2), times=st.integers(1, 6))
    def block(self, key: bytes, priority: int, times: int) -> None:
        for _ in range(times):
            self.arrived += 1
            self.block_in_both(key, Range(self.arrived, 1, 1, 0, 10, priority=priority))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), priority=st.integers(0, 2))
    def block_again(self, data: st.DataObject, priority: int) -> None:
        key, calls = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.block_in_both(key, calls._replace(priority=priority) if data.draw(st.booleans()) else calls)

    @rule(key=st.sampled_from([b"a", b"b"]))
    def wake(self, key: bytes) -> None:
        woken = self.keys.wake(key)
        expected = self.naive[key].pop(0)[1] if self.naive.get(key) else None
        assert woken == expected
        self.out += [(key, woken)] if woken else []

    @precondition(lambda self: self.arrived)
    @rule(data=st.data(), keys=st.sets(st.sampled_from([b"a", b"b", b"c"])), bounds=BOUNDS)
    def remove(self, data: st.DataObject, keys: set[bytes], bounds: tuple[int, int]) -> None:
        batch = data.draw(st.integers(1, self.arrived))
        expected = []
        for key in keys & self.naive.keys():
            left, removed = taken_out([calls for _, calls in self.naive[key]], batch, *bounds)
            self.naive[key] = [((-calls.priority, calls.batch, calls.first), calls) for calls in left]
            expected += removed
            self.out += [(key, calls) for calls in removed]
        assert sorted(self.keys.remove(keys, batch, *bounds)) == sorted(expected)

    @invariant()
    def they_hold_the_same(self) -> None:
        assert sorted(self.keys.ranges()) == sorted(calls for line in self.naive.values() for _, calls in line)
        assert self.keys.blocked.keys() == {key for key, line in self.naive.items() if line}

    @invariant()
    def what_was_removed_does_not_pile_up(self) -> None:
        for line in self.keys.blocked.values():
            assert line._removed == len(line._heap) - len(line.ranges())
            assert 2 * line._removed <= len(line._heap)

    def teardown(self) -> None:
        for key, line in self.naive.items():
            assert [self.keys.wake(key) for _ in line] == [calls for _, calls in line]
        assert not self.keys.blocked


TestBroker = BrokerAgainstNaive.TestCase
TestKeys = KeysAgainstNaive.TestCase
TestBroker.settings = TestKeys.settings = settings(max_examples=examples(150), stateful_step_count=50)


# How much work it is. Not the time that it takes is looked at, but how many instructions are run.


def queued(count: int, key: bytes, sources: int) -> Orchestrator:
    orchestrator = Orchestrator(0.02)
    orchestrator.handle(TaskDeclared(1, TaskOptions(max_running=1)))
    extras = Extras(running=key.ljust(KEY_BYTES)) if key else NONE
    for batch in range(1, count + 1):
        orchestrator.handle(BatchArrived(batch, 1, 1, batch % sources, extras))
        if key:  # Its key is held by others.
            calls = orchestrator.broker.take(1)
            orchestrator.keys.block(extras.running, (0, batch, 0), calls)
    return orchestrator


def cancel(orchestrator: Orchestrator, batches: list[int]) -> None:
    for batch in batches:
        orchestrator.handle(CallsWithdrawn(batch, 0, 1, Ended.CANCELLED, True, {}))


def shelve(orchestrator: Orchestrator, batches: list[int]) -> None:
    orchestrator.handle(BatchesShelved(tuple(batches), {}))


def put_first(orchestrator: Orchestrator, batches: list[int]) -> None:
    for batch in batches:
        orchestrator._put_first(batch)


def steps(act: Callable[[], None]) -> int:
    """How many lines are run, one for each round of a loop; CPython 3.12 does not tell every instruction."""
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("key", [b"", b"k"])
@pytest.mark.parametrize("act", [cancel, shelve, put_first])
@pytest.mark.parametrize("order", ["as they came", "the last first", "any"])
def test_the_work_of_withdrawing_all_grows_with_their_number(
    key: bytes, act: Callable[[Orchestrator, list[int]], None], order: str
) -> None:
    def work(count: int) -> int:
        orchestrator, batches = queued(count, key, 3), list(range(1, count + 1))
        if order == "the last first":
            batches.reverse()
        elif order == "any":
            random.Random(0).shuffle(batches)
        return steps(lambda: act(orchestrator, batches))

    few, many = work(300), work(1200)  # In three queues, each too long to be looked through.
    assert many < 6 * few, f"four times as many batches took {many / few:.1f} times the work"
