"""What is run, the same for everybody: plain functions, and tasks made of them."""

from __future__ import annotations

import time
from pathlib import Path

from pynenc import Pynenc

app = Pynenc("benchmarks")


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


fibonacci_task = app.task(fibonacci)
noop_task = app.task(noop)
burn_task = app.task(burn)
gate_task = app.task(gate)
