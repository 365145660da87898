"""Warm segments: shared memory that is there before a writer needs it, since most of what large values cost are fresh pages.

What was freed is written over by the next writer, and moved into huge pages if it comes back. Results stay, so for those a
segment is made while the call that will return the next one still runs. All of it happens in threads beside the loop:
with gigabytes it takes a while. Runs in the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from pynenc.blobs.budget import Budget
from pynenc.blobs.directory import MAX_EXCESS, MIN_HUGE_BYTES, BlobDirectory, Segment

WARM_PARTS = 4
"""Warm segments take at most this part of the budget."""

READY_BYTES = 1 << 22
"""When results of the same size of at least so many bytes come, a segment for the next one is made ready."""

USES_BEFORE_HUGE = 2
"""A segment that was freed so often is moved into huge pages: it will be used again."""

MOST_COUNTED = 4096
"""Of so many segments it is known how often they were freed."""


class WarmSegments:
    """Keeps segments warm for the writers of one supervisor.

    Args:
        directory: Where they lie.
        memory_bytes: How much shared memory all blobs may take.
    """

    def __init__(self, directory: BlobDirectory, memory_bytes: int) -> None:
        self._directory = directory
        self._memory_bytes = memory_bytes
        self._budget = Budget(directory, memory_bytes)
        self._helpers: list[threading.Thread] = []
        self._uses: dict[int, int] = {}
        self._has_huge_pages = sys.platform == "linux"
        self._last_size = 0
        self._wanted = 0

    def freed(self, name: bytes) -> None:
        """A blob was freed: have its segment moved into huge pages if it has come back already."""
        if not self._has_huge_pages:
            return
        try:
            fd = self._directory.open_freed(name)
        except OSError:
            return  # A writer has taken it already, or no descriptors are left.
        found, uses = os.fstat(fd), 0
        if found.st_size >= MIN_HUGE_BYTES:
            uses = self._uses.get(found.st_ino, 0) + 1
            if len(self._uses) > MOST_COUNTED:
                self._uses.clear()
            self._uses[found.st_ino] = uses
        if uses == USES_BEFORE_HUGE:
            self._help(self._make_huge, fd)  # As long as it is open nobody writes it over.
        else:
            os.close(fd)

    def result_came(self, size: int) -> None:
        """A result of this size is kept; `make_ready` sees to the next one."""
        if size == self._last_size >= READY_BYTES:
            self._wanted = size
        self._last_size = size

    def make_ready(self) -> bool:
        """Have a segment for the next result, now that results of one size come one after the other; whether there is need.

        Results stay, so there is none to be written over, and to take fresh memory from the system costs as much as to write
        to it. Workers need not wait for that.
        """
        size, self._wanted = self._wanted, 0
        if not size or any(size <= one.size <= MAX_EXCESS * size for one in self._directory.segments()):
            return False
        if self._budget.free_bytes() <= size * WARM_PARTS or any(one.is_alive() for one in self._helpers):
            return False
        self._help(self._directory.make_segment, size)
        return True

    def trim(self) -> None:
        """Give back what is more than warm segments may take, the largest first."""
        segments = self._directory.segments()
        excess, surplus = sum(one.size for one in segments) - self._memory_bytes // WARM_PARTS, []
        while excess > 0 and segments:
            surplus.append(segments.pop())
            excess -= surplus[-1].size
        self._remove(surplus)

    def give_back(self) -> None:
        """Nobody has taken one for a while."""
        self._remove(self._directory.segments())

    def close(self) -> None:
        """Wait for what is under way."""
        for thread in self._helpers:
            thread.join()

    def _remove(self, segments: Sequence[Segment]) -> None:
        if segments:
            self._help(_remove_files, [one.path for one in segments])

    def _make_huge(self, fd: int) -> None:
        from pynenc.blobs.mapping import make_huge  # Brings ctypes, which most supervisors never need.

        try:
            self._has_huge_pages = make_huge(fd)
        except OSError:
            self._has_huge_pages = False
        finally:
            os.close(fd)

    def _help(self, work: Callable[..., None], *args: Any) -> None:
        """Do something beside the loop."""
        self._helpers = [one for one in self._helpers if one.is_alive()]
        thread = threading.Thread(target=work, args=args, name="pynenc-segments")
        thread.start()
        self._helpers.append(thread)


def _remove_files(paths: list[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
