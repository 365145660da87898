"""The readers of the state backend: clients, the command line, the monitor. They never write."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from pynenc.exceptions import StateBackendError
from pynenc.protocol.messages import INDEX_BITS, NOT_RETRIABLE, Failure, Results, invocation_number, split_number
from pynenc.state_backend import migrations, queries


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
        return outcomes_of(connection, batch) if connection else ([], [])

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
        payload: bytes = self._rows(queries.COMMON, (number,))[0][0]
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

    def _rows(self, query: str, values: Sequence[Any]) -> list[Any]:
        connection = self._connection()
        if connection is None:
            return []
        try:
            return connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StateBackendError(f"{self.path} cannot be read: {error}") from error

    def _connection(self) -> sqlite3.Connection | None:
        # One connection for each thread and process: SQLite's may be carried into neither.
        from urllib.parse import quote

        known: tuple[int, sqlite3.Connection] | None = getattr(self._local, "connection", None)
        if known is not None and known[0] == os.getpid():
            return known[1]
        if not os.path.exists(self.path):
            return None
        try:
            connection = sqlite3.connect(f"file:{quote(self.path)}?mode=ro", uri=True, isolation_level=None)
            connection.execute("PRAGMA busy_timeout = 10000")
            migrations.refuse_newer(connection, self.path)
            if migrations.version_of(connection) == 0:
                connection.close()  # Its supervisor is about to give it a schema.
                return None
        except sqlite3.Error as error:
            raise StateBackendError(f"{self.path} cannot be read: {error}") from error
        self._local.connection = (os.getpid(), connection)
        return connection

    def close(self) -> None:
        """Close this thread's connection."""
        known: tuple[int, sqlite3.Connection] | None = getattr(self._local, "connection", None)
        if known is not None:
            known[1].close()
            del self._local.connection


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
