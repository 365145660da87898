"""How much work a worker is given at a time, and how often it ships what it has done."""

from __future__ import annotations

import mmap
import time
from itertools import pairwise

import pytest

from pynenc.protocol.frames import FrameReader
from pynenc.protocol.messages import Kind, Lease, Results
from pynenc.protocol.slots import Slot
from pynenc.serializer import pack_arguments
from pynenc.supervisor.events import (
    BatchArrived,
    CallsSucceeded,
    Event,
    LeaseCalls,
    TaskDeclared,
    TaskOptions,
    WorkerJoined,
)
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.worker import lease as worker_lease
from pynenc.worker.base import DeclaredTask
from pynenc.worker.lease import SHIP_S, Shipper, run
from tests import tasks

TASK, BATCH, COUNT = 1, 1, 512
CALL_S, LEASE_S = 0.001, 0.04


def test_workers_that_report_in_turns_are_not_given_single_calls() -> None:
    """Whenever one of them reports, both are looked at; the other one has room for a call or two."""
    rules, held, sizes = Orchestrator(LEASE_S, 2, 1), list[LeaseCalls](), list[int]()

    def tell(event: Event) -> None:
        for effect in [*rules.handle(event), *rules.lease_ready_calls()]:
            if isinstance(effect, LeaseCalls):
                held.append(effect)
                if effect.stop < COUNT:  # The last of a batch may be few.
                    sizes.append(effect.stop - effect.first)

    tell(TaskDeclared(TASK, TaskOptions()))
    tell(WorkerJoined(1))
    tell(WorkerJoined(2))
    for number in range(10):
        tell(BatchArrived(BATCH + number, TASK, COUNT, 1))
    begun, done = 0, 0
    while done < 8 * COUNT:
        lease = min(held, key=lambda one: one.position)
        held.remove(lease)
        # In two pieces, as of a worker that ships in between.
        middle = (lease.first + lease.stop + 1) // 2
        for first, stop in ((lease.first, middle), (middle, lease.stop)):
            if stop > first:
                tell(CallsSucceeded(lease.worker, lease.batch, first, stop, (stop - first) * CALL_S * 1.03))
        done += lease.stop - lease.first
        begun = begun or (len(sizes) if done > COUNT else 0)
    assert min(sizes[begun:]) >= 0.2 * LEASE_S / CALL_S
    assert max(sizes) <= LEASE_S / CALL_S


class Clock:
    """Stands in for the module `time`; calls let time go by."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.time, self.sleep = time.time, time.sleep

    def monotonic(self) -> float:
        return self.now_s


@pytest.mark.parametrize("calls", [9, 10, 11, 13])
def test_results_are_shipped_at_the_ends_of_leases(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("pynenc.execution.time", clock)
    monkeypatch.setattr(worker_lease, "time", clock)
    call_s = SHIP_S / 10.5
    sent: list[tuple[float, bytes]] = []
    slot = Slot(mmap.mmap(-1, 4096), 0)
    slot.clear()
    shipper = Shipper(lambda message: sent.append((clock.now_s, message)), 1)
    declared = DeclaredTask(tasks.add.task_id, {})
    declared.task = tasks.add

    def last(x: int) -> int:
        clock.now_s += call_s
        return x

    packing, payload = pack_arguments([(x,) for x in range(calls)])
    for number in range(20):
        run(Lease(1 + number * calls, 1 + number, 1, 0, calls, 0, 0, packing, payload), declared, last, slot, shipper)
    shipper.ship()
    frames = [(kind, body) for _, message in sent for kind, body in FrameReader().feed(message)]
    results = [Results.from_body(body) for kind, body in frames if kind == Kind.RESULTS]
    assert sum(one.stop - one.first for one in results) == 20 * calls
    between = [after - before for (before, _), (after, _) in pairwise(sent)]
    assert max(between) <= 1.5 * SHIP_S
    if calls <= 11:
        assert len(results) == len(sent) == 20
