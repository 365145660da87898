"""Writing blobs: into a warm segment if there is one, a fresh one, or a file. Runs in clients and workers.

`write` rather than a copy through a mapping: the kernel does not clear pages that it writes over, and takes no fault for each.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterable

from pynenc.blobs.budget import Budget
from pynenc.blobs.directory import MAX_EXCESS, TOKEN_BYTES, BlobDirectory
from pynenc.blobs.references import Reference, name_of
from pynenc.exceptions import asked_in_handler

WRITE_BYTES = 1 << 30
"""So many bytes are written at a time; no system takes more than twice that."""


class Writer:
    """Writes the blobs of this process, and keeps them until somebody else refers to them.

    Args:
        directory: Where they go.
        budget_bytes: How much shared memory all blobs may take.
        is_worker: Whether this process ends with the supervisor.
    """

    def __init__(self, directory: BlobDirectory, budget_bytes: int, is_worker: bool = False) -> None:
        self._directory = directory
        self._is_worker = is_worker
        self._budget_bytes = budget_bytes
        self._pid = 0
        self._lock = threading.RLock()
        self._begins = False
        self._mark: int | None = None
        self._has_warned = False

    def write(self, buffer: memoryview) -> Reference:
        """Write a buffer of contiguous bytes.

        Raises:
            OSError: There is room nowhere.
        """
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._begin()
        name = name_of(self._token, next(self._numbers))
        if not (self._has_memory and self._write_to_memory(name, buffer)):
            self._write_to_file(name, buffer)
        return Reference(name, buffer.nbytes)

    def discard(self, references: Iterable[Reference]) -> None:
        """Free blobs that were written here and that nobody was told of."""
        for reference in references:
            if self._directory.free(reference.name):
                self._directory.recycle(reference.name)

    def written(self) -> list[bytes]:
        """The blobs that were written here and are still there."""
        if self._mark is None or self._pid != os.getpid():
            return []
        return [name for name in self._directory.blobs() if name.startswith(self._token)]

    def close(self) -> None:
        """Nothing is written any more."""
        if self._mark is not None and self._pid == os.getpid():
            self._directory.forget_writer(self._token, self._is_worker)
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """In a forked child: leave the parent's mark to the parent."""
        if self._mark is not None:
            os.close(self._mark)
            self._mark = None
        self._pid = 0
        self._lock = threading.RLock()
        self._begins = False

    def _begin(self) -> None:
        if self._begins:
            raise asked_in_handler("wrote its first large value")
        self._begins = True
        try:
            self._announce()
        finally:
            self._begins = False

    def _announce(self) -> None:
        self._token = os.urandom(TOKEN_BYTES)
        self._numbers = itertools.count(1)
        self._mark = self._directory.announce(self._token, self._is_worker)
        self._has_memory = self._budget_bytes > 0 and self._directory.make_memory()
        self._budget = Budget(self._directory, self._budget_bytes)
        self._pid = os.getpid()

    def _write_to_memory(self, name: bytes, buffer: memoryview) -> bool:
        path = self._directory.path_in_memory(name)
        if not self._claim(path, buffer.nbytes) and not self._make_room(buffer.nbytes):
            return False
        try:
            _write(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), buffer)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            return False
        return True

    def _claim(self, path: str, size: int) -> bool:
        """Take a warm segment of about this size, if there is one."""
        segments = self._directory.segments()
        if not any(size <= segment.size <= MAX_EXCESS * size for segment in segments):
            self._directory.recycle_all()  # Sooner than the supervisor, which looks now and then.
            segments = self._directory.segments()
        for segment in segments:
            if size <= segment.size <= MAX_EXCESS * size:
                with contextlib.suppress(FileNotFoundError):  # Somebody else was faster.
                    os.rename(segment.path, path)
                    return True
        return False

    def _make_room(self, size: int) -> bool:
        """Whether there is room for a fresh segment, if need be in the place of warm ones of other sizes."""
        if self._budget.takes(size):
            return True
        if size <= self._budget_bytes:
            for segment in reversed(self._directory.segments()):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(segment.path)
                if self._budget.takes(size):
                    return True
        return False

    def _write_to_file(self, name: bytes, buffer: memoryview) -> None:
        if not self._has_warned:
            self._has_warned = True
            import logging

            logging.getLogger("pynenc.blobs").warning(
                "shared memory has no room for %s bytes more (field blobs.memory_bytes allows %s): large values go through "
                "files in %s now, which is slower",
                f"{buffer.nbytes:,}",
                f"{self._budget_bytes:,}",
                self._directory.files,
            )
        path = self._directory.path_in_files(name)
        try:
            _write(self._directory.open_new_file(path), buffer)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise


def _write(fd: int, buffer: memoryview) -> None:
    try:
        at = 0
        while at < buffer.nbytes:
            at += os.pwrite(fd, buffer[at : at + WRITE_BYTES], at)
    finally:
        os.close(fd)
