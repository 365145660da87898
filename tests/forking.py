"""Tasks that fork: in the child they leave in whatever way they are told to."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import threading
from typing import Any

from tests.rules import append
from tests.tasks import add, app

LARGE = 1_000_000


class Odd(Exception):
    """Nobody expects it."""


def leave(how: str) -> Any:
    """What a child does with its call; a result if it returns."""
    ways = {"exit": 0, "exit 3": 3, "exit None": None, "exit words": "a word of the child's"}
    if how in ways:
        sys.exit(ways[how])
    if how == "raise":
        raise Odd("in the child")
    if how == "raise ValueError":
        raise ValueError("the loop of a lease raises it too")
    if how == "os._exit":
        os._exit(5)
    returned = {"return": "child", "return large": bytes(LARGE), "return what cannot be pickled": threading.Lock()}
    return returned[how]


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@app.task
def fork(how: str) -> Any:
    child = os.fork()
    return code_of(child) if child else leave(how)


@app.task
async def fork_in_coroutine(how: str) -> Any:
    await asyncio.sleep(0)
    child = os.fork()
    if child == 0:
        return leave(how)
    return await asyncio.to_thread(code_of, child)


@app.task(threads_per_worker=2)
def fork_in_one_of_many_threads(how: str) -> Any:
    child = os.fork()
    return code_of(child) if child else leave(how)


@app.task
async def fork_beside_the_call(how: str) -> Any:
    """The coroutine that forks is not the call's own."""

    async def forks() -> Any:
        child = os.fork()
        if child == 0 and how == "raise ValueError":
            raise ValueError("with no other frame")
        return child or leave(how)

    child, _ = await asyncio.gather(forks(), asyncio.sleep(0.01))
    return await asyncio.to_thread(code_of, child)


@app.task
async def fork_and_await(ledger: str) -> int:
    """The child awaits on the loop of its parent, on which other calls are."""
    child = os.fork()
    await asyncio.sleep(0)
    append(ledger, "here")
    return await asyncio.to_thread(code_of, child)


@app.task
def fork_at(x: int, fatal: int, how: str, ledger: str) -> int:
    append(ledger, str(x))
    if x == fatal:
        child = os.fork()
        if child == 0:
            leave(how)
        else:
            code_of(child)
    return x


@app.task
async def fork_at_in_coroutine(x: int, fatal: int, how: str, ledger: str) -> int:
    await asyncio.sleep(0.001)
    return fork_at.func(x, fatal, how, ledger)


@app.task(threads_per_worker=8)
def fork_at_in_thread(x: int, fatal: int, how: str, ledger: str) -> int:
    return fork_at.func(x, fatal, how, ledger)


@app.task
def sum_of_those_that_fork(count: int, fatal: int, how: str, ledger: str) -> int:
    """They run on top of this one, which waits for them."""
    return sum(fork_at.parallelize([(x, fatal, how, ledger) for x in range(count)]).results)


def call_from_here(x: int) -> int:
    return sum(add.parallelize([(x, y) for y in range(10)]).results)


@app.task
def call_in_child(x: int) -> int:
    child = os.fork()
    if child == 0:
        os._exit(call_from_here(x))
    return code_of(child)


@app.task(threads_per_worker=2)
def call_in_child_of_thread(x: int) -> int:
    return call_in_child.func(x)


@app.task
async def call_in_child_of_coroutine(x: int) -> int:
    child = os.fork()
    if child == 0:
        os._exit(asyncio.run(await_here(x)))
    return await asyncio.to_thread(code_of, child)


async def await_here(x: int) -> int:
    return await add(x, 1)


def put_in(queue: Any, x: int) -> None:
    queue.put(call_from_here(x))


@app.task
def call_in_process_of_multiprocessing(x: int) -> tuple[int, int | None]:
    forks = multiprocessing.get_context("fork")
    queue = forks.SimpleQueue()
    process = forks.Process(target=put_in, args=(queue, x))
    process.start()
    found = queue.get()
    process.join()
    return found, process.exitcode


@app.task
def call_in_grandchild(x: int) -> int:
    child = os.fork()
    if child == 0:
        return call_in_child.func(x)
    return code_of(child)


@app.task
def fork_in_thread_of_call(x: int) -> int:
    """The child has that thread only, and ends with it."""
    codes: list[int] = []

    def forks() -> None:
        child = os.fork()
        if child:
            codes.append(code_of(child))

    thread = threading.Thread(target=forks)
    thread.start()
    thread.join()
    return codes[0] + x


class ForksWhenPickled:
    """A result in whose making for the way a child comes to be."""

    def __reduce__(self) -> Any:
        child = os.fork()
        if child:
            code_of(child)
        return str, ("parent" if child else "child",)


@app.task
def return_what_forks() -> Any:
    return ForksWhenPickled()


class RaisedAndForks(Exception):
    """An exception in whose pickling a child comes to be, which leaves at once."""

    def __reduce__(self) -> Any:
        child = os.fork()
        if child == 0:
            sys.exit(3)
        code_of(child)
        return ValueError, ("parent",)


@app.task
def raise_what_forks() -> None:
    raise RaisedAndForks


@app.task
async def raise_what_forks_in_coroutine() -> None:
    await asyncio.sleep(0)
    raise RaisedAndForks


@app.task(threads_per_worker=2)
def raise_what_forks_in_thread() -> None:
    raise RaisedAndForks


@app.task
async def fork_beside_coroutine() -> int:
    """The child leaves in a coroutine that this one has started."""
    children: list[int] = []

    async def forks() -> None:
        if child := os.fork():
            children.append(child)
        else:
            sys.exit(3)

    await asyncio.create_task(forks())
    return await asyncio.to_thread(code_of, children[0])
