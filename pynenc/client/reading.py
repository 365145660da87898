"""Whose turn it is to read a connection: that of one thread, and of the signal handlers that interrupt it.

Python runs signal handlers in the main thread, between two steps of whatever it does there. A handler that asks something reads
on top of the reader that it has interrupted: the turn is a lock that its thread may take again. It may take in what that
reader waits for, so at the end it wakes it. Runs in the caller's process.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable

from pynenc.system.spin import Spin


class ReadingTurn:
    """The turn to read one socket, and the sleep until something comes.

    Args:
        readable: The socket.
    """

    def __init__(self, readable: socket.socket) -> None:
        self._fd = readable.fileno()
        self._lock = threading.RLock()
        self._depth = 0
        self._waiting: set[threading.Lock] = set()
        self._spin = Spin()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._woken_fd = self._woken.fileno()
        self._polls: list[select.poll] = []

    def take(self, done: Callable[[], bool], timeout: float | None) -> bool:
        """Take the turn. While another thread has it, wait until that one has read something or passes it on.

        Returns:
            Whether it is this thread's turn now.
        """
        if self.take_nowait():
            return True
        waiter = threading.Lock()
        waiter.acquire()
        self._waiting.add(waiter)
        try:
            # Only now: whoever reads wakes those that stand here, so one of both sees the other.
            if self.take_nowait():
                return True
            if not done():
                waiter.acquire(timeout=-1 if timeout is None else timeout)
            return False
        finally:
            self._waiting.discard(waiter)

    def take_nowait(self) -> bool:
        """Take the turn unless another thread has it; whether it was taken. Whoever has it looks again before it waits."""
        if not self._lock.acquire(blocking=False):
            return False
        self._depth += 1
        return True

    def take_within(self, seconds: float) -> bool:
        """Take the turn, perhaps from below: this may be a signal handler. Whether it was taken in time."""
        if not self._lock.acquire(timeout=seconds):
            return False
        self._depth += 1
        return True

    def pass_on(self) -> None:
        """Give the turn back."""
        self._depth -= 1
        if self._depth:  # This was a signal handler's. The reader below may sleep, and what it waits for be here.
            with contextlib.suppress(OSError):
                self._waker.send(b".")  # If that is full, it is being woken already.
        try:
            self._lock.release()
        finally:
            self.wake_others()

    def wake_others(self) -> None:
        """Have the other threads look whether what they wait for has come."""
        if self._waiting:
            for waiter in list(self._waiting):
                with contextlib.suppress(RuntimeError):  # It is being woken already.
                    waiter.release()

    def is_readable(self) -> bool:
        """Whether there is something to read."""
        return self._poll(0, spins=False)

    def wait_readable(self, timeout: float | None) -> bool:
        """Wait until there is something to read; False when the time is over, or a signal handler has read meanwhile."""
        return self._poll(None if timeout is None else max(0.0, timeout * 1000), spins=True)

    def close(self) -> None:
        """Nobody waits here any more."""
        for end in (self._woken, self._waker):
            with contextlib.suppress(OSError):  # The script may have closed all descriptors.
                end.close()

    def abandon(self) -> None:
        """Leave the descriptors to whoever has closed them: they may be somebody else's by now."""
        self._woken.detach()
        self._waker.detach()

    def _poll(self, timeout_ms: float | None, spins: bool) -> bool:
        # Nobody can use one that is in use, and a signal handler may interrupt whoever uses it.
        polls = self._polls
        poll = polls.pop() if polls else self._new_poll()
        try:
            found = self._spin.look(lambda: poll.poll(0)) if spins else None
            if not found:
                found = poll.poll(timeout_ms)
        finally:
            polls.append(poll)
        if not found:
            return False
        if found[-1][0] == self._woken_fd:
            with contextlib.suppress(OSError):  # A signal handler may have done it.
                self._woken.recv(4096)
        return found[0][0] == self._fd

    def _new_poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)  # First, as it is in what `poll` finds.
        poll.register(self._woken_fd, select.POLLIN)
        return poll
