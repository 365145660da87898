"""Tasks for `integration/test_odd_calls.py`."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

from tests.tasks import app

Row = namedtuple("Row", "x y")


@dataclass(frozen=True)
class NotFound(Exception):
    """An exception on which nothing can be set."""


@app.task
def same(x: Any) -> Any:
    return x


@app.task
def add(x: Any, y: Any = 0) -> Any:
    return x + y


@app.task
def fail_first(path: str) -> int:
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) == 1:
        raise KeyError("first")
    return os.path.getsize(path)


@app.task
async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@app.task(threads_per_worker=2)
def sleep_in_thread(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@app.task
def write(values: Any) -> float:
    values[0] = 1.0
    return float(values[0])


@app.task
def apply(func: int, cls: int, self: int = 0) -> int:
    return func + cls + self


@app.task
def raise_frozen() -> None:
    raise NotFound


@app.task(timeout=0.5)
def busy_with_calls(seconds: float) -> int:
    """Makes call after call, so it begins and ends a wait all the time."""
    end, made = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        made += same(1).result
    return made


@app.task(registration_concurrency="ARGUMENTS", rerun_on_worker_loss=False)
def registered_once(x: int) -> int:
    return x


@app.task
def leave_in_lost_directory() -> str:
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
    return "gone"
