"""Checkpoints move the write-ahead log into the database. They wait for the disk, so they run beside the loop, not in it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

from pynenc.state_backend.opening import existing, size_of

CHECKPOINT_BYTES = 32 << 20
"""Move the log when it has grown by this much."""

MAX_LOG_BYTES = 128 << 20
"""A log of this size is moved at once, however busy the loop is."""


class Checkpoints:
    """Begins checkpoints when they are due, and again when readers or the disk have kept one from its end.

    Args:
        path: The database.
        connection: The one that writes.
    """

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self._path = path
        self._log = f"{path}-wal"
        self._connection = connection
        self._bytes = CHECKPOINT_BYTES
        self._max_log_bytes = MAX_LOG_BYTES
        self._written = 0
        self._has_unmoved = True
        self._last: _Checkpoint | None = None

    def bound(self, max_bytes: int) -> None:
        """Keep the log short beside a database that may have so many bytes."""
        self._bytes = min(CHECKPOINT_BYTES, max_bytes // 16)
        self._max_log_bytes = min(MAX_LOG_BYTES, max_bytes // 8)

    def written(self, count: int) -> None:
        """So many bytes were committed, about."""
        self._has_unmoved = True
        self._written += count
        if self._written > self._bytes:
            self._begin()

    def mind(self) -> bool:
        """Begin one if the log is long, or if what was forgotten still has its room in the file.

        Returns:
            Whether to look again, although nothing is written until then.
        """
        if self._is_under_way():
            return True
        log_bytes = size_of(self._log)
        is_due = self._has_unmoved and (log_bytes > self._bytes or self._is_file_too_long())
        if is_due or log_bytes > self._max_log_bytes:
            self._begin()
            return True
        return False

    def empty_log(self) -> None:
        """Move the log and make it empty now, as far as that goes: a full disk may have room again then."""
        with contextlib.suppress(sqlite3.Error):
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._has_unmoved = bool(busy)

    def join(self) -> None:
        """Wait for the one that is under way."""
        if self._last is not None:
            self._last.join()

    def _is_under_way(self) -> bool:
        if self._last is None:
            return False
        if self._last.is_alive():
            return True
        self._has_unmoved |= not self._last.has_moved_all
        self._last = None
        return False

    def _is_file_too_long(self) -> bool:
        """Pages at its end that hold nothing any more are cut off when all the log has been moved."""
        try:
            pages, page_bytes = (
                int(self._connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "page_size")
            )
        except sqlite3.Error:  # The disk has other worries; whether it is too long shows later.
            return True
        return size_of(self._path) > pages * page_bytes

    def _begin(self) -> None:
        if self._is_under_way():
            return
        self._written = 0
        if size_of(self._log) > self._max_log_bytes:
            self.empty_log()
            return
        self._has_unmoved = False  # What is written from here on is not in it for sure.
        self._last = _Checkpoint(self._path)
        self._last.start()


class _Checkpoint(threading.Thread):
    def __init__(self, path: str) -> None:
        super().__init__(name="pynenc-checkpoint")
        self.has_moved_all = False
        self._path = path

    def run(self) -> None:
        # What stays in the log is moved the next time. Whatever is wrong with the disk, the next commit tells.
        with contextlib.suppress(sqlite3.Error):
            connection = existing(self._path)
            try:
                busy, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                self.has_moved_all = (busy, frames) == (0, moved)
            finally:
                connection.close()
