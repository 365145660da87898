"""Tasks with keys, a cache, or arguments that are results, for the tests of these."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from pynenc import ConcurrencyControlType
from tests.rules import append
from tests.rules import hold as held_task
from tests.tasks import app

hold_until = held_task.func


def here(directory: str, name: object) -> str:
    """The path of a file that says that a call runs."""
    return os.path.join(directory, str(name))


def run_until_gate(directory: str, name: object) -> None:
    """Say that a call runs, and run until the gate of this directory is open."""
    hold_until(here(directory, name), here(directory, "gate"))


@app.task(running_concurrency=ConcurrencyControlType.TASK)
def one_at_a_time(directory: str, name: str) -> str:
    run_until_gate(directory, name)
    return name


@app.task(max_running=2)
def two_at_a_time(directory: str, name: str) -> str:
    run_until_gate(directory, name)
    return name


@app.task(running_concurrency=ConcurrencyControlType.ARGUMENTS)
def one_of_each(directory: str, name: str = "x", times: int = 1) -> None:
    append(here(directory, "log"), os.getpid())
    run_until_gate(directory, name)


@app.task(running_concurrency=ConcurrencyControlType.KEYS, key_arguments=("host",))
def per_host(directory: str, host: str, page: int) -> int:
    """Fail when another call of the same host runs."""
    mark = Path(here(directory, host))
    mark.mkdir()
    append(here(directory, f"{host}-log"), page)
    mark.rmdir()
    return page


@app.task(running_concurrency=ConcurrencyControlType.TASK, reroute_on_concurrency_control=False)
def one_or_none(directory: str, name: str) -> str:
    run_until_gate(directory, name)
    return name


@app.task(running_concurrency=ConcurrencyControlType.TASK)
def alone_or_die(directory: str, how: str) -> str:
    if how == "die":
        Path(here(directory, "dying")).touch()
        hold_until(here(directory, "held"), here(directory, "gate"))
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "fail":
        raise ValueError("on purpose")
    return how


@app.task(running_concurrency=ConcurrencyControlType.TASK, retry_for=(ValueError,), max_retries=2)
def alone_and_again(directory: str, name: str) -> int:
    if append(here(directory, name), "tried") < 2:
        raise ValueError("again")
    return alone_and_again.invocation.num_retries


@app.task(running_concurrency=ConcurrencyControlType.TASK)
def alone_with_children(depth: int) -> int:
    """Waits for a call of its own key: it lets its key go for as long."""
    return 1 + alone_with_children(depth - 1).result if depth else 0


@app.task(registration_concurrency=ConcurrencyControlType.TASK)
def registered_once(x: int) -> int:
    return x


@app.task(registration_concurrency=ConcurrencyControlType.ARGUMENTS)
def registered_for_arguments(x: int, y: int = 0) -> int:
    return x + y


@app.task(registration_concurrency=ConcurrencyControlType.KEYS, key_arguments=("user",))
def registered_for_user(user: str, message: str) -> str:
    return f"{user}: {message}"


@app.task(
    registration_concurrency=ConcurrencyControlType.KEYS, key_arguments=("user",), on_diff_non_key_args_raise=True
)
def registered_or_error(user: str, message: str) -> str:
    return f"{user}: {message}"


@app.task(call_result_cache=True, disable_cache_args=("log",))
def remembered(x: int, y: int = 0, log: str = "") -> int:
    append(log, x)
    return x + y


@app.task(call_result_cache=True)
def remembered_unless_it_fails(log: str, x: int) -> int:
    if not append(log, x):
        raise ValueError("the first time")
    return x


@app.task
def imported(log: str, x: int) -> int:
    """Fails for odd numbers as long as there is a file beside the log."""
    append(log, x)
    if x % 2 and os.path.exists(f"{log}.fails"):
        raise ValueError(x)
    return x


@app.task
def plus(x: Any, y: Any) -> Any:
    return x + y


@app.task
def see(value: Any) -> str:
    """What a call was given."""
    return repr(value)


@app.task
def total_of(values: list[int], more: dict[str, Any] | None = None) -> int:
    return sum(values) + sum((more or {}).values())


@app.task
def fail_because(reason: str) -> int:
    raise ValueError(reason)


@app.task
def chain_inside(length: int) -> int:
    """Makes calls that take each other's results, and waits for the last."""
    last = plus(0, 0)
    for _ in range(length):
        last = plus(last, 1)
    value: int = last.result
    return value


@app.task
def shared(x: int, table: dict[int, int], factor: int = 1) -> int:
    return table[x] * factor


@app.task
def id_of_shared(x: int, table: list[int]) -> tuple[int, int]:
    """Which process, and which object there."""
    return os.getpid(), id(table)


@app.task(call_result_cache=True)
def table_sum(x: int, table: list[int]) -> int:
    return x + sum(table)


def split_numbers(arguments: dict[str, Any]) -> list[tuple[list[int], int]]:
    numbers, offset = arguments["numbers"], arguments["offset"]
    return [(numbers[at : at + 3], offset) for at in range(0, len(numbers), 3)]


@app.direct_task(parallel_func=split_numbers, aggregate_func=sum, parallel_batch_size=2)
def sum_in_parts(numbers: list[int], offset: int = 0) -> int:
    assert len(numbers) <= 3
    return sum(numbers) + offset


def split_with_common(arguments: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    return {"table": arguments["table"]}, ({"keys": [key]} for key in arguments["keys"])


@app.direct_task(parallel_func=split_with_common)
def look_up(keys: list[int], table: dict[int, int]) -> Any:
    return table[keys[0]]


@app.direct_task
def where(fails: bool = False) -> int:
    """Which process ran it."""
    if fails:
        raise ValueError("on purpose")
    return os.getpid()


@app.direct_task(parallel_func=lambda arguments: [(x,) for x in range(arguments["x"])], aggregate_func=sum)
async def doubled_in_parts(x: int) -> int:
    return 2 * x


@app.direct_task
async def doubled(x: int) -> int:
    return 2 * x


@app.task
def direct_inside(x: int) -> int:
    return sum_in_parts(list(range(x)), offset=1)


@app.task
def stream_remembered(log: str, count: int) -> list[int]:
    """Takes results in any order, of calls that are looked up first."""
    return sorted(remembered.stream(((x, 0, log) for x in range(count)), ordered=False))
