"""What this process is running just now: which call, and for which supervisor.

Set by whoever runs user code; read by `Task.invocation`, by loggers, and by an app that makes calls from inside a task.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from pynenc.named_tuples import NamedTuple


class Running(Protocol):
    """Something that can say which invocation runs; built only when somebody asks."""

    def task_id(self) -> str:
        """The id of the task that runs."""

    def invocation_id(self) -> str:
        """The id of the invocation that runs."""

    def invocation(self) -> Any:
        """The invocation that runs."""


class WorkerOf(NamedTuple):
    """The supervisor whose worker this process is."""

    app_id: str
    address: str
    key: bytes
    database: str


class Collector(threading.local):
    """What pickling and unpickling arguments in this thread is about.

    Attributes:
        app: The app of the call whose arguments are being pickled.
        found: The dependencies found in them: batches, and the calls `[first, stop)` of each; None outside of that.
        reading: The app whose stored arguments are looked at; None where they are unpickled to run a call.
        comparing: Whether they are unpickled to be compared, for which the numbers of invocations do.
        blobs: The references to blobs found in arguments that are being pickled; None outside of that.
        copying: Whether large buffers in them are copied, so that they can be changed.
    """

    app: Any = None
    found: list[Any] | None = None
    reading: Any = None
    comparing = False
    blobs: list[Any] | None = None
    copying = False


collector = Collector()

running: ContextVar[Running | None] = ContextVar("pynenc_running", default=None)
"""The call that runs in this context; set in synchronous mode, where calls nest."""

worker_running: Any = None
"""The lease that a worker runs: process-wide, since a worker runs one call at a time whatever threads it starts."""

concurrent_call: ContextVar[Any] = ContextVar("pynenc_concurrent_call", default=None)
"""The call that runs in this context, in a worker that runs many at once."""

nested_wait: Callable[[Any, Callable[[], bool], Sequence[int], float | None], bool] | None = None
"""In workers: how a call waits for others, given the connection, what is to be so, the batches and a timeout."""

nested_await: Callable[[Any, Sequence[int]], Awaitable[None]] | None = None
"""In workers that run many calls at once: how a coroutine awaits outcomes, given a future and the batches."""

collecting: set[Callable[[], None]] = set()
"""In workers: lets the calls leave that tasks have made here and that are being collected to leave together."""

uses_blobs = False
"""Whether a blob was ever mapped in this process."""

databases: dict[str, None] = {}
"""The databases of the apps that this process uses; the blobs that their results refer to are found beside them."""

worker_of: WorkerOf | None = None
"""Set in worker processes."""


def own_supervisor(app_id: str) -> WorkerOf | None:
    """Where the supervisor of an app listens whose worker this process is; None when it is none of its workers."""
    return worker_of if worker_of is not None and worker_of.app_id == app_id else None


def current() -> Running | None:
    """What runs here, or None outside of any call."""
    return running.get() or in_worker()


def in_worker() -> Any:
    """What this worker runs here; None outside of any call and in other processes."""
    return worker_running or concurrent_call.get()
