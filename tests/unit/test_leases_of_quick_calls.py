"""A lease of quick calls looks at the clock now and then, and keeps every other promise."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pynenc import execution
from pynenc.protocol.frames import FrameReader
from pynenc.protocol.messages import Failure, Kind, Lease, Packing, Results
from pynenc.protocol.slots import POSITION, Slot
from pynenc.serializer import pack_arguments, unpack
from pynenc.worker import lease as worker_lease
from pynenc.worker.base import MANY, DeclaredTask
from pynenc.worker.lease import Shipper, fail, run
from tests import tasks

COUNT = 200
FIRST_POSITION = 7


class Clock:
    """Stands in for the module `time`: a machine with much else to do makes calls slow that are not.

    Attributes:
        now_s: What it shows, in seconds; 50 µs go by with each look.
    """

    def __init__(self) -> None:
        self.now_s = time.monotonic()
        self.time = time.time
        self.sleep = time.sleep

    def monotonic(self) -> float:
        self.now_s += 50e-6
        return self.now_s


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    shown = Clock()
    monkeypatch.setattr(execution, "time", shown)
    monkeypatch.setattr(worker_lease, "time", shown)
    return shown


class Run:
    """One lease of a task whose calls count as quick, run in this process."""

    def __init__(self, func: Callable[[int], Any], count: int = COUNT) -> None:
        self.slot = Slot(mmap.mmap(-1, 4096), 0)
        self.slot.clear()
        self.sent: list[bytes] = []
        self.shipper = Shipper(self.sent.append, 1)
        declared = DeclaredTask(tasks.add.task_id, {})
        declared.task, declared.stride = tasks.add, execution.MAX_STRIDE
        packing, payload = pack_arguments([(x,) for x in range(count)])
        lease = Lease(FIRST_POSITION, 1, 1, 0, count, 0, 0, packing, payload)
        run(lease, declared, func, self.slot, self.shipper)
        self.shipper.ship()

    def outcomes(self) -> Iterator[Results | Failure]:
        for kind, body in FrameReader().feed(b"".join(self.sent)):
            if kind == Kind.RESULTS:
                yield Results.from_body(body)
            elif kind == Kind.FAILURE:
                yield Failure.from_body(body)

    def values(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for outcome in self.outcomes():
            if isinstance(outcome, Results):
                found.update(
                    zip(range(outcome.first, outcome.stop), unpack(outcome.packing, outcome.payload), strict=True)
                )
        return found


def test_each_call_is_announced_before_it_begins() -> None:
    announced: list[int] = []

    def look(x: int) -> int:
        announced.append(slot.numbers[POSITION])
        return x

    slot = Slot(mmap.mmap(-1, 4096), 0)
    shipper = Shipper(lambda message: None, 1)
    execution.run_lease(look, ((x,) for x in range(COUNT)), range(3, 3 + COUNT), slot, shipper, execution.MAX_STRIDE)
    assert announced == list(range(3, 3 + COUNT))


def test_values_come_back_in_order_and_their_times_are_evenly_spread() -> None:
    ran = Run(lambda x: x * x)
    assert ran.values() == {x: x * x for x in range(COUNT)}
    (results,) = ran.outcomes()
    assert isinstance(results, Results)
    assert results.ends == b""
    began, ended = results.times_of(COUNT - 1)
    assert results.started < began < ended == pytest.approx(results.started + results.took)


def test_failures_stand_between_values_wherever_they_come() -> None:
    failing = {0, 1, 62, 63, 64, 65, 130, COUNT - 1}

    def fail_some(x: int) -> int:
        if x in failing:
            raise ValueError(x)
        return x

    ran = Run(fail_some)
    failures = {one.first: one.message for one in ran.outcomes() if isinstance(one, Failure)}
    assert failures == {x: str(x) for x in failing}
    assert ran.values() == {x: x for x in range(COUNT) if x not in failing}


def test_a_function_that_raises_stop_iteration_fails_and_the_next_call_runs() -> None:
    def stop_at_some(x: int) -> int:
        if x % 50 == 3:
            raise StopIteration(x)
        return x

    ran = Run(stop_at_some)
    failures = [one for one in ran.outcomes() if isinstance(one, Failure)]
    assert [(one.first, one.type_name) for one in failures] == [(x, "StopIteration") for x in (3, 53, 103, 153)]
    # Of the first it is too late to ask. Those that follow are looked at one by one.
    assert [one.message for one in failures] == [execution.STOPPED_QUICKLY, "53", "103", "153"]
    assert "stop_at_some" in failures[1].traceback
    assert ran.values() == {x: x for x in range(COUNT) if x % 50 != 3}


def test_results_that_change_later_are_kept_as_they_were() -> None:
    shared: list[int] = []

    def append(x: int) -> list[int] | int:
        shared.append(x)
        return shared if x % 3 else x

    assert Run(append, 30).values() == {x: list(range(x + 1)) if x % 3 else x for x in range(30)}


@pytest.mark.parametrize("at", [0, 1, 63, 64, 100, COUNT - 1])
def test_a_cut_that_is_made_while_a_call_runs_is_seen_by_the_next(at: int) -> None:
    ran: list[int] = []
    slots: list[Slot] = []

    def cut_at(x: int) -> int:
        ran.append(x)
        if x == at:
            slots[0].cut(slots[0].numbers[POSITION] + 1, 10_000)
        return x

    slots.append(Slot(mmap.mmap(-1, 4096), 0))
    shipper = Shipper(lambda message: None, 1)
    entries, positions = ((x,) for x in range(COUNT)), range(FIRST_POSITION, FIRST_POSITION + COUNT)
    shipper.begin(Lease(FIRST_POSITION, 1, 1, 0, COUNT, 0, 0, Packing.COLUMNS, b""), (), is_timed=False)
    stopped_at = execution.run_lease(cut_at, entries, positions, slots[0], shipper, execution.MAX_STRIDE)
    assert ran == list(range(at + 1))
    assert stopped_at == (None if at == COUNT - 1 else FIRST_POSITION + at + 1)


def test_a_lease_that_cannot_run_minds_a_cut_too() -> None:
    """Who ignored it would never be leased anything again: the supervisor waits for a word."""
    slot, sent = Slot(mmap.mmap(-1, 4096), 0), list[bytes]()
    shipper = Shipper(sent.append, 1)
    slot.cut(FIRST_POSITION + 5, FIRST_POSITION + 20)
    lease = Lease(FIRST_POSITION, 1, 1, 0, 20, 0, 0, Packing.COLUMNS, b"")
    assert fail(lease, ImportError("no such module"), slot, shipper) == FIRST_POSITION + 20
    frames = FrameReader().feed(b"".join(sent))
    assert [kind for kind, _ in frames] == [Kind.FAILURE] * 5 + [Kind.CUT]
    assert slot.numbers[POSITION] == FIRST_POSITION + 5


def test_a_slow_call_among_quick_ones_has_the_next_ones_timed(clock: Clock) -> None:
    def slow_at_some(x: int) -> int:
        if x == 70:
            clock.now_s += 3 * execution.SLOW_S
        return x

    ran = Run(slow_at_some)
    assert ran.values() == {x: x for x in range(COUNT)}
    timed = {one.first: one.ends for one in ran.outcomes() if isinstance(one, Results) and one.ends}
    assert timed
    assert all(first >= 70 for first in timed)


def test_only_many_short_calls_make_a_task_quick() -> None:
    declared = DeclaredTask("jobs.add", {})
    declared.learn(MANY - 1, 0.0)
    assert declared.stride == 1
    declared.learn(MANY, MANY * execution.QUICK_S / 2)
    assert declared.stride == execution.MAX_STRIDE
    declared.learn(1, 2 * execution.QUICK_S)
    assert declared.stride == 1
