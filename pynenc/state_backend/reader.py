"""The readers of the state backend: clients, the command line, the monitor. They never write."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Sequence
from typing import Any

from pynenc.exceptions import StateBackendError
from pynenc.named_tuples import NamedTuple
from pynenc.protocol.messages import INDEX_BITS, NOT_RETRIABLE, Failure, Results, invocation_number, split_number
from pynenc.state_backend import migrations, queries
from pynenc.state_backend.faults import explained
from pynenc.state_backend.opening import read_only, size_of


class Attempts(NamedTuple):
    """What became of one call up to now.

    Attributes:
        failures: The attempts that raised, in their order.
        results: The results among which its own is.
        transitions: Status, time (seconds since the epoch) and worker of each step in between.
    """

    failures: list[Failure]
    results: Results | None
    transitions: list[tuple[str, float, int]]


class StoredBatch(NamedTuple):
    """A batch as it lies in the database."""

    task_id: str
    count: int  # type: ignore[assignment]
    group: int
    parent: int
    registered: float
    packing: int
    arguments: bytes
    extras: bytes


class TaskCounts(NamedTuple):
    """How many calls of a task there are, and how many of them ended how."""

    task_id: str
    calls: int
    succeeded: int
    failed: int


class _Open:
    """A connection of one thread, closed with it: by itself it would be open until Python looks for garbage.

    Attributes:
        of: Which process has opened which file.
        connection: The connection.
    """

    __slots__ = ("connection", "of")

    def __init__(self, of: tuple[int, int, int], connection: sqlite3.Connection) -> None:
        self.of = of
        self.connection = connection

    def __del__(self) -> None:
        if self.of[0] == os.getpid():
            with contextlib.suppress(sqlite3.Error):
                self.connection.close()


class Reader:
    """A read-only view of the database of one app and state directory.

    It may be made before there is a database, and it may be used from any thread and after a fork.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._local = threading.local()

    def batch(self, batch: int) -> StoredBatch | None:
        """A batch with its arguments; None when there is no such batch."""
        rows = self._rows(queries.BATCH, (batch,))
        return StoredBatch(*rows[0]) if rows else None

    def outcomes_of(self, batch: int) -> tuple[list[Results], list[Failure]]:
        """All results and failures of a batch, in the order of its calls."""
        connection = self._connection()
        try:
            return outcomes_of(connection, batch) if connection else ([], [])
        except sqlite3.Error as error:
            raise explained(self.path, "cannot be read", error) from error

    def attempts_of(self, batch: int, index: int) -> Attempts:
        """What became of a call up to now."""
        first, this = invocation_number(batch, 0), invocation_number(batch, index)
        failures = [failure_from(row) for row in self._rows(queries.ATTEMPTS, (first, this, index))]
        results = [results_from(row) for row in self._rows(queries.RESULTS_OF_BATCH, (first, this))]
        transitions = [
            (str(row[0]), float(row[1]), int(row[2])) for row in self._rows(queries.TRANSITIONS, (first, this, index))
        ]
        return Attempts(failures, next((one for one in results if index < one.stop), None), transitions)

    def retries_of(self, batch: int, index: int) -> int:
        """How many attempts of a call were followed by another."""
        rows = self._rows(queries.COUNT_RETRIES, (invocation_number(batch, index),))
        return int(rows[0][0]) if rows else 0

    def cached(self, keys: Sequence[bytes]) -> list[int]:
        """For each key of the result cache, the latest invocation that has a result; 0 for none."""
        return [rows[0][0] if (rows := self._rows(queries.CACHED, (key,))) else 0 for key in keys]

    def named_batches(self, group: int) -> list[int]:
        """The batches of a named group, the oldest first."""
        return [row[0] for row in self._rows(queries.NAMED_BATCHES, (group,))]

    def common_arguments(self, number: int) -> bytes:
        """Arguments that the calls of a group share."""
        rows = self._rows(queries.COMMON, (number,))
        if not rows:
            raise StateBackendError(f"{self.path} does not have common arguments {number} any more: they were purged")
        payload: bytes = rows[0][0]
        return payload

    def counts_by_task(self) -> list[TaskCounts]:
        """How many calls there are of each task, and how many ended how."""
        return [TaskCounts(*row) for row in self._rows(queries.COUNTS_BY_TASK, ())]

    def counts_of(self, ranges: Sequence[tuple[int, int]]) -> list[TaskCounts]:
        """The same for the batches `[first, stop)` of each range."""
        connection = self._connection()
        return counts_of(connection, ranges) if connection else []

    def count_kept(self) -> int:
        """How many calls were stopped on purpose, and wait for somebody to resume them."""
        rows = self._rows(queries.COUNT_SHELVED, ())
        return int(rows[0][0]) if rows else 0

    def blobs(self) -> set[bytes]:
        """The names of the blobs that unfinished calls and results refer to."""
        return {row[2] for row in self._rows(queries.BLOBS, ())}

    def _rows(self, query: str, values: Sequence[Any]) -> list[Any]:
        connection = self._connection()
        if connection is None:
            return []
        try:
            return connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise explained(self.path, "cannot be read", error) from error

    def _connection(self) -> sqlite3.Connection | None:
        # One connection for each thread and process: SQLite's may be carried into neither.
        known: _Open | None = getattr(self._local, "open", None)
        try:
            file = os.stat(self.path)
        except OSError:
            file = None
        if known is not None:
            if file is not None and known.of == (os.getpid(), file.st_dev, file.st_ino):
                return known.connection
            self.close()  # It is the parent's, or the database was deleted, or set aside.
        if file is None:
            return None
        connection = self._open()
        if connection is not None:
            self._local.open = _Open((os.getpid(), file.st_dev, file.st_ino), connection)
        return connection

    def _open(self) -> sqlite3.Connection | None:
        connection = read_only(self.path)
        try:
            connection.execute("PRAGMA busy_timeout = 10000")
            try:
                migrations.refuse_newer(connection, self.path)
            except sqlite3.OperationalError:
                connection.close()
                if not self._lies_still():
                    raise
                connection = read_only(self.path, immutable=True)
                migrations.refuse_newer(connection, self.path)
            if migrations.version_of(connection) == 0:
                connection.close()  # Its supervisor is about to give it a schema.
                return None
        except sqlite3.Error as error:
            connection.close()
            raise explained(self.path, "cannot be read", error) from error
        return connection

    def _lies_still(self) -> bool:
        """Whether nobody can be writing: it lies on a read-only disk, and has no log."""
        return bool(os.statvfs(self.path).f_flag & os.ST_RDONLY) and not size_of(f"{self.path}-wal")

    def close(self) -> None:
        """Close this thread's connection."""
        if hasattr(self._local, "open"):
            del self._local.open


