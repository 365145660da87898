"""Tasks of which many calls run at once in one worker."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from pathlib import Path

from pynenc import ConcurrencyControlType
from pynenc.exceptions import TaskTimeoutError
from tests.rules import append
from tests.tasks import app

MEET_S = 30.0
"""How long calls wait for each other before a test fails."""

here = 0
most = 0
arrived = 0
everybody = asyncio.Event()
barrier = threading.Barrier(4)
lock = threading.Lock()


@app.task
async def meet(count: int) -> int:
    """Goes on when so many calls run in this process."""
    global arrived
    arrived += 1
    if arrived == count:
        everybody.set()
    await asyncio.wait_for(everybody.wait(), MEET_S)
    return os.getpid()


@app.task(threads_per_worker=4)
def meet_in_threads() -> int:
    barrier.wait(MEET_S)
    return os.getpid()


@app.task(async_concurrency=3)
async def be_counted(x: int) -> int:
    """The most calls that ran at once up to now."""
    global here, most
    here += 1
    most = max(most, here)
    for _ in range(5):
        await asyncio.sleep(0.002)
    here -= 1
    return most


@app.task(threads_per_worker=3)
def be_counted_in_threads(x: int) -> int:
    global here, most
    with lock:
        here += 1
        most = max(most, here)
    time.sleep(0.01)
    with lock:
        here -= 1
    return most


@app.task(running_concurrency=ConcurrencyControlType.TASK, max_running=2)
async def at_most_two(x: int) -> int:
    return await be_here()


@app.task(running_concurrency=ConcurrencyControlType.KEYS, key_arguments=("host",))
async def one_per_host(host: str, x: int) -> int:
    return await be_here()


async def be_here() -> int:
    global here, most
    here += 1
    most = max(most, here)
    await asyncio.sleep(0.005)
    here -= 1
    return most


@app.task(running_concurrency=ConcurrencyControlType.TASK)
async def countdown(x: int) -> int:
    """Waits for a call of its own key."""
    return 0 if x == 0 else 1 + await countdown(x - 1)


@app.task(running_concurrency=ConcurrencyControlType.TASK, threads_per_worker=2)
def countdown_in_threads(x: int) -> int:
    return 0 if x == 0 else 1 + countdown_in_threads(x - 1).result


@app.task
async def fibonacci(n: int) -> int:
    if n < 2:
        return n
    one, other = fibonacci(n - 1), fibonacci(n - 2)
    return await one + await other


@app.task
async def fibonacci_blocking(n: int) -> int:
    """Holds its event loop up, as one should not."""
    if n < 2:
        return n
    return sum(fibonacci_blocking.parallelize([(n - 1,), (n - 2,)]).results)


@app.task(threads_per_worker=2)
def fibonacci_in_threads(n: int) -> int:
    if n < 2:
        return n
    one, other = fibonacci_in_threads(n - 1), fibonacci_in_threads(n - 2)
    return one.result + other.result


@app.task
def plain_above(n: int) -> int:
    return 1 + coroutine_between(n).result


@app.task
async def coroutine_between(n: int) -> int:
    results = await asyncio.gather(*(plain_below(x) for x in range(n)))
    return sum(results)


@app.task
def plain_below(x: int) -> int:
    return x if x == 0 else 1 + coroutine_below(x - 1).result


@app.task(threads_per_worker=2)
def coroutine_below(x: int) -> int:
    return plain_below(x).result


@app.task
async def who_am_i(x: int) -> tuple[str, str, str]:
    await asyncio.sleep(0)
    invocation = who_am_i.invocation
    in_thread = await asyncio.to_thread(lambda: who_am_i.invocation.invocation_id)
    child = who_am_i_below(x)
    await child
    parent = child.parent_invocation
    assert parent is not None
    assert invocation.arguments.kwargs["x"] == x
    return invocation.invocation_id, in_thread, parent.invocation_id


@app.task
async def who_am_i_below(x: int) -> None:
    pass


@app.task
async def stay(directory: str, name: str) -> int:
    """Stays until it is cancelled, or a file is there; says when it begins and when it is cancelled."""
    append(f"{directory}/log", f"{name}-begins")
    try:
        while not Path(directory, name).exists():
            await asyncio.sleep(0.005)
    except asyncio.CancelledError:
        append(f"{directory}/log", f"{name}-cancelled")
        await asyncio.sleep(0)
        append(f"{directory}/log", f"{name}-cleaned-up")
        raise
    return os.getpid()


@app.task(threads_per_worker=4)
def stay_in_thread(directory: str, name: str) -> int:
    append(f"{directory}/log", f"{name}-begins")
    while not Path(directory, name).exists():
        time.sleep(0.005)
    return os.getpid()


@app.task(timeout=0.3)
async def stay_for_a_while(directory: str, name: str) -> int:
    return await stay.func(directory, name)


@app.task(timeout=0.3, max_retries=1, retry_for=(TaskTimeoutError,))
async def stay_twice(directory: str, name: str) -> int:
    return await stay.func(directory, name)


@app.task(timeout=0.3)
async def will_not_end(directory: str) -> None:
    """Takes no notice of being cancelled."""
    while not Path(directory, "end").exists():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            append(f"{directory}/log", "cancelled")


@app.task(timeout=0.3)
async def hold_up_the_loop() -> None:
    time.sleep(MEET_S)


@app.task(timeout=0.3)
async def hold_up_the_process() -> None:
    """Neither lets other coroutines run nor other threads."""
    re.match("(a+)+$", "a" * 60 + "b")


@app.task(timeout=0.3, threads_per_worker=3)
def stay_in_thread_for_a_while() -> None:
    time.sleep(MEET_S)


@app.task
async def kill_worker_if(x: int, bad: int, log: str) -> int:
    append(log, x)
    await asyncio.sleep(0.01)
    if x == bad:
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(0.05)
    return x


@app.task(rerun_on_worker_loss=False)
async def kill_worker_once(x: int) -> int:
    await asyncio.sleep(0.01)
    if x == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(MEET_S)
    return x


@app.task(max_retries=2, retry_for=(ConnectionError,))
async def fail_at_first(log: str, times: int) -> int:
    await asyncio.sleep(0)
    if append(log, "tried") < times:
        raise ConnectionResetError("not yet")
    return fail_at_first.invocation.num_retries


@app.task
async def leave(how: str) -> None:
    await asyncio.sleep(0)
    raise {"exit": SystemExit, "interrupt": KeyboardInterrupt, "cancel": asyncio.CancelledError}[how]("by itself")


@app.task(threads_per_worker=2)
def leave_thread() -> None:
    raise SystemExit("by itself")


@app.task
async def length(data: bytes, more: bytes = b"") -> int:
    return len(data) + len(more)


@app.task
async def many_bytes(count: int) -> bytes:
    return b"x" * count


@app.task
async def call_itself(x: int) -> int:
    return await call_itself(x)


@app.task
async def stray(directory: str) -> str:
    """Ends while something that it has begun still waits for a call."""
    background = asyncio.ensure_future(stay(directory, "child").async_result())
    await asyncio.sleep(0)
    strays.add(background)
    return "ended"


strays: set[asyncio.Future[int]] = set()


@app.task
async def await_stay(directory: str, name: str) -> int:
    return await stay(directory, name)


@app.task(async_concurrency=2)
async def be_counted_stay(directory: str, name: str) -> int:
    return await stay.func(directory, name)
