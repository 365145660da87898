"""Tasks that take memory, for the tests of limits."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

from pynenc import WorkerMemoryError
from tests.rules import append
from tests.tasks import add, app

FOREVER_S = 60.0
"""What holds its memory for so long is ended, or the test fails."""

MIB = 1 << 20
kept: list[bytearray] = []


def fill(mib: int) -> bytearray:
    """Memory that is really there."""
    return bytearray(b"x") * (mib * MIB)


def touched(mib: int) -> int:
    """Take memory, and keep it until this process is ended."""
    held = fill(mib)
    time.sleep(FOREVER_S)
    return len(held)


@app.task
def hold(mib: int, name: str = "") -> int:
    return touched(mib)


@app.task
def use_and_drop(mib: int) -> int:
    fill(mib)
    return os.getpid()


@app.task
def leak(mib: float) -> int:
    kept.append(bytearray(b"x") * int(mib * MIB))
    return os.getpid()


@app.task(retry_for=(WorkerMemoryError,), max_retries=2)
def hold_at_first(log: str, mib: int) -> int:
    if append(log, "tried") < 2:
        return touched(mib)
    return hold_at_first.invocation.num_retries


@app.task(threads_per_worker=3)
def hold_in_thread(mib: int, log: str) -> str:
    append(log, mib)
    if mib:
        touched(mib)
    return log


@app.task
async def leak_on_loop(mib: float) -> int:
    kept.append(bytearray(b"x") * int(mib * MIB))
    await asyncio.sleep(0)
    return os.getpid()


@app.task
def wait_for_greedy(mib: int) -> int:
    """Waits for a call of its own, which runs on top of it."""
    return hold(mib).result


@app.task
def call_and_wait(x: int) -> int:
    return add(x, 1).result


@app.task
def grow(mib: int, log: str, gate: str) -> int:
    """Take memory step by step, and keep it until a file is there."""
    append(log, "began")
    held = []
    for _ in range(mib // 10):
        held.append(fill(10))
        time.sleep(0.03)  # Slowly enough for whoever looks, on a busy machine, too.
    while not Path(gate).exists():
        time.sleep(0.005)
    return mib


@app.task(rerun_on_worker_loss=False)
def take_at_once(mib: int) -> int:
    return len(fill(mib))


@app.task
def hold_and_die(mib: int) -> None:
    held = fill(mib)
    time.sleep(0.3)  # Long enough to be looked at.
    os.kill(os.getpid(), signal.SIGKILL if held else 0)


@app.task
def pid_and_child(x: int) -> tuple[int, str]:
    """Makes a call and does not wait for it."""
    return os.getpid(), add(x, 1).invocation_id


class Shy:
    """Cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("not for you")


@app.task
def die_with(text: str, numbers: list[int], shy: Shy | None = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def thread_left(seconds: float) -> int:
    """Leaves a thread behind that never ends."""
    threading.Thread(target=time.sleep, args=(FOREVER_S,), daemon=True).start()
    time.sleep(seconds)
    return os.getpid()


@app.task
def hold_until(mib: int, begun: str, path: str) -> int:
    held = fill(mib)
    append(begun, os.getpid())
    while not Path(path).exists():
        time.sleep(0.005)
    return len(held) // MIB
