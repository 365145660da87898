"""The tasks of the chaos run. Each run of a call leaves a line in the ledger before it does anything."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from pynenc import Pynenc, Task

LEDGER = "PYNENC_CHAOS_LEDGER"
"""Names the ledger's file."""

app = Pynenc("chaos")
SURVIVE = {"max_worker_losses": 100_000}


def append(path: str, line: str) -> None:
    """Add a line in one system call, so that no death leaves half of it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


def note(task: Task[..., Any]) -> int:
    """Write down that a call runs; how many attempts it had before."""
    here = task.invocation
    attempt = here.num_retries
    append(os.environ[LEDGER], f"{here.invocation_id} {attempt} {os.getpid()} {time.monotonic()}")
    return attempt


@app.task(**SURVIVE)
def add(x: int, y: int) -> int:
    note(add)
    return x + y


@app.task(**SURVIVE)
def nap(x: int, seconds: float) -> int:
    note(nap)
    time.sleep(seconds)
    return x


@app.task(**SURVIVE)
def grow(x: int, size: int) -> str:
    note(grow)
    return f"{x % 10}" * size


@app.task(**SURVIVE)
def shrink(text: str) -> int:
    note(shrink)
    return len(text)


@app.task(**SURVIVE)
def fibonacci(n: int) -> int:
    note(fibonacci)
    return n if n < 2 else fibonacci(n - 1).result + fibonacci(n - 2).result


@app.task(max_retries=5, retry_for=(ConnectionError,), **SURVIVE)
def flaky(x: int) -> int:
    if note(flaky) < x % 3:
        raise ConnectionResetError(x)
    return x


@app.task(**SURVIVE)
def wrong(x: int) -> int:
    note(wrong)
    raise KeyError(x)


@app.task(**SURVIVE)
async def drowse(x: int) -> int:
    note(drowse)
    await asyncio.sleep(0.005)
    return x


@app.task(rerun_on_worker_loss=False)
def once(x: int) -> int:
    note(once)
    time.sleep(0.001)
    return x
