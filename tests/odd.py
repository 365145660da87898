"""Tasks for `integration/test_odd_calls.py`."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
import time
from collections import namedtuple
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from pynenc import RetryError
from tests.rules import append
from tests.tasks import app

Row = namedtuple("Row", "x y")


@dataclass(frozen=True)
class NotFound(Exception):
    """An exception on which nothing can be set."""


class Hostile(Exception):
    """An exception that wants to leave the program, whatever is done to it.

    Args:
        when: When it does: as it is "pickled", "read" back, "shown", or asked for its "delay".
        how: What it raises then.
    """

    def __init__(self, when: str, how: type[BaseException] = SystemExit) -> None:
        self.when, self.how = when, how

    def __reduce__(self) -> Any:
        if self.when == "pickled":
            raise self.how(4)
        return (leave, (self.how,)) if self.when == "read" else (Hostile, (self.when, self.how))

    def __str__(self) -> str:
        if self.when == "shown":
            raise self.how(4)
        return "hostile"


def leave(how: type[BaseException]) -> None:
    raise how(4)


class Again(RetryError):
    """Asks for another attempt, and knows of no delay."""

    def __init__(self, delay: Any = None) -> None:
        if delay is not None:
            self.delay = delay


class Impatient(RetryError):
    @property
    def delay(self) -> float:  # type: ignore[override]
        raise SystemExit(4)

    @delay.setter
    def delay(self, _: object) -> None: ...


@app.task
def raise_hostile(when: str, how: type[BaseException] = SystemExit) -> None:
    raise Hostile(when, how)


@app.task
async def raise_hostile_in_loop(when: str, how: type[BaseException] = SystemExit) -> None:
    raise Hostile(when, how)


@app.task(threads_per_worker=2)
def raise_hostile_in_thread(when: str, how: type[BaseException] = SystemExit) -> None:
    raise Hostile(when, how)


RAISE_HOSTILE: dict[str, Any] = {
    "plain": raise_hostile,
    "loop": raise_hostile_in_loop,
    "thread": raise_hostile_in_thread,
}


@app.task
async def raise_again(log: str, kind: str) -> int:
    if append(log, "tried") == 0:
        raise Impatient if kind == "hostile" else Again({"negative": -5.0, "text": "soon", "none": None}[kind])
    return 7


class Shy:
    def __repr__(self) -> str:
        raise SystemExit(4)


@app.task(rerun_on_worker_loss=False)
def die_with(value: Any) -> None:
    os._exit(9)


@app.task
def fail_below(depth: int) -> None:
    if depth:
        fail_below.func(depth - 1)
    raise ValueError("below")


@app.task
def know_itself_in_thread() -> bool:
    """Whether a thread that runs in the context of its call belongs to it."""
    mine = know_itself_in_thread.invocation
    found: list[Any] = []

    def look() -> None:
        found.append(know_itself_in_thread.invocation)
        found.append(same(1).parent_invocation)

    thread = threading.Thread(target=copy_context().run, args=(look,))
    thread.start()
    thread.join()
    return found == [mine, mine]


@app.task(threads_per_worker=2)
def know_itself_beside_others() -> bool:
    mine = know_itself_beside_others.invocation
    found: list[Any] = []
    thread = threading.Thread(
        target=copy_context().run, args=(lambda: found.append(know_itself_beside_others.invocation),)
    )
    thread.start()
    thread.join()
    return found == [mine]


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


@app.task
async def exit_beside(how: str, code: Any = 3) -> str:
    """Has something that it starts leave the program."""

    async def leave() -> None:
        await asyncio.sleep(0)
        raise KeyboardInterrupt if code == "interrupt" else SystemExit(code)

    if how == "gather":
        await asyncio.gather(leave(), asyncio.sleep(0))
    elif how == "group":
        async with asyncio.TaskGroup() as group:
            group.create_task(leave())
    elif how == "task":
        task = asyncio.create_task(leave())
        await asyncio.sleep(60)
        await task
    else:
        asyncio.get_running_loop().call_soon(sys.exit, code)
        await asyncio.sleep(60)
    return "still here"


@app.task
async def exit_beside_while_blocked(above: str) -> float:
    """The same while a coroutine holds the event loop up: this one, or another one."""
    if above == "its own":
        asyncio.get_running_loop().call_soon(sys.exit, 3)
    return wait_in_turns(exit_beside("gather")) if above == "another's" else nap(1.0).result


def wait_in_turns(invocation: Any) -> float:
    """Hold the event loop up until it is known what came of that call, then once more."""
    assert type(invocation.exception) is SystemExit
    return nap(0.01).result


@app.task
async def stop_loop(seconds: float) -> float:
    loop = asyncio.get_running_loop()
    loop.stop()
    await asyncio.sleep(seconds)
    loop.stop()
    blocked = nap(seconds)
    loop.call_soon(loop.stop)
    return blocked.result


@app.task
async def break_loop() -> None:
    """Leave nothing of the event loop that could go on."""
    loop: Any = asyncio.get_running_loop()
    loop._selector.close()
    await asyncio.sleep(60)


@app.task
async def same_after_cancel(x: int) -> int:
    """The first one cancels all others of its loop, also those that have not begun."""
    if x == 0:
        for one in asyncio.all_tasks() - {asyncio.current_task()}:
            one.cancel()
    await asyncio.sleep(0.01)
    return x
