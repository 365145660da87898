"""The workloads. Each gives one figure for one executor, in a process of its own; all results are checked."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import executors, tasks
from benchmarks.executors import EXECUTORS, WORKERS


def warm(executor: Any) -> None:
    """Have all processes started and the functions known."""
    for value in range(200):
        assert executor.call(tasks.noop, value) == value


def round_trip(name: str) -> float:
    """Seconds from a single no-op call to its result, median."""
    executor = EXECUTORS[name]()
    try:
        warm(executor)
        took = []
        for value in range(1_000):
            began = time.perf_counter()
            executor.call(tasks.noop, value)
            took.append(time.perf_counter() - began)
        return statistics.median(took)
    finally:
        executor.close()


def single_calls(name: str, count: int = 20_000) -> float:
    """Seconds for 20,000 individual calls and then all their results."""
    executor = EXECUTORS[name]()
    try:
        warm(executor)
        values = list(range(count))
        began = time.perf_counter()
        results = executor.calls(tasks.noop, values)
        took = time.perf_counter() - began
        assert results == values
        return took
    finally:
        executor.close()


def bulk_map(name: str, count: int = 1_000_000) -> float:
    """Seconds for a million no-op calls at once, all results in order, at the best chunk size."""
    executor = EXECUTORS[name]()
    try:
        warm(executor)
        values = list(range(count))
        best = float("inf")
        for chunk in [one for one in executor.chunks if one >= 1_000] or [0] * 3:
            began = time.perf_counter()
            results = executor.map(tasks.noop, values, chunk)
            best = min(best, time.perf_counter() - began)
            assert results == values
        return best
    finally:
        executor.close()


def _burn(name: str, seconds: list[float], chunks: tuple[int, ...]) -> float:
    executor = EXECUTORS[name]()
    try:
        if name != "bare":
            warm(executor)
        best = float("inf")
        for chunk in [one for one in executor.chunks if one in chunks] or [0]:
            began = time.perf_counter()
            results = executor.map(tasks.burn, seconds, chunk)
            best = min(best, time.perf_counter() - began)
            assert results == seconds
        return best
    finally:
        executor.close()


def long_calls(name: str) -> float:
    """Seconds for 64 calls of 50 ms CPU."""
    return _burn(name, [0.05] * 64, (1,))


def short_calls(name: str) -> float:
    """Seconds for 5,000 calls of 1 ms CPU."""
    return _burn(name, [0.001] * 5_000, (1, 50))


def skewed_tail(name: str) -> float:
    """Makespan over the lower bound: 192 calls of 2 ms, then eight of 400 ms."""
    seconds = [0.002] * 192 + [0.4] * 8
    return _burn(name, seconds, (1, 50)) / (sum(seconds) / WORKERS)


COLD = {
    "pynenc": "from jobs import app, noop; app.conf.num_workers = 2; assert noop(1).result == 1",
    "Pool": "from benchmarks.tasks import noop; from multiprocessing import get_context\n"
    "if __name__ == '__main__':\n p = get_context('fork').Pool(2); assert p.apply(noop, (1,)) == 1; p.close(); p.join()",
    "ProcessPoolExecutor": "fork",
    "ProcessPoolExecutor(spawn)": "spawn",
    "joblib": "from benchmarks.tasks import noop; from joblib import Parallel, delayed\n"
    "assert Parallel(2)([delayed(noop)(1), delayed(noop)(2)]) == [1, 2]",
}
_FUTURES = """from multiprocessing import get_context
from concurrent.futures import ProcessPoolExecutor
from plain import noop
if __name__ == '__main__':
    with ProcessPoolExecutor(2, get_context({method!r})) as pool:
        assert pool.submit(noop, 1).result() == 1
