"""The writer of the state backend. Runs in the supervisor, which is the only one to write.

Rows are collected during a turn of the loop and committed in one transaction at its end. Nothing is ever updated:
what is known about a call is added, so a commit costs the same however large the database is.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterable
from typing import Any

from pynenc.exceptions import StateBackendError
from pynenc.protocol.extras import KEY_BYTES, NONE, Extras, key_at
from pynenc.protocol.messages import Batch, Failure, Results, invocation_number, split_number
from pynenc.state_backend import migrations, queries, reader
from pynenc.state_backend.shelf import Shelf

CHECKPOINT_BYTES = 32 << 20
"""Move the write-ahead log into the database when it has grown by this much."""

MAX_LOG_BYTES = 128 << 20
"""A log of this size is moved at once, however busy the loop is."""


class Store:
    """One connection that writes, and one thread that moves the log into the database.

    Checkpoints wait for the disk, so they run beside the loop, not in it.

    Attributes:
        shelf: What is not finished.
    """

    def __init__(self, path: str, durability: str = "NORMAL") -> None:
        self.path = path
        self._batches: list[tuple[Any, ...]] = []
        self._cache_keys: list[tuple[bytes, int]] = []
        self._named_batches: list[tuple[int, int]] = []
        self._results: list[tuple[Any, ...]] = []
        self._failures: list[tuple[Any, ...]] = []
        self._transitions: list[tuple[int, int, str, int, float]] = []
        self._blobs: list[tuple[int, int, bytes, int]] = []
        self._forgotten_blobs: list[tuple[int, int]] = []
        self._written = 0
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            os.chmod(path, 0o600)
            self._connection.execute("PRAGMA busy_timeout = 10000")
            migrations.bring_up(self._connection, path)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute(f"PRAGMA synchronous = {durability}")
            self._connection.execute("PRAGMA wal_autocheckpoint = 0")
        except sqlite3.Error as error:
            raise StateBackendError(f"{path} cannot be used as pynenc's database: {error}") from error
        self.shelf = Shelf(self._connection)
        self._checkpoint: threading.Thread | None = None

    def add_client(self, pid: int) -> int:
        """Give a client its number."""
        number = self._connection.execute(queries.ADD_CLIENT, (pid, time.time())).lastrowid
        assert number is not None
        return number

    def add_task(self, task_id: str, options: str, context: str) -> int:
        """Give a task, as it is declared here, its number."""
        key = (task_id, options, context)
        self._connection.execute(queries.ADD_TASK, key)
        number: int = self._connection.execute(queries.TASK_NUMBER, key).fetchone()[0]
        return number

    def add_batch(self, batch: Batch, extras: Extras = NONE) -> None:
        """Keep a batch; `extras` are those in its bytes, which whoever took it in has read."""
        self._batches.append(batch)
        if extras.cache:
            self._cache_keys += [
                (key_at(extras.cache, index), invocation_number(batch.id, index))
                for index in range(len(extras.cache) // KEY_BYTES)
            ]
        if extras.items:
            self._named_batches.append((batch.group, batch.id))

    def add_common_arguments(self, payload: bytes) -> int:
        """Keep arguments that the calls of a group share; their number."""
        number = self._connection.execute(queries.ADD_COMMON, (payload,)).lastrowid
        assert number is not None
        return number

    def has_common_arguments(self, number: int) -> bool:
        """Whether these arguments were kept."""
        return self._connection.execute(queries.HAS_COMMON, (number,)).fetchone() is not None

    def common_arguments(self, number: int) -> bytes:
        """Arguments that the calls of a group share."""
        payload: bytes = self._connection.execute(queries.COMMON, (number,)).fetchone()[0]
        return payload

    def name_group(self, task_id: str, name: str, group: int) -> int:
        """Give a group its name, unless there is a group of that name; the group's number."""
        self._connection.execute(queries.NAME_GROUP, (task_id, name, group))
        number: int = self._connection.execute(queries.NAMED_GROUP, (task_id, name)).fetchone()[0]
        return number

    def add_results(self, results: Results) -> None:
        number = invocation_number(results.batch, results.first)
        self._results.append((number, *results[2:]))
        self._written += len(results.payload) + len(results.ends)

    def add_failure(self, failure: Failure) -> None:
        # What a worker wishes for the next attempt is no part of what happened.
        number = invocation_number(failure.batch, failure.first)
        self._failures.append((number, *failure[2:6], *failure[7:]))

    def add_transition(self, batch: int, first: int, stop: int, status: str, worker: int, at: float) -> None:
        """Keep a step of the calls `[first, stop)` on the way to their outcome, at this time (seconds since the epoch)."""
        self._transitions.append((invocation_number(batch, first), stop, status, worker, at))

    def add_blobs(self, kind: int, number: int, references: Iterable[tuple[bytes, int]]) -> None:
        """Keep to which blobs, with names and sizes, a batch or results refer."""
        self._blobs += [(kind, number, name, size) for name, size in references]

    def forget_blobs(self, kind: int, number: int) -> None:
        """They refer to none any more."""
        self._forgotten_blobs.append((kind, number))

    def blobs(self) -> list[tuple[int, int, bytes, int]]:
        """All blobs that something refers to: its kind, its number, name and size of the blob."""
        return self._connection.execute(queries.BLOBS).fetchall()

    def commit(self) -> None:
        """Write what has been added since the last commit, in one transaction.

        Raises:
            StateBackendError: The database did not take it (disk full, locked); nothing of it is written.
        """
        if not (
            self._batches
            or self._results
            or self._failures
            or self._transitions
            or self._blobs
            or self._forgotten_blobs
        ):
            return
        run = self._connection.execute
        many = self._connection.executemany
        try:
            run("BEGIN IMMEDIATE")
            if self._batches:
                many(queries.ADD_BATCH, self._batches)
                self._written += sum(len(row[7]) for row in self._batches)
            if self._cache_keys:
                many(queries.ADD_CACHE_KEY, self._cache_keys)
            if self._named_batches:
                many(queries.ADD_NAMED_BATCH, self._named_batches)
            if self._results:
                many(queries.ADD_RESULTS, self._results)
            if self._failures:
                many(queries.ADD_FAILURE, self._failures)
            if self._transitions:
                many(queries.ADD_TRANSITION, self._transitions)
            if self._blobs:
                many(queries.ADD_BLOB, self._blobs)
            if self._forgotten_blobs:
                many(queries.FORGET_BLOBS, self._forgotten_blobs)
            run("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                run("ROLLBACK")
            raise StateBackendError(f"{self.path} did not take a commit: {error}") from error
        self._written += 4096
        self._batches.clear()
        self._cache_keys.clear()
        self._named_batches.clear()
        self._results.clear()
        self._failures.clear()
        self._transitions.clear()
        self._blobs.clear()
        self._forgotten_blobs.clear()
        if self._written > CHECKPOINT_BYTES:
            self._start_checkpoint()

    def arguments(self, batch: int) -> bytes:
        """The argument bytes of a batch that was committed."""
        payload: bytes = self._connection.execute(queries.ARGUMENTS, (batch,)).fetchone()[0]
        return payload

    def results_at(self, number: int) -> Results:
        """The stretch of results that begins with this invocation."""
        return reader.results_from(self._connection.execute(queries.RESULTS_AT, (number,)).fetchone())

    def failure_at(self, number: int) -> Failure:
        """The failure of this invocation."""
        return reader.failure_from(self._connection.execute(queries.FAILURE_AT, (number,)).fetchone())

    def failure_of(self, number: int) -> Failure | None:
        """Why this invocation has no result, if that is known."""
        batch, index = split_number(number)
        _, failures = self.outcomes_of(batch)
        return next((one for one in failures if one.first <= index < one.stop), None)

    def first_without_result(self, batch: int, first: int, stop: int) -> int:
        """The first of the calls `[first, stop)` of a batch that has no result, as an invocation number; 0 if all have."""
        results, _ = self.outcomes_of(batch)
        at = first
        for one in results:
            if one.first <= at:
                at = max(at, one.stop)
        return 0 if at >= stop else invocation_number(batch, at)

    def batch(self, number: int) -> Batch | None:
        """A batch that was committed, as it was sent; its task has the number that it has here."""
        row = self._connection.execute(queries.WHOLE_BATCH, (number,)).fetchone()
        return Batch._make(row) if row else None

    def task(self, number: int) -> tuple[str, str, str]:
        """A task's id, its options and where it is imported from, both JSON."""
        task_id, options, context = self._connection.execute(queries.TASK, (number,)).fetchone()
        return task_id, options, context

    def retries_of(self, batch: int) -> dict[int, int]:
        """How many attempts of each call of a batch were followed by another."""
        bounds = (invocation_number(batch, 0), invocation_number(batch + 1, 0) - 1)
        rows = self._connection.execute(queries.RETRIES_OF_BATCH, bounds).fetchall()
        return {split_number(number)[1]: count for number, count in rows}

    def outcomes_of(self, batch: int) -> tuple[list[Results], list[Failure]]:
        """All results and failures of a batch that were committed."""
        return reader.outcomes_of(self._connection, batch)

    def purge(self) -> None:
        """Forget all batches, results and failures; client numbers stay used up."""
        for statement in queries.PURGE:
            self._connection.execute(statement)

    def close(self) -> None:
        """Commit, move the log into the database and close it; the log's files are gone then."""
        try:
            self.commit()
        finally:
            if self._checkpoint is not None:
                self._checkpoint.join()
            # A reader that is still open keeps the log's file from being removed, but not from being emptied.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.close()

    def _start_checkpoint(self) -> None:
        if self._checkpoint is not None and self._checkpoint.is_alive():
            return
        self._written = 0
        try:
            log_bytes = os.stat(f"{self.path}-wal").st_size
        except OSError:
            return
        if log_bytes > MAX_LOG_BYTES:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return
        self._checkpoint = threading.Thread(target=_checkpoint, args=(self.path,), name="pynenc-checkpoint")
        self._checkpoint.start()


def _checkpoint(path: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    finally:
        connection.close()
