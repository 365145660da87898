"""Tasks with rules, for the tests of orchestration."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

from pynenc import RetryError
from pynenc.exceptions import TaskTimeoutError
from tests.tasks import app


def append(path: str, text: object) -> int:
    """Add a line; how many there were before."""
    before = len(Path(path).read_text().split()) if os.path.exists(path) else 0
    with open(path, "a") as log:
        log.write(f"{text}\n")
    return before


@app.task(retry_for=(ConnectionError,), max_retries=3)
def fail_at_first(log: str, times: int) -> int:
    tried = append(log, "tried")
    if tried < times:
        raise ConnectionResetError(f"not yet: {tried}")
    return fail_at_first.invocation.num_retries


@app.task(retry_for=(ConnectionError,), max_retries=3)
def fail_for_good(log: str) -> None:
    append(log, "tried")
    raise ValueError("never")


@app.task(max_retries=2)
def ask_again(log: str, delay: float) -> int:
    tried = append(log, "tried")
    if not tried:
        raise RetryError("later", delay=delay)
    return ask_again.invocation.num_retries


@app.task(retry_for=("builtins.ValueError",), max_retries=1)
def fail_if_odd(directory: str, x: int) -> int:
    if x % 2 and not append(os.path.join(directory, str(x)), "tried"):
        raise ValueError(x)
    return x


@app.task(timeout=0.3)
def run_long(how: str) -> None:
    if how == "deaf":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        while True:
            pass
    if how == "c_code":
        ctypes.PyDLL(None).sleep(60)  # Holds the interpreter's lock.
    time.sleep(60)


@app.task(timeout=1.0)
def run_for(seconds: float) -> None:
    time.sleep(seconds)


@app.task(timeout=0.2, retry_for=(TaskTimeoutError,), max_retries=20)
def slow_at_first(log: str) -> int:
    if not append(log, "tried"):
        time.sleep(60)
    return slow_at_first.invocation.num_retries


@app.task
def note(log: str, x: int) -> int:
    append(log, x)
    return x


@app.task
def hold(at: str, gate: str) -> None:
    """Say that it runs, and run until a file is there."""
    Path(at).touch()
    while not os.path.exists(gate):
        time.sleep(0.002)


@app.task(expires=0.2)
def expiring(log: str) -> str:
    append(log, "ran")
    return "in time"


@app.task
def fibonacci(n: int) -> int:
    if n < 2:
        return n
    first, second = fibonacci(n - 1), fibonacci(n - 2)
    return first.result + second.result


@app.task
def sum_of_squares(count: int) -> int:
    return sum(square.parallelize([(x,) for x in range(count)]).results)


@app.task
def square(x: int) -> int:
    return x * x


@app.task
def chain(depth: int) -> int:
    return 0 if depth == 0 else 1 + chain(depth - 1).result


@app.task
def as_they_come(count: int) -> int:
    return sum(one.result for one in square.parallelize([(x,) for x in range(count)]).as_completed())


@app.task
def wait_in_threads(count: int) -> int:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as threads:
        return sum(threads.map(lambda x: square(x).result, range(count)))


@app.task
async def wait_in_event_loop(count: int) -> int:
    import asyncio

    async def one(x: int) -> int:
        return await square(x)

    return sum(await asyncio.gather(*map(one, range(count))))


@app.task
def give_up_waiting(at: str, gate: str, log: str) -> int:
    held = hold(at, gate)
    late = note(log, 1)
    while not os.path.exists(at):  # Else this worker could be given it, to run on top of this call.
        time.sleep(0.002)
    try:
        held.get(timeout=0.05)
    except TimeoutError:
        Path(gate).touch()
    return held.wait() + late.result


@app.task(max_worker_losses=1)
def poisoned_parent(log: str) -> None:
    append(log, "parent")
    poison(log).result  # noqa: B018


@app.task(max_worker_losses=0)
def poison(log: str) -> None:
    append(log, "child")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def catch_failure() -> str:
    try:
        fail_for_good("/dev/null").result  # noqa: B018
    except ValueError as error:
        return str(error)
    return "nothing"


@app.task
def own_id_around(x: int) -> tuple[str, str, int]:
    before = own_id_around.invocation.invocation_id
    result = square(x).result
    return before, own_id_around.invocation.invocation_id, result


@app.task
def chain_behind(at: str, gate: str) -> None:
    hold(at, gate).result  # noqa: B018


@app.task(async_concurrency=1)
async def async_chain(depth: int) -> int:
    return 0 if depth == 0 else 1 + await async_chain(depth - 1)


@app.task
def event_loop_chain(depth: int) -> int:
    """Awaits on an event loop of its own, which the worker knows nothing of."""
    import asyncio

    async def rest() -> int:
        return await event_loop_chain(depth - 1)

    return 0 if depth == 0 else 1 + asyncio.run(rest())


@app.task(timeout=0.4)
def wait_too_long(at: str, gate: str) -> None:
    hold(at, gate).result  # noqa: B018


@app.task(timeout=0.3)
def stay(log: str) -> None:
    append(log, "stays")
    time.sleep(60)


@app.task
def wait_for_one_that_stays(log: str) -> str:
    append(log, "waits")
    try:
        stay(log).result  # noqa: B018
    except TaskTimeoutError:
        return "it was late"
    return "it came"


@app.task
def call_itself(x: int) -> int:
    return call_itself(x=x).result


@app.task
def ping(x: int, how: str) -> int:
    """Calls `pong`, which calls this again."""
    return pong(x, how).result + 1


@app.task
def pong(x: int, how: str) -> int:
    if how == "parallelize":
        return sum(ping.parallelize([(x - 1, "end"), (x, how)]).results)
    if how == "stream":
        return sum(ping.stream((x, how) for _ in range(2)))
    if how == "end" or x == 0:
        return 0
    return ping(x if how == "again" else x - 1, how=how).result


@app.task(cycle_control=False)
def again_until(log: str, times: int) -> None:
    """Makes the same call as itself, and does not wait for it."""
    if append(log, "ran") + 1 < times:
        again_until(log, times)


@app.task
def large_argument_again(data: bytes) -> int:
    return large_argument_again(data).result


@app.task
def wait_for_itself(how: str) -> object:
    invocation = wait_for_itself.invocation
    if how == "result":
        return invocation.result
    if how == "group":
        return list(square.parallelize([(3,), (invocation,)]).results)
    if how == "others":
        square(invocation)  # Not waited for: it runs when this has returned.
        return square(3).result
    return square(square(invocation) if how == "chain" else invocation).result  # type: ignore[arg-type]


class OneWay:
    """Can be pickled once, and no more where it has arrived."""

    def __init__(self, arrived: bool = False) -> None:
        self.arrived = arrived

    def __reduce__(self) -> tuple[type[OneWay], tuple[bool]]:
        if self.arrived:
            raise TypeError("this has arrived")
        return OneWay, (True,)


@app.task
def call_with_one_way(value: OneWay, depth: int = 1) -> int:
    return call_with_one_way(OneWay(), depth - 1).result if depth else square(3).result


@app.task(max_retries=1, retry_delay=1.0, retry_for=(ConnectionError,))
def retry_much_later(log: str) -> int:
    if append(log, "tried") == 0:
        raise ConnectionError("not yet")
    return retry_much_later.invocation.num_retries


@app.task
def inflate(x: int, size: int) -> str:
    return f"{x:0{size}}"


@app.task(timeout=1.0)
def in_a_second(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@app.task(timeout=60.0)
def note_in_time(log: str, x: int) -> int:
    append(log, x)
    return x


@app.task
def wait_for_one_in_other_hands(log: str, how: str) -> int:
    """Waits for a call that was leased to another worker before anybody knew of the wait."""
    noted = (note_in_time if how == "limited" else note)(log, 1)
    app._cluster.sync()
    if how != "thread":
        return noted.result
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(lambda: noted.result).result()
