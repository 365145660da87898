"""Functions that know nothing of pynenc, of which tests make tasks, and exceptions in a class."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any


class Api:
    class Busy(Exception):
        """Nested, so its path leads through a class."""


def double(x: int) -> int:
    return 2 * x


@functools.lru_cache
def remembered(x: int) -> int:
    return x


def busy_at_first(tries: str) -> int:
    """Succeeds at the third attempt."""
    with open(tries, "a") as log:
        log.write("x")
    if Path(tries).stat().st_size < 3:
        raise Api.Busy
    return Path(tries).stat().st_size


def told() -> tuple[Any, ...]:
    """What a task of this finds of its app, and what a call of another gives."""
    from pynenc import context

    running = context.current()
    assert running is not None
    task = running.invocation().task
    return task.app.app_id, task.conf.priority, task.app.get_task("tests.plain.double")(4).result


def local_error() -> type[Exception]:
    class Local(Exception):
        pass

    return Local
