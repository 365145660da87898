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
