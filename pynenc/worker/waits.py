"""How one of many calls that run at once waits for others: it tells the supervisor, which gives its place to another one.

::

    call waits for B ──PAUSE──▶ supervisor: its place and its key are free
    B is there       ──RESUME─▶ supervisor: its key is its own again
                     ◀─RESUMED─
    call goes on
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

from pynenc.protocol.messages import Kind, Pause, number_frame


class Waits:
    """The waits of one call; it may wait in several threads and coroutines at once.

    Args:
        position: The call's.
        send: Sends a frame to the supervisor.
    """

    __slots__ = ("_awaited", "_coroutines", "_has_ended", "_lock", "_position", "_resumed", "_send")

    def __init__(self, position: int, send: Callable[[bytes], None]) -> None:
        self._position = position
        self._send = send
        self._lock = threading.Lock()
        self._awaited: list[int] = []
        self._resumed: threading.Event | None = None
        self._coroutines: list[asyncio.Future[None]] = []
        self._has_ended = False

    def begin(self, awaited: Sequence[int]) -> None:
        """Something waits for calls of these batches."""
        with self._lock:
            self._awaited += awaited
            if not self._has_ended:
                batches = tuple(dict.fromkeys(self._awaited))
                # When it began is looked at by this process, which runs on.
                self._send(Pause(self._position, self._position + 1, 0.0, batches).to_frame())

    def finish(self, awaited: Sequence[int]) -> bool:
        """It waits no more; whether it has to wait until the call may go on, since nothing else of it waits."""
        with self._lock:
            for batch in awaited:
                self._awaited.remove(batch)
            if self._awaited or self._has_ended:
                return False
            self._resumed = threading.Event()
            self._send(number_frame(Kind.RESUME, self._position))
            return True

    def until_resumed(self, timeout: float | None = None) -> bool:
        """Wait for that in a thread; whether it may go on."""
        return self._resumed is None or self._resumed.wait(timeout)

    def resumed(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """What a coroutine awaits for that, which runs on this loop."""
        future = loop.create_future()
        self._coroutines.append(future)
        if self._resumed is None or self._resumed.is_set():
            self.go_on()
        return future

    def go_on(self) -> None:
        """The supervisor says so."""
        if self._resumed is not None:
            self._resumed.set()
        coroutines, self._coroutines = self._coroutines, []
        for future in coroutines:
            future.get_loop().call_soon_threadsafe(_wake, future)

    def end(self) -> None:
        """The call has ended; what it has left behind goes on."""
        with self._lock:
            self._has_ended = True
        self.go_on()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
