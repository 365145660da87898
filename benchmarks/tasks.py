"""What is run, the same for everybody: plain functions, and tasks made of them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pynenc import Pynenc

app = Pynenc("benchmarks")

LARGE_COUNT = 12_500_000
LARGE_BYTES = 8 * LARGE_COUNT
"""What the large workloads send: an array of 100 MB."""


def noop(x: int) -> int:
    """Nothing but the way there and back."""
    return x


def burn(seconds: float) -> float:
    """Keep a processor busy for so long, by its own clock."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return seconds


def gate(path: str) -> str:
    """Hold a worker until a file is there."""
    while not Path(path).exists():
        time.sleep(0.01)
    return path


def fibonacci(n: int) -> int:
    """Each call makes two calls and waits for them."""
    if n < 2:
        return n
    smaller, small = fibonacci_task(n - 2), fibonacci_task(n - 1)
    return smaller.result + small.result


def total(values: Any) -> float:
    """Read a whole array."""
    return float(values.sum())


def filled(value: float) -> Any:
    """Make a large array."""
    import numpy as np

    return np.full(LARGE_COUNT, value)


def total_behind(path: str, values: Any) -> float:
    """Read a whole array, and hold it and the worker until a file is there."""
    found = float(values.sum())
    Path(f"{path}.{os.getpid()}").touch()
    gate(path)
    return found


fibonacci_task = app.task(fibonacci)
noop_task = app.task(noop)
burn_task = app.task(burn)
gate_task = app.task(gate)
total_task = app.task(total)
filled_task = app.task(filled)
total_behind_task = app.task(total_behind)
