"""Calls that a worker's call waits for, while they lie in the hands of another worker which runs a long one."""

from __future__ import annotations

from pynenc.protocol.extras import KEY_BYTES, NONE, Extras
from pynenc.supervisor.events import (
    AddWorker,
    BatchArrived,
    CallsSucceeded,
    CutSettled,
    CutWorker,
    Effect,
    Event,
    LeaseCalls,
    LookAgain,
    Looked,
    TaskDeclared,
    TaskOptions,
    ThreadsWait,
    WorkerJoined,
    WorkerPaused,
)
from pynenc.supervisor.orchestrator import Orchestrator

TASK, LIMITED, KEYED = 1, 2, 3
LONG, PARENT, CHILD, OTHER = 1, 2, 3, 4
KEY = b"k" * KEY_BYTES


class Rules:
    """Worker 1 runs a long call, worker 2 one that has made another, which lies in the hands of worker 1."""

    def __init__(self, task: int = TASK, extras: Extras = NONE, long: Extras = NONE) -> None:
        self.rules = Orchestrator(0.02, 2, 1)
        self.tell(TaskDeclared(TASK, TaskOptions()))
        self.tell(TaskDeclared(LIMITED, TaskOptions(timeout_s=60.0)))
        self.tell(TaskDeclared(KEYED, TaskOptions(max_running=1)))
        self.tell(WorkerJoined(1))
        self.tell(WorkerJoined(2))
        self.tell(BatchArrived(LONG, KEYED if long.running else TASK, 1, 1, long))
        self.tell(BatchArrived(PARENT, TASK, 1, 1))
        told = self.tell(BatchArrived(CHILD, task, 1, 2, extras))
        assert leases(told) == [(1, CHILD)]

    def tell(self, event: Event) -> list[Effect]:
        return [*self.rules.handle(event), *self.rules.lease_ready_calls()]

    def pause(self) -> list[Effect]:
        return self.tell(WorkerPaused(2, 1, 2, 0.0, (CHILD,)))

    def cut_out(self) -> list[Effect]:
        """Look twice, and let the cut settle."""
        assert LookAgain in map(type, self.tell(Looked({1: 1, 2: 1})))
        told = self.tell(Looked({1: 1, 2: 1}))
        (cut,) = (one for one in told if isinstance(one, CutWorker))
        assert (cut.worker, cut.start) == (1, 2)
        return self.tell(CutSettled(1, 1, cut.serial))


def leases(effects: list[Effect]) -> list[tuple[int, int]]:
    return [(one.worker, one.batch) for one in effects if isinstance(one, LeaseCalls)]


def test_the_worker_that_waits_runs_them() -> None:
    rules = Rules()
    assert LookAgain in map(type, rules.pause())
    assert leases(rules.cut_out()) == [(2, CHILD)]


def test_so_it_is_while_others_are_queued() -> None:
    rules = Rules()
    rules.tell(BatchArrived(OTHER, TASK, 9, 1))
    rules.pause()
    rules.tell(WorkerJoined(3))
    rules.tell(BatchArrived(OTHER + 1, TASK, 9, 1))
    assert rules.rules.ready
    assert (2, CHILD) in leases(rules.cut_out())


def test_what_has_a_time_limit_goes_to_a_spare_worker() -> None:
    rules = Rules(LIMITED)
    rules.pause()
    told = rules.cut_out()
    assert (leases(told), [one for one in told if isinstance(one, AddWorker)]) == ([], [AddWorker()])
    assert leases(rules.tell(WorkerJoined(3))) == [(3, CHILD)]


def test_what_threads_wait_for_goes_to_a_spare_worker() -> None:
    rules = Rules()
    assert LookAgain in map(type, rules.tell(ThreadsWait(2, 1)))
    assert AddWorker() in rules.cut_out()
    assert leases(rules.tell(WorkerJoined(3))) == [(3, CHILD)]


def test_a_key_that_its_worker_holds_for_it_alone_keeps_nothing_there() -> None:
    rules = Rules(KEYED, Extras(running=KEY))
    rules.pause()
    assert leases(rules.cut_out()) == [(2, CHILD)]


def test_what_may_not_run_beside_the_long_one_stays_behind_it() -> None:
    rules = Rules(KEYED, Extras(running=KEY), long=Extras(running=KEY))
    assert LookAgain not in map(type, rules.pause())


def test_nothing_is_taken_from_a_worker_that_moves() -> None:
    rules = Rules()
    rules.pause()
    rules.tell(Looked({1: 1, 2: 1}))
    rules.tell(CallsSucceeded(1, LONG, 0, 1, 0.003))
    assert rules.tell(Looked({1: 2, 2: 1})) == []
