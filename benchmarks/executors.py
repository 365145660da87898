"""The executors that are compared, behind one small interface. Each is used as its documentation advises for speed."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Protocol

from benchmarks import tasks

WORKERS = 2


class Executor(Protocol):
    """What a workload needs."""

    def call(self, func: Callable[[Any], Any], value: Any) -> Any:
        """One call, and its result."""

    def calls(self, func: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        """A call for each value, one by one, then all results."""

    def map(self, func: Callable[[Any], Any], values: Sequence[Any], chunk: int) -> list[Any]:
        """All values at once; `chunk` for those that must be told."""

    def close(self) -> None:
        """End its processes."""


class PynencExecutor:
    """Ours, durable throughout. It takes no chunk size."""

    chunks: tuple[int, ...] = ()

    def __init__(self) -> None:
        tasks.app.conf.num_workers = WORKERS
        self._tasks = {task.func: task for task in tasks.app.tasks.values()}

    def call(self, func: Callable[[Any], Any], value: Any) -> Any:
        return self._tasks[func](value).result

    def calls(self, func: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        task = self._tasks[func]
        return [invocation.result for invocation in [task(value) for value in values]]

    def map(self, func: Callable[[Any], Any], values: Sequence[Any], chunk: int) -> list[Any]:
        return list(self._tasks[func].parallelize(zip(values)).results)

    def shared(self, func: Callable[[Any], Any], value: Any, count: int) -> list[Any]:
        return self.map(func, [value] * count, 0)

    def fibonacci(self, n: int) -> int:
        return tasks.fibonacci_task(n).result

    def close(self) -> None:
        tasks.app.close()


class PoolExecutor:
    """`multiprocessing.Pool`."""

    chunks = (1, 50, 1_000, 10_000, 60_000, 250_000)

    def __init__(self) -> None:
        self._pool = multiprocessing.get_context("fork").Pool(WORKERS)

    def call(self, func: Callable[[Any], Any], value: Any) -> Any:
        return self._pool.apply(func, (value,))

    def calls(self, func: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        return [result.get() for result in [self._pool.apply_async(func, (value,)) for value in values]]

    def map(self, func: Callable[[Any], Any], values: Sequence[Any], chunk: int) -> list[Any]:
        return self._pool.map(func, values, chunk)

    def shared(self, func: Callable[[Any], Any], value: Any, count: int) -> list[Any]:
        return self._pool.map(func, [value] * count, 1)

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


class FuturesExecutor:
    """`concurrent.futures.ProcessPoolExecutor`."""

    chunks = (1, 50, 1_000, 10_000, 60_000, 250_000)

    def __init__(self, method: str) -> None:
        self._pool = ProcessPoolExecutor(WORKERS, multiprocessing.get_context(method))

    def call(self, func: Callable[[Any], Any], value: Any) -> Any:
        return self._pool.submit(func, value).result()

    def calls(self, func: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        return [future.result() for future in [self._pool.submit(func, value) for value in values]]

    def map(self, func: Callable[[Any], Any], values: Sequence[Any], chunk: int) -> list[Any]:
        return list(self._pool.map(func, values, chunksize=chunk))

    def close(self) -> None:
        self._pool.shutdown()


class JoblibExecutor:
    """joblib with loky; it finds its batch sizes itself."""

    chunks: tuple[int, ...] = ()

    def __init__(self) -> None:
        from joblib import Parallel, delayed

        self._delayed = delayed
        self._parallel = Parallel(n_jobs=WORKERS)
        self._parallel.__enter__()

    def call(self, func: Callable[[Any], Any], value: Any) -> Any:
        return self._parallel([self._delayed(func)(value)])[0]

    def calls(self, func: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        return self.map(func, values, 0)

    def map(self, func: Callable[[Any], Any], values: Sequence[Any], chunk: int) -> list[Any]:
        return list(self._parallel(self._delayed(func)(value) for value in values))

    def shared(self, func: Callable[[Any], Any], value: Any, count: int) -> list[Any]:
        return self.map(func, [value] * count, 0)  # It finds out by itself, and writes one file.

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        self._parallel.__exit__(None, None, None)
        get_reusable_executor().shutdown()


class MpireExecutor:
    """mpire."""

    chunks = (1, 1_000, 10_000, 60_000, 250_000)

    def __init__(self) -> None:
        from mpire import WorkerPool

        # Two pools: one that has served `apply` does not serve `map` any more.
        self._pool = WorkerPool(n_jobs=WORKERS, keep_alive=True)
        self._maps = WorkerPool(n_jobs=WORKERS, keep_alive=True)

    def call(self, func: Callable[[Any], Any], value: Any) -> Any:
        return self._pool.apply(func, (value,))

    def calls(self, func: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        return [result.get() for result in [self._pool.apply_async(func, (value,)) for value in values]]

    def map(self, func: Callable[[Any], Any], values: Sequence[Any], chunk: int) -> list[Any]:
        return list(self._maps.map(func, values, chunk_size=chunk))

    def close(self) -> None:
        self._pool.terminate()
        self._maps.terminate()


class DaskExecutor:
    """dask.distributed on this machine."""

    chunks: tuple[int, ...] = ()

    def __init__(self) -> None:
        from distributed import Client

        self._client = Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, silence_logs=50)

    def call(self, func: Callable[[Any], Any], value: Any) -> Any:
        return self._client.submit(func, value, pure=False).result()

    def calls(self, func: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        return list(self._client.gather([self._client.submit(func, value, pure=False) for value in values]))

    def map(self, func: Callable[[Any], Any], values: Sequence[Any], chunk: int) -> list[Any]:
        return list(self._client.gather(self._client.map(func, values, pure=False)))

    def shared(self, func: Callable[[Any], Any], value: Any, count: int) -> list[Any]:
        scattered = self._client.scatter(value, broadcast=True)
        return list(self._client.gather([self._client.submit(func, scattered, pure=False) for _ in range(count)]))

    def fibonacci(self, n: int) -> int:
        return int(self._client.submit(_dask_fibonacci, n, pure=False).result())

    def close(self) -> None:
        self._client.shutdown()


class RayExecutor:
    """ray on this machine."""

    chunks: tuple[int, ...] = ()

    def __init__(self) -> None:
        import ray

        self._ray = ray
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level=50)
        self._remote: dict[Callable[[Any], Any], Any] = {}

    def _function(self, func: Callable[[Any], Any]) -> Any:
        if func not in self._remote:
            self._remote[func] = self._ray.remote(func)
        return self._remote[func]

    def call(self, func: Callable[[Any], Any], value: Any) -> Any:
        return self._ray.get(self._function(func).remote(value))

    def calls(self, func: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        remote = self._function(func)
        return list(self._ray.get([remote.remote(value) for value in values]))

    def map(self, func: Callable[[Any], Any], values: Sequence[Any], chunk: int) -> list[Any]:
        return self.calls(func, values)

    def shared(self, func: Callable[[Any], Any], value: Any, count: int) -> list[Any]:
        return self.calls(func, [self._ray.put(value)] * count)

    def fibonacci(self, n: int) -> int:
        return int(self._ray.get(self._function(_ray_fibonacci).remote(n)))

    def close(self) -> None:
        self._ray.shutdown()


class HueyExecutor:
    """huey with SQLite, the durable peer, with two consumer processes."""

    chunks: tuple[int, ...] = ()

    def __init__(self) -> None:
        import subprocess
        import sys

        self._directory = tempfile.TemporaryDirectory()
        os.environ["BENCHMARK_HUEY"] = os.path.join(self._directory.name, "huey.db")
        from benchmarks import huey_tasks

        self._tasks = {tasks.noop: huey_tasks.noop, tasks.burn: huey_tasks.burn}
        consumer = [sys.executable, "-m", "huey.bin.huey_consumer", "benchmarks.huey_tasks.huey"]
        options = ["-w", str(WORKERS), "-k", "process", "-d", "0.001", "-m", "0.01", "-n", "-q"]
        self._consumer = subprocess.Popen([*consumer, *options], stderr=subprocess.DEVNULL)

    def call(self, func: Callable[[Any], Any], value: Any) -> Any:
        return self._tasks[func](value).get(blocking=True, backoff=1, max_delay=0.001)

    def calls(self, func: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        results = [self._tasks[func](value) for value in values]
        return [result.get(blocking=True, backoff=1, max_delay=0.001) for result in results]

    def map(self, func: Callable[[Any], Any], values: Sequence[Any], chunk: int) -> list[Any]:
        return self.calls(func, values)

    def close(self) -> None:
        self._consumer.terminate()
        self._consumer.wait()
        self._directory.cleanup()


class BareExecutor:
    """Two processes that take turns at one list, with no executor at all: what cannot be beaten."""

    chunks: tuple[int, ...] = ()

    def call(self, func: Callable[[Any], Any], value: Any) -> Any:
        return func(value)

    def calls(self, func: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        return self.map(func, values, 0)

    def map(self, func: Callable[[Any], Any], values: Sequence[Any], chunk: int) -> list[Any]:
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=_run_all, args=(func, values[start::WORKERS])) for start in range(WORKERS)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return list(values)

    def close(self) -> None:
        """Its processes have ended."""


def _dask_fibonacci(n: int) -> int:
    from distributed import worker_client

    if n < 2:
        return n
    with worker_client() as client:
        calls = [client.submit(_dask_fibonacci, smaller, pure=False) for smaller in (n - 2, n - 1)]
        return sum(client.gather(calls))


def _ray_fibonacci(n: int) -> int:
    import ray

    if n < 2:
        return n
    remote = ray.remote(_ray_fibonacci)
    return sum(ray.get([remote.remote(n - 2), remote.remote(n - 1)]))


def _run_all(func: Callable[[Any], Any], values: Sequence[Any]) -> None:
    for value in values:
        func(value)


EXECUTORS: dict[str, Callable[[], Any]] = {
    "pynenc": PynencExecutor,
    "bare": BareExecutor,
    "Pool": PoolExecutor,
    "ProcessPoolExecutor": lambda: FuturesExecutor("fork"),
    "ProcessPoolExecutor(spawn)": lambda: FuturesExecutor("spawn"),
    "joblib": JoblibExecutor,
    "mpire": MpireExecutor,
    "dask": DaskExecutor,
    "ray": RayExecutor,
    "huey": HueyExecutor,
}
