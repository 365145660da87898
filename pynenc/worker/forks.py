"""Children that a task forks: each ends where its call ends, and never goes on as if it were the worker.

::

    the call forks ──▶ child: the rest of the task's function, then the end of the process
       │               its slot is a private copy, its worker's connection is closed
       ▼
    the call goes on

Nothing looks for them while calls run: a fork releases the child's views of the slot, so that the loop of a lease fails at its
next step there, before the next call, and all else that a worker does between calls asks here. Until then the child may do
what any process may; that it waits for calls it tells over a connection of its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from pynenc import context
from pynenc.exceptions import RunnerError
from pynenc.protocol.messages import Kind, json_frame
from pynenc.system.boot import leave

_is_child = False


def became_child(worker: int) -> None:
    """This process was just forked from a worker, by one of its calls."""
    global _is_child
    _is_child = True
    context.nested_wait = _Waits(worker).wait
    context.nested_await = None


def end_child(error: BaseException | None = None) -> None:
    """End this process if it is such a child; called wherever a worker goes on after a call.

    Args:
        error: What the call raised; None when it returned.
    """
    if _is_child:
        leave(error)


def end_child_in_lease(error: BaseException) -> None:
    """The same in the loop of a lease, which fails by itself when the call has returned: its slot is released."""
    if _is_child:
        is_of_loop = (
            isinstance(error, ValueError) and error.__traceback__ is not None and not error.__traceback__.tb_next
        )
        leave(None if is_of_loop else error)


class _Waits:
    """Waits of a child for calls. Its parent waits for it, most likely, so others have to run them.

    Args:
        worker: The number of the parent.
    """

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self._count = 0
        self._lock = threading.Lock()

    def wait(self, connection: Any, done: Callable[[], bool], awaited: Sequence[int], timeout: float | None) -> bool:
        """Wait until something is so that the outcomes of these batches bring about; whether it is so."""
        connection.read_nowait()
        if done():
            return True
        self._change(connection, 1)
        try:
            return bool(connection.wait_until(done, timeout))
        finally:
            with contextlib.suppress(RunnerError):  # Whoever waits hears of it.
                self._change(connection, -1)

    def _change(self, connection: Any, by: int) -> None:
        with self._lock:
            self._count += by
            connection.send(json_frame(Kind.WAITS, worker=self._worker, count=self._count))
