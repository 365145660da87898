"""Memory as the kernel tells of it, and the rules about workers that are replaced or ended."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pynenc import ConfigError
from pynenc.conf.config_runner import ConfigRunner
from pynenc.status import InvocationStatus
from pynenc.supervisor.events import (
    AddWorker,
    BatchArrived,
    CallsSucceeded,
    CutReached,
    CutSettled,
    CutWorker,
    EndCalls,
    Ended,
    KeepTransition,
    KillWorker,
    LeaseCalls,
    LookAgain,
    Looked,
    MeasureWorkers,
    RetireWorker,
    TaskDeclared,
    TaskOptions,
    WorkerJoined,
    WorkerLimits,
    WorkerLost,
    WorkerPaused,
    WorkersMeasured,
)
from pynenc.supervisor.measuring import Measuring
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.orchestrator.recycling import MAX_EVICTIONS, PATIENCE_S
from pynenc.supervisor.orchestrator.seats import FIRST_TRUST_S, PAUSE_S
from pynenc.system.memory import MachineMemory, ProcessMemory

MIB = 1 << 20
PLENTY = 1 << 40
MEMINFO = "MemTotal: 1048576 kB\nMemFree: 1 kB\nMemAvailable: 524288 kB\n"


def machine(tmp_path: Path, own: str, files: dict[str, str], proc: dict[str, str] | None = None) -> MachineMemory:
    for place, texts in (("root", files), ("proc", {"meminfo": MEMINFO, **(proc or {})})):
        for name, text in texts.items():
            path = tmp_path / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    (tmp_path / "own").write_text(own)
    return MachineMemory(str(tmp_path / "root"), str(tmp_path / "own"), str(tmp_path / "proc"))


@pytest.mark.parametrize(
    ("own", "files", "total", "available"),
    [
        ("", {}, 1024, 512),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/b/memory.current": "1\n"}, 1024, 512),
        ("0::/a/b\n", {"a/memory.max": f"{200 * MIB}\n", "a/memory.current": f"{150 * MIB}\n"}, 200, 50),
        (
            "0::/a\n",
            {
                "a/memory.max": f"{200 * MIB}\n",
                "a/memory.current": f"{150 * MIB}\n",
                "a/memory.stat": f"anon 1\ninactive_file {60 * MIB}\nactive_file {10 * MIB}\n",
            },
            200,
            120,
        ),
        (
            "4:memory:/x/y\n",
            {
                "memory/x/memory.limit_in_bytes": f"{300 * MIB}\n",
                "memory/x/memory.usage_in_bytes": f"{100 * MIB}\n",
                "memory/x/memory.stat": f"inactive_file 1\ntotal_inactive_file {20 * MIB}\ntotal_active_file 0\n",
                "memory/x/y/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/x/y/memory.usage_in_bytes": f"{100 * MIB}\n",
            },
            300,
            220,
        ),
        ("0::/in/a/container\n", {"memory.max": f"{100 * MIB}\n", "memory.current": f"{90 * MIB}\n"}, 100, 10),
        ("0::/a\n", {"a/memory.max": f"{200 * MIB}\n", "a/memory.current": f"{250 * MIB}\n"}, 200, 0),
    ],
)
def test_limits_of_either_version_count_as_the_machines_memory(
    tmp_path: Path, own: str, files: dict[str, str], total: int, available: int
) -> None:
    memory = machine(tmp_path, own, files)
    assert (memory.total, memory.available()) == (total * MIB, available * MIB)


@pytest.mark.parametrize(
    ("total_mib", "short_mib"), [(128, 12.8), (1024, 64), (24 << 10, 24 * 1024 * 0.02), (1 << 20, 2048)]
)
def test_what_counts_as_short_grows_with_the_machine(tmp_path: Path, total_mib: int, short_mib: float) -> None:
    memory = machine(tmp_path, "", {}, {"meminfo": f"MemTotal: {total_mib << 10} kB\nMemAvailable: 1 kB\n"})
    assert memory.short_below == pytest.approx(short_mib * MIB, abs=1)
    assert memory.available() < memory.short_below


def test_processes_that_the_kernel_ended_are_counted(tmp_path: Path) -> None:
    files = {"a/memory.events": "oom 7\noom_kill 2\n"}
    assert machine(tmp_path, "0::/a\n", files, {"vmstat": "nr_free 1\noom_kill 3\n"}).kills() == 5


def test_what_a_process_takes_is_read() -> None:
    memory = ProcessMemory()
    before = memory.read(os.getpid(), 0.0, 0.0)
    held = bytearray(b"x") * (50 * MIB)
    assert memory.read(os.getpid(), 10.0, 0.0) - before >= 40 * MIB
    assert memory.read(os.getpid(), 10.0, float("inf")) - before >= 40 * MIB
    assert len(held) == 50 * MIB
    assert memory.read(0x3FFFFFFF, 0.0, 0.0) == memory.used, "the last reading stands when the process is gone"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2GiB", 2 << 30),
        ("512 MB", 512_000_000),
        ("1.5g", 1_500_000_000),
        (0.25, 0.25),
        ("0.5", 0.5),
        (1, 1.0),
        (1 << 30, 1 << 30),
        ("none", None),
        (None, None),
    ],
)
def test_limits_are_bytes_texts_or_shares(written: Any, read: Any) -> None:
    limit = ConfigRunner({"runner": {"worker_memory_limit": written}}).worker_memory_limit
    assert limit == read
    assert type(limit) is type(read)


@pytest.mark.parametrize("written", ["2XB", "GiB", 512, "100k", -1, 0, True, "nan", "1bb", "inf", [1]])
def test_limits_that_mean_nothing_are_refused(written: Any) -> None:
    with pytest.raises(ConfigError, match="worker_memory_limit: expected bytes"):
        ConfigRunner({"runner": {"worker_memory_limit": written}})


def test_a_share_becomes_bytes_of_what_there_is() -> None:
    settings = {"worker_memory_limit": 0.5, "memory_check_s": 0.1, "max_calls_per_worker": None, "max_worker_age": None}
    limits = Measuring(SimpleNamespace(workers={}), settings).limits  # type: ignore[arg-type]
    assert limits == WorkerLimits(int(MachineMemory().total * 0.5), 0.1, 0)


class Cluster:
    """The rules, and what they ask for."""

    def __init__(self, limits: WorkerLimits, size: int = 2, **options: Any) -> None:
        self.rules = Orchestrator(10.0, size, 0, limits)
        self.now = 0.0
        self.tell(TaskDeclared(1, TaskOptions(**options)))
        for number in range(1, size + 1):
            self.tell(WorkerJoined(number))

    def tell(self, event: Any) -> list[Any]:
        return [*self.rules.handle(event), *self.rules.lease_ready_calls()]

    def measured(
        self,
        used: dict[int, int],
        running: dict[int, tuple[int, float]],
        spare_mib: float = PLENTY,
        aged: tuple[int, ...] = (),
        passed_s: float = 0.1,
    ) -> list[Any]:
        self.now += passed_s
        sizes = {number: size * MIB for number, size in used.items()}
        return self.tell(WorkersMeasured(sizes, running, frozenset(aged), int(spare_mib * MIB), self.now))


def of(kind: type, effects: list[Any]) -> list[Any]:
    return [one for one in effects if type(one) is kind]


def two_calls(**options: Any) -> Cluster:
    """Two workers with a call each; that of the second began last."""
    cluster = Cluster(WorkerLimits(0, 0.1, 0), **options)
    leases = of(LeaseCalls, cluster.tell(BatchArrived(1, 1, 2, 1)))
    assert [(one.worker, one.first) for one in leases] == [(1, 0), (2, 1)]
    return cluster


RUNNING = {1: (1, 5.0), 2: (1, 2.0)}


def evict(cluster: Cluster, number: int = 2, position: int = 1) -> list[Any]:
    """Let the worker that was chosen die of it."""
    killed = cluster.tell(CutSettled(number, position, cluster.rules.workers[number].serial))
    assert of(KillWorker, killed) == [KillWorker(number)]
    return cluster.tell(WorkerLost(number, position))


def test_the_youngest_call_ends_when_the_machine_is_short_and_waits_for_room() -> None:
    cluster = two_calls()
    (cut,) = of(CutWorker, cluster.measured({1: 100, 2: 100}, RUNNING, -1))
    assert cut.worker == 2
    lost = evict(cluster)
    assert [one.status for one in of(KeepTransition, lost)] == [InvocationStatus.REROUTED]
    assert not of(EndCalls, lost)
    assert [(one.worker, one.first, one.attempt) for one in of(LeaseCalls, lost)] == [(1, 1, 0)], "behind the other"
    # A fresh worker neither gets it nor takes it over while the other one runs, ...
    assert cluster.tell(WorkerJoined(3)) == []
    alone = cluster.measured({1: 100, 3: 1}, {1: (1, 6.0), 3: (0, 0.0)}, 90, passed_s=60)
    assert not of(LookAgain, alone)
    # ... unless there is room for it.
    assert of(LookAgain, cluster.measured({1: 100, 3: 1}, {1: (1, 6.0), 3: (0, 0.0)}, 110))
    (cut,) = of(CutWorker, cluster.tell(Looked({1: 1, 3: 0})))
    settled = cluster.tell(CutSettled(1, 1, cut.serial))
    assert [(one.worker, one.first) for one in of(LeaseCalls, settled)] == [(3, 1)]


def test_all_workers_run_calls_again_when_nothing_runs_any_more() -> None:
    cluster = two_calls()
    cluster.measured({1: 100, 2: 100}, RUNNING, -1)
    evict(cluster)
    cluster.tell(WorkerJoined(3))
    cluster.tell(CallsSucceeded(1, 1, 0, 1, 1.0))
    cluster.tell(CallsSucceeded(1, 1, 1, 2, 1.0))
    cluster.measured({1: 10, 3: 1}, {1: (2, 0.0), 3: (0, 0.0)})
    leased = of(LeaseCalls, cluster.tell(BatchArrived(2, 1, 2, 1)))
    assert {one.worker for one in leased} == {1, 3}


def test_room_is_not_looked_for_again_at_once() -> None:
    cluster = two_calls()
    cluster.measured({1: 100, 2: 100}, RUNNING, -1)
    evict(cluster)
    assert not of(CutWorker, cluster.measured({1: 100}, {1: (1, 5.0)}, -1, passed_s=PAUSE_S / 2))
    assert of(CutWorker, cluster.measured({1: 100}, {1: (1, 5.0)}, -1, passed_s=PAUSE_S))


@pytest.mark.parametrize("options", [{"rerun_on_worker_loss": False}, {"max_worker_losses": 0}])
def test_calls_that_must_not_run_twice_are_not_ended_for_room(options: dict[str, Any]) -> None:
    cluster = two_calls(**options)
    effects = cluster.measured({1: 100, 2: 100}, RUNNING, -1)
    assert not of(CutWorker, effects)
    assert not of(KillWorker, effects)


def test_a_call_whose_end_would_bring_nothing_is_not_ended_for_room() -> None:
    assert [one.worker for one in of(CutWorker, two_calls().measured({1: 400, 2: 50}, RUNNING, -1))] == [1]
    assert not of(CutWorker, two_calls().measured({1: 10, 2: 5}, RUNNING, -1))


def test_a_call_that_waits_for_others_is_not_ended_for_room() -> None:
    cluster = two_calls()
    cluster.tell(WorkerPaused(2, 1, 2, 0.0, (1,)))
    assert [one.worker for one in of(CutWorker, cluster.measured({1: 100, 2: 100}, RUNNING, -1))] == [1]


def test_a_call_is_ended_for_room_some_times_only() -> None:
    cluster = Cluster(WorkerLimits(0, 0.1, 0), size=1)
    cluster.tell(BatchArrived(1, 1, 1, 1))
    for number in range(1, MAX_EVICTIONS + 2):
        cluster.measured({number: 100}, {number: (1, 1.0)}, -1, passed_s=10 * FIRST_TRUST_S)
        ended = evict(cluster, number)
        cluster.tell(WorkerJoined(number + 1))
    assert [(one.why, one.first) for one in of(EndCalls, ended)] == [(Ended.SHORT, 0)]
    assert not cluster.rules.batches


def test_idle_workers_that_hold_memory_are_replaced_before_a_call_is_ended() -> None:
    cluster = two_calls()
    cluster.tell(CallsSucceeded(1, 1, 0, 1, 1.0))
    effects = cluster.measured({1: 100, 2: 10}, {1: (1, 5.0), 2: (1, 2.0)}, -1)
    assert of(RetireWorker, effects) == [RetireWorker(1)]
    assert of(AddWorker, effects) == [AddWorker()]


def test_a_full_worker_is_emptied_looked_at_and_replaced() -> None:
    cluster = Cluster(WorkerLimits(100 * MIB, 0.1, 0), size=1)
    cluster.rules.tasks[1].learn(1, 0.1)
    assert sum(one.stop - one.first for one in of(LeaseCalls, cluster.tell(BatchArrived(1, 1, 8, 1)))) == 8
    (cut,) = of(CutWorker, cluster.measured({1: 85}, {1: (1, 0.1)}))
    assert cut.start == 2
    cluster.tell(CutSettled(1, 1, cut.serial))
    assert not of(LeaseCalls, cluster.tell(BatchArrived(2, 1, 1, 1)))
    done = cluster.tell(CallsSucceeded(1, 1, 0, 1, 0.1)) + cluster.tell(CutReached(1, 2))
    assert of(MeasureWorkers, done) == [MeasureWorkers(0.0)]
    replaced = cluster.measured({1: 85}, {1: (1, 0.1)})
    assert of(RetireWorker, replaced) == [RetireWorker(1)]
    assert of(AddWorker, replaced) == [AddWorker()]
    assert of(LeaseCalls, cluster.tell(WorkerJoined(2)))


def test_a_worker_that_gave_its_memory_back_stays() -> None:
    cluster = Cluster(WorkerLimits(100 * MIB, 0.1, 0), size=1)
    cluster.tell(BatchArrived(1, 1, 1, 1))
    cluster.measured({1: 85}, {1: (1, 0.1)})
    cluster.tell(CallsSucceeded(1, 1, 0, 1, 0.1))
    assert not of(RetireWorker, cluster.measured({1: 20}, {1: (1, 0.1)}))
    assert of(LeaseCalls, cluster.tell(BatchArrived(2, 1, 1, 1)))


def test_a_call_that_ends_while_it_is_about_to_be_ended_has_its_result() -> None:
    cluster = Cluster(WorkerLimits(100 * MIB, 0.1, 0), size=1)
    cluster.tell(BatchArrived(1, 1, 1, 1))
    (cut,) = of(CutWorker, cluster.measured({1: 160}, {1: (1, 0.1)}))
    cluster.tell(CallsSucceeded(1, 1, 0, 1, 0.1))
    assert not of(KillWorker, cluster.tell(CutSettled(1, 1, cut.serial)))
    assert of(RetireWorker, cluster.measured({1: 120}, {1: (1, 0.1)})) == [RetireWorker(1)]


def test_a_call_is_not_ended_for_what_those_before_it_have_left() -> None:
    cluster = Cluster(WorkerLimits(100 * MIB, 0.1, 0), size=1)
    cluster.tell(BatchArrived(1, 1, 2, 1))
    cluster.measured({1: 50}, {1: (1, 0.1)})
    cluster.tell(CallsSucceeded(1, 1, 0, 1, 0.001))
    first = cluster.measured({1: 120}, {1: (2, 0.001)})
    assert of(MeasureWorkers, first) == [MeasureWorkers(PATIENCE_S)]
    assert cluster.rules.workers[1].doomed is None
    # It has had its time to end by itself.
    cluster.measured({1: 120}, {1: (2, 0.051)})
    assert cluster.rules.workers[1].doomed == (2, Ended.MEMORY)


def test_far_above_the_limit_there_is_no_patience() -> None:
    cluster = Cluster(WorkerLimits(100 * MIB, 0.1, 0), size=1)
    cluster.tell(BatchArrived(1, 1, 1, 1))
    cluster.measured({1: 160}, {1: (1, 0.001)})
    assert cluster.rules.workers[1].doomed == (1, Ended.MEMORY)


def test_workers_that_grow_fast_are_looked_at_soon() -> None:
    cluster = Cluster(WorkerLimits(1000 * MIB, 0.1, 0), size=1)
    assert of(MeasureWorkers, cluster.tell(BatchArrived(1, 1, 1, 1))) == [MeasureWorkers(0.02)]
    assert of(MeasureWorkers, cluster.measured({1: 100}, {1: (1, 0.1)}, passed_s=60)) == [MeasureWorkers(0.1)]
    # 400 MiB in 0.1 s: 800 MiB, four fifths of the limit, are 0.075 s away.
    (soon,) = of(MeasureWorkers, cluster.measured({1: 500}, {1: (1, 0.2)}))
    assert soon.seconds == pytest.approx(0.0375)
    (later,) = of(MeasureWorkers, cluster.measured({1: 500}, {1: (1, 0.3)}))
    assert later.seconds == 0.1


def test_a_machine_whose_memory_goes_fast_is_looked_at_soon() -> None:
    cluster = Cluster(WorkerLimits(0, 0.1, 0), size=1)
    cluster.tell(BatchArrived(1, 1, 1, 1))
    cluster.measured({1: 100}, {1: (1, 0.1)}, 500, passed_s=60)
    (soon,) = of(MeasureWorkers, cluster.measured({1: 200}, {1: (1, 0.2)}, 100))
    assert soon.seconds == pytest.approx(0.0125)  # 400 MiB in 0.1 s: 100 MiB are gone in 0.025 s.
    (later,) = of(MeasureWorkers, cluster.measured({1: 200}, {1: (1, 0.3)}, 100))
    assert later.seconds == 0.1


def test_nothing_is_looked_at_while_nothing_runs() -> None:
    cluster = Cluster(WorkerLimits(1000 * MIB, 0.1, 0), size=1)
    cluster.tell(BatchArrived(1, 1, 1, 1))
    cluster.tell(CallsSucceeded(1, 1, 0, 1, 0.1))
    assert not cluster.measured({1: 100}, {1: (1, 0.1)})


def test_an_old_worker_ends_its_call_first() -> None:
    cluster = Cluster(WorkerLimits(0, 0.1, 0), size=1)
    cluster.tell(BatchArrived(1, 1, 1, 1))
    assert not of(RetireWorker, cluster.measured({1: 1}, {1: (1, 0.1)}, aged=(1,)))
    done = cluster.tell(CallsSucceeded(1, 1, 0, 1, 0.1))
    assert of(MeasureWorkers, done) == [MeasureWorkers(0.0)]
    assert of(RetireWorker, cluster.measured({1: 1}, {1: (1, 0.1)}, aged=(1,))) == [RetireWorker(1)]


def test_what_waiting_calls_of_spent_workers_wait_for_gets_workers() -> None:
    """A concurrent worker that has had its calls, all of which wait: what they wait for must not wait for their end."""
    cluster = Cluster(WorkerLimits(0, 0.1, 1), size=1, concurrency=2)
    assert of(AddWorker, cluster.tell(BatchArrived(1, 1, 1, 1))) == [AddWorker(concurrent=True)]
    assert of(LeaseCalls, cluster.tell(WorkerJoined(2, True)))
    added = cluster.tell(BatchArrived(2, 1, 1, 1)) + cluster.tell(WorkerPaused(2, 1, 2, 0.0, (2,)))
    assert of(AddWorker, added) == [AddWorker(concurrent=True)]
    assert of(LeaseCalls, cluster.tell(WorkerJoined(3, True)))
