"""Tasks with large arguments and results."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.tasks import app

LARGE = 1 << 20
"""Bytes that go through shared memory."""


@app.task
def total(values: Any, plus: float = 0.0) -> float:
    return float(np.sum(values)) + plus


@app.task
def total_of(common: Any, own: Any) -> float:
    return float(np.sum(common)) + float(np.sum(own))


@app.task
def filled(count: int, value: float) -> Any:
    return np.full(count, value)


@app.task
def doubled(values: Any) -> Any:
    return values * 2


@app.task
def same(value: Any) -> Any:
    return value


@app.task
def seen(value: Any) -> tuple[str, int, bool]:
    """The type, the size and whether it can be changed."""
    return type(value).__name__, len(value), not memoryview(value).readonly


@app.task
def change(values: Any) -> float:
    values[0] = -1.0
    return float(values[0])


@app.task(copy_arguments=True)
def change_copy(values: Any, other: Any = None) -> float:
    values[0] -= 1.0
    if other is not None:
        other[0] -= 1.0
    return float(values[0])


@app.task(copy_arguments=True)
async def change_copy_in_loop(values: Any) -> float:
    values[0] -= 1.0
    return float(values[0])


@app.task
async def total_in_loop(values: Any, plus: float = 0.0) -> float:
    return float(np.sum(values)) + plus


@app.task
def total_behind(gate: str, values: Any) -> float:
    while not Path(gate).exists():
        time.sleep(0.005)
    return float(np.sum(values))


@app.task
def die_once_with(mark: str, values: Any) -> Any:
    """Write a large result and die before it is shipped, the first time."""
    if not Path(mark).exists():
        Path(mark).touch()
        return KillsWhenPickled(values * 2)
    return values * 2


class KillsWhenPickled:
    """Kills its process when all but itself is pickled."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __reduce__(self) -> tuple[Any, ...]:
        return list, ([self.values, Kills()],)


class Kills:
    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


@app.task
def total_by_child(values: Any) -> float:
    """Pass a large argument on to another call, and put one."""
    with app.put(values + 1) as reference:
        return total(values).result + total(reference).result


@app.task(call_result_cache=True)
def cached_total(values: Any) -> float:
    return float(np.sum(values))


@app.task(call_result_cache=True)
def cached_double(values: Any, log: str) -> Any:
    with open(log, "a") as file:
        file.write("x")
    return values * 2


@app.task
def circle(values: Any, many: bool) -> Any:
    return list(circle.parallelize([(values, many)]).results) if many else circle(values, many).result


@app.task(threads_per_worker=4)
def doubled_in_thread(values: Any) -> Any:
    return values * 2