def outcomes_of(connection: sqlite3.Connection, batch: int) -> tuple[list[Results], list[Failure]]:
    """All results and failures of a batch, in the order of its calls."""
    span = (invocation_number(batch, 0), invocation_number(batch, (1 << INDEX_BITS) - 1))
    results = [results_from(row) for row in connection.execute(queries.RESULTS_OF_BATCH, span)]
    failures = [failure_from(row) for row in connection.execute(queries.FAILURES_OF_BATCH, span)]
    return results, failures


def counts_of(connection: sqlite3.Connection, ranges: Sequence[tuple[int, int]]) -> list[TaskCounts]:
    """How many calls there are of each task in the batches `[first, stop)` of each range, and how many ended how."""
    found: dict[str, TaskCounts] = {}
    for bounds in ranges:
        for task_id, *numbers in connection.execute(queries.COUNTS_OF_BATCHES, bounds):
            before = found.get(task_id, TaskCounts(task_id, 0, 0, 0))
            found[task_id] = TaskCounts(task_id, *(a + b for a, b in zip(before[1:], numbers, strict=True)))
    return sorted(found.values())


def results_from(row: Sequence[Any]) -> Results:
    """A row of the table of results as the message that it came from."""
    return Results(*split_number(row[0]), *row[1:])


def failure_from(row: Sequence[Any]) -> Failure:
    """A row of the table of failures as the message that it came from."""
    return Failure._make((*split_number(row[0]), *row[1:5], NOT_RETRIABLE, *row[5:]))