"""


def cold_start(name: str) -> float:
    """Seconds of a whole process that makes one call on two workers and exits."""
    if name not in COLD:
        raise ImportError(f"{name} has no cold start here")
    program = COLD[name]
    with tempfile.TemporaryDirectory() as directory:
        # Each gets a module with nothing else in it; that of the peers imports nothing, not even pynenc.
        noop = "def noop(x):\n    return x\n"
        Path(directory, "plain.py").write_text(noop)
        Path(directory, "jobs.py").write_text(f"from pynenc import Pynenc\napp = Pynenc()\n@app.task\n{noop}")
        text = _FUTURES.format(method=program) if program in ("fork", "spawn") else program
        script = Path(directory, "script.py")
        script.write_text(text.replace("from benchmarks.tasks import noop;", "from plain import noop;"))
        took = []
        for _ in range(6):
            began = time.perf_counter()
            subprocess.run([sys.executable, str(script)], cwd=directory, check=True)
            took.append(time.perf_counter() - began)
    return statistics.median(took[1:])


def _nested(name: str, workers: int) -> float:
    executors.WORKERS = workers
    executor = EXECUTORS[name]()
    try:
        if not hasattr(executor, "fibonacci"):
            raise ImportError(f"{name} has no calls that wait for calls")
        assert executor.fibonacci(4) == 3
        began = time.perf_counter()
        assert executor.fibonacci(12) == 144
        return time.perf_counter() - began
    finally:
        executor.close()


def nested_one_worker(name: str) -> float:
    """Seconds for Fibonacci of 12 by 465 calls that wait for each other, with one worker."""
    return _nested(name, 1)


def nested_two_workers(name: str) -> float:
    """The same with two workers."""
    return _nested(name, 2)


LARGE_ROUNDS = 8
SHARING_CALLS = 32


def _large(name: str, use: Callable[[Any], float]) -> float:
    executor = EXECUTORS[name]()
    if not hasattr(executor, "shared"):
        raise ImportError(f"{name} is not measured with large values")
    try:
        warm(executor)
        return use(executor)
    finally:
        executor.close()


def large_argument(name: str) -> float:
    """Seconds for a call that reads 100 MB, a fresh array each time; median."""
    import numpy as np

    def use(executor: Any) -> float:
        took = []
        for number in range(LARGE_ROUNDS):
            values = np.full(tasks.LARGE_COUNT, float(number))
            began = time.perf_counter()
            assert executor.call(tasks.total, values) == number * tasks.LARGE_COUNT
            took.append(time.perf_counter() - began)
        return statistics.median(took[2:])

    return _large(name, use)


def large_result(name: str) -> float:
    """Seconds for a call that makes 100 MB, which are read; median."""

    def use(executor: Any) -> float:
        took = []
        for number in range(LARGE_ROUNDS):
            began = time.perf_counter()
            assert executor.call(tasks.filled, float(number)).sum() == number * tasks.LARGE_COUNT
            took.append(time.perf_counter() - began)
        return statistics.median(took[2:])

    return _large(name, use)


def shared_array(name: str) -> float:
    """Seconds for 32 calls that read the same 100 MB; the best of three, each with another array."""
    import numpy as np

    def use(executor: Any) -> float:
        took = []
        for number in range(3):
            values = np.full(tasks.LARGE_COUNT, float(number))
            began = time.perf_counter()
            results = executor.shared(tasks.total, values, SHARING_CALLS)
            took.append(time.perf_counter() - began)
            assert results == [number * tasks.LARGE_COUNT] * SHARING_CALLS
        return min(took)

    return _large(name, use)


def shared_growth(name: str) -> float:
    """What all processes together take more while calls share 100 MB, as a multiple of these."""
    import numpy as np

    values = np.ones(tasks.LARGE_COUNT)

    def use(gate: Path) -> float:
        before = _pss_of_all()
        calls = tasks.total_behind_task.parallelize([(str(gate), values)] * SHARING_CALLS)
        while len(list(gate.parent.glob("gate.*"))) < WORKERS:
            time.sleep(0.01)
        used = _pss_of_all() - before
        gate.touch()
        assert list(calls.results) == [float(tasks.LARGE_COUNT)] * SHARING_CALLS
        return used / tasks.LARGE_BYTES

    with tempfile.TemporaryDirectory() as directory:
        tasks.app.conf.num_workers = WORKERS
        for warmed in tasks.total_task.parallelize([(np.ones(10),)] * WORKERS):
            warmed.wait()
        try:
            return use(Path(directory, "gate"))
        finally:
            tasks.app.close()


def _pss_of_all() -> float:
    """The memory of this process, the supervisor and the workers, what they share counted once."""
    import psutil

    report = tasks.app.report()
    assert report is not None
    processes = [None, report["pid"], *(worker["pid"] for worker in report["workers"])]
    return float(sum(psutil.Process(pid).memory_full_info().pss for pid in processes))


def _blocked(count: int, use: Callable[[Path], float]) -> float:
    """Queue no-op calls behind workers that are held at a gate."""
    import psutil  # noqa: F401  (imported before memory is looked at)

    with tempfile.TemporaryDirectory() as directory:
        gate = Path(directory, "gate")
        tasks.app.conf.num_workers = WORKERS
        tasks.noop_task(1).result  # noqa: B018
        held = [tasks.gate_task(str(gate)) for _ in range(WORKERS)]
        try:
            return use(gate)
        finally:
            gate.touch()
            for invocation in held:
                invocation.wait()
            tasks.app.close()


def worker_memory(name: str) -> float:
    """Bytes of an idle worker (PSS)."""
    import psutil

    tasks.app.conf.num_workers = WORKERS
    tasks.noop_task(1).result  # noqa: B018
    report = tasks.app.report()
    assert report is not None
    used = [psutil.Process(worker["pid"]).memory_full_info().pss for worker in report["workers"]]
    tasks.app.close()
    return float(max(used))


def supervisor_memory(name: str) -> float:
    """Bytes of the supervisor with a million calls queued (PSS)."""

    def use(gate: Path) -> float:
        import psutil

        group = tasks.noop_task.parallelize([(value,) for value in range(1_000_000)])
        report = tasks.app.report()
        assert report is not None
        assert report["unfinished"] >= 1_000_000
        used = psutil.Process(report["pid"]).memory_full_info().pss
        gate.touch()
        assert group.wait()
        return float(used)

    return _blocked(1_000_000, use)


def client_memory(name: str) -> float:
    """Bytes of the client for each invocation of a group that nobody looks at."""

    def use(gate: Path) -> float:
        import psutil

        values = [(value,) for value in range(1_000_000)]
        tasks.noop_task.parallelize(values[:1000])
        before = psutil.Process().memory_full_info().uss
        group = tasks.noop_task.parallelize(values)
        used = psutil.Process().memory_full_info().uss - before
        assert len(group) == 1_000_000
        gate.touch()
        assert group.wait()
        return used / len(group)

    return _blocked(1_000_000, use)


def disk(name: str) -> float:
    """Bytes of the database for each no-op call of a bulk map."""
    from pynenc.client.paths import paths_of

    tasks.app.conf.num_workers = WORKERS
    count = 1_000_000
    assert sum(tasks.noop_task.parallelize([(value,) for value in range(count)]).results) == count * (count - 1) // 2
    database = Path(paths_of(tasks.app.conf.state_path, tasks.app.app_id).database)
    tasks.app.close()
    return sum(path.stat().st_size for path in database.parent.glob(f"{database.name}*")) / count


def queued_flat(name: str, sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)) -> float:
    """Cost per call with 10 ** 7 calls queued over the cost with the cheapest smaller number from 10 ** 4 on."""
    costs = {}
    for size in sizes:

        def use(gate: Path, size: int = size) -> float:
            began = time.perf_counter()
            group = tasks.noop_task.parallelize((value,) for value in range(size))
            gate.touch()
            total = sum(group.results)
            took = time.perf_counter() - began
            assert total == size * (size - 1) // 2
            return took / size

        costs[size] = min(_blocked(size, use) for _ in range(3 if size <= 1_000_000 else 1))
        print(f"queued {size:>10,}: {costs[size] * 1e6:.2f} us per call", file=sys.stderr)
    return costs[sizes[-1]] / min(costs[size] for size in sizes[1:-1])


WORKLOADS: dict[str, Callable[[str], float]] = {
    function.__name__: function
    for function in (
        round_trip,
        single_calls,
        bulk_map,
        long_calls,
        short_calls,
        skewed_tail,
        cold_start,
        nested_one_worker,
        nested_two_workers,
        worker_memory,
        supervisor_memory,
        client_memory,
        disk,
        queued_flat,
        large_argument,
        large_result,
        shared_array,
        shared_growth,
    )
}
OURS_ALONE = ("worker_memory", "supervisor_memory", "client_memory", "disk", "queued_flat", "shared_growth")
