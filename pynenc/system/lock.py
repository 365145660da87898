"""An exclusive lock that the kernel releases when its holder dies.

The `filelock` package does the same, but importing it costs about 60 ms (it brings asyncio), a quarter of what a whole
cold start may take. On the systems that pynenc runs on, flock(2) is all of it.
"""

from __future__ import annotations

import fcntl
import os
import time
from types import TracebackType

from pynenc.system.descriptors import open_private


class FileLock:
    """Hold a file locked, against other processes and other threads.

    Args:
        path: The file; made when it is not there, and never removed, so that all lock the same one.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd: int | None = None

    def wait_acquire(self) -> None:
        """Wait until nobody else holds the lock, then hold it."""
        self._fd = self._open()
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def acquire_nowait(self) -> bool:
        """Hold the lock if nobody else does; whether it is held now."""
        fd = self._open()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def acquire_within(self, seconds: float) -> bool:
        """Hold the lock as soon as nobody else does; whether that was so within so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.acquire_nowait():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
        return True

    def sign(self, text: str) -> None:
        """Write into the file who holds the lock, for those that do not get it."""
        assert self._fd is not None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def fileno(self) -> int:
        """The open file; who inherits it holds the lock, too."""
        assert self._fd is not None
        return self._fd

    def release(self) -> None:
        """Let others have it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        return open_private(self.path, os.O_RDWR | os.O_CREAT)

    def __enter__(self) -> FileLock:
        self.wait_acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
