"""The writer of the state backend. Runs in the supervisor, which is the only one to write.

Rows are collected during a turn of the loop and committed in one transaction at its end. Nothing is ever updated:
what is known about a call is added, so a commit costs the same however large the database is.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable
from typing import Any

from pynenc.exceptions import StateBackendError
from pynenc.protocol.extras import KEY_BYTES, NONE, Extras, key_at
from pynenc.protocol.messages import Batch, Failure, Results, invocation_number, split_number
from pynenc.state_backend import queries, reader
from pynenc.state_backend.checkpoints import Checkpoints
from pynenc.state_backend.faults import Fault, explained
from pynenc.state_backend.opening import open_for_writing, set_aside
from pynenc.state_backend.retention import LargeResults, Retention
from pynenc.state_backend.shelf import Shelf


class Store:
    """The connection that writes.

    Attributes:
        checkpoints: Move the log into the database.
        shelf: What is not finished.
        set_aside: Under which name a damaged database was set aside when this was opened; empty when none was.
        added_bytes: How many bytes of arguments and results wait for the next commit, about.
        commits: How many there were that wrote something.
    """

    def __init__(self, path: str, durability: str = "NORMAL") -> None:
        self.path = path
        self._clients: list[tuple[int, int, float]] = []
        self._tasks: list[tuple[int, str, str, str]] = []
        self._names: list[tuple[str, str, int]] = []
        self._common: list[tuple[int, bytes]] = []
        self._batches: list[Batch] = []
        self._cache_keys: list[tuple[bytes, int]] = []
        self._named_batches: list[tuple[int, int]] = []
        self._results: list[tuple[Any, ...]] = []
        self._failures: list[tuple[Any, ...]] = []
        self._transitions: list[tuple[int, int, str, int, float]] = []
        self._blobs: list[tuple[int, int, bytes, int]] = []
        self._forgotten_blobs: list[tuple[int, int]] = []
        self._added: tuple[tuple[str, list[Any]], ...] = (
            (queries.ADD_CLIENT, self._clients),
            (queries.ADD_TASK, self._tasks),
            (queries.NAME_GROUP, self._names),
            (queries.ADD_COMMON, self._common),
            (queries.ADD_BATCH, self._batches),
            (queries.ADD_CACHE_KEY, self._cache_keys),
            (queries.ADD_NAMED_BATCH, self._named_batches),
            (queries.ADD_RESULTS, self._results),
            (queries.ADD_FAILURE, self._failures),
            (queries.ADD_TRANSITION, self._transitions),
            (queries.ADD_BLOB, self._blobs),
            (queries.FORGET_BLOBS, self._forgotten_blobs),
        )
        self.added_bytes = 0
        self.commits = 0
        self._is_closed = False
        self._connection, self._witness, self.set_aside = open_for_writing(path, durability)
        self.checkpoints = Checkpoints(path, self._connection)
        file = os.stat(path)
        self._file = (file.st_dev, file.st_ino)
        # Numbers are given here, so that giving one waits for nothing; each is committed before anybody is told of it.
        self._last_client = self._last_before = self._number(queries.LAST_CLIENT)
        self._last_task = self._number(queries.LAST_TASK)
        self._last_common = self._number(queries.LAST_COMMON)
        self._task_numbers: dict[tuple[str, str, str], int] = {}
        self.shelf = Shelf(self._connection, path, lambda: self._last_client)

    def _number(self, query: str) -> int:
        row = self._row(query)
        return (row[0] or 0) if row else 0

    def add_client(self, pid: int) -> int:
        """Give a client its number; it may be told when that is committed."""
        self._last_client += 1
        self._clients.append((self._last_client, pid, time.time()))
        return self._last_client

    def add_task(self, task_id: str, options: str, context: str) -> int:
        """Give a task, as it is declared here, its number."""
        key = (task_id, options, context)
        number = self._task_numbers.get(key)
        if number is None:
            row = self._row(queries.TASK_NUMBER, key)
            if row is None:
                self._last_task += 1
                self._tasks.append((self._last_task, *key))
            number = self._task_numbers[key] = row[0] if row is not None else self._last_task
        return number

    def add_batch(self, batch: Batch, extras: Extras = NONE) -> None:
        """Keep a batch; `extras` are those in its bytes, which whoever took it in has read."""
        self._batches.append(batch)
        self.added_bytes += len(batch.payload)
        if extras.cache:
            self._cache_keys += [
                (key_at(extras.cache, index), invocation_number(batch.id, index))
                for index in range(len(extras.cache) // KEY_BYTES)
            ]
        if extras.items:
            self._named_batches.append((batch.group, batch.id))

    def add_common_arguments(self, payload: bytes) -> int:
        """Keep arguments that the calls of a group share; their number, which may be told when they are committed."""
        self._last_common += 1
        self._common.append((self._last_common, payload))
        self.added_bytes += len(payload)
        return self._last_common

    def has_common_arguments(self, number: int) -> bool:
        """Whether these arguments were kept."""
        return any(added == number for added, _ in self._common) or self._row(queries.HAS_COMMON, (number,)) is not None

    def common_arguments(self, number: int) -> bytes:
        """Arguments that the calls of a group share."""
        for added, payload in self._common:
            if added == number:
                return payload
        return bytes(self._kept(queries.COMMON, number)[0])

    def name_group(self, task_id: str, name: str, group: int) -> int:
        """Give a group its name, unless there is a group of that name; the group's number, to be told when it is committed."""
        for row in self._names:
            if row[:2] == (task_id, name):
                return row[2]
        known = self._row(queries.NAMED_GROUP, (task_id, name))
        if known is not None:
            return int(known[0])
        self._names.append((task_id, name, group))
        return group

    def add_results(self, results: Results) -> None:
        number = invocation_number(results.batch, results.first)
        self._results.append((number, *results[2:]))
        self.added_bytes += len(results.payload) + len(results.ends)

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
            StateBackendError: The database did not take it (disk full, locked). Nothing of it is written, and the next commit
                tries it again.
        """
        added = [one for one in self._added if one[1]]
        added += self.shelf.changes()
        if not added:
            return
        run = self._connection.execute
        try:
            run("BEGIN IMMEDIATE")
            for query, rows in added:
                self._connection.executemany(query, rows)
            run("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    run("ROLLBACK")
            raise explained(self.path, "did not take a commit", error) from error
        self.commits += 1
        written, self.added_bytes = 4096 + self.added_bytes, 0
        for _, rows in added:
            rows.clear()
        self.shelf.committed()
        self.checkpoints.written(written)

    def see_that_it_is_there(self) -> None:
        """Raise when the file that is written has another name by now, or none.

        Raises:
            StateBackendError: It has; what is committed would not be found.
        """
        try:
            file = os.stat(self.path)
        except OSError:
            file = None
        if file is None or (file.st_dev, file.st_ino) != self._file:
            raise StateBackendError(f"{self.path} was deleted or moved away while it was used", Fault.GONE)

    def retention(self, seconds: float | None, max_bytes: int | None, blobs: LargeResults) -> Retention:
        """Bounds how long and how much is kept; see there."""
        if max_bytes is not None:
            self.checkpoints.bound(max_bytes)
        return Retention(self._connection, self.path, seconds, max_bytes, self._last_before, blobs)

    def give_up(self, aside: bool) -> str:
        """Close the database as it is: nothing more is written, and no file is removed.

        Args:
            aside: Whether to give it another name, so that a new one can be begun.

        Returns:
            Its new name, if it was given one.
        """
        self._is_closed = True
        self.checkpoints.join()
        self._connection.close()  # The witness keeps it from cleaning up by name.
        name = set_aside(self.path) if aside else ""
        self._witness.close()
        return name

    def arguments(self, batch: int) -> bytes:
        """The argument bytes of a batch that was committed."""
        return bytes(self._kept(queries.ARGUMENTS, batch)[0])

    def results_at(self, number: int) -> Results:
        """The stretch of results that begins with this invocation."""
        return reader.results_from(self._kept(queries.RESULTS_AT, number))

    def failure_at(self, number: int) -> Failure:
        """The failure of this invocation."""
        return reader.failure_from(self._kept(queries.FAILURE_AT, number))

    def failure_of(self, number: int) -> Failure | None:
        """Why this invocation has no result, if that is known."""
        batch, index = split_number(number)
        _, failures = self.outcomes_of(batch)
        return next((one for one in failures if one.first <= index < one.stop), None)

    def first_without_result(self, batch: int, first: int, stop: int) -> int:
        """The first of the calls `[first, stop)` of a batch that has no result, as an invocation number; 0 if all have."""
        committed, _ = self.outcomes_of(batch)
        added = [reader.results_from(row) for row in self._results if split_number(row[0])[0] == batch]
        at = first
        for one in sorted([*committed, *added]):
            if one.first <= at:
                at = max(at, one.stop)
        return 0 if at >= stop else invocation_number(batch, at)

    def batch(self, number: int) -> Batch | None:
        """A batch that was committed, as it was sent; its task has the number that it has here."""
        row = self._row(queries.WHOLE_BATCH, (number,))
        return Batch._make(row) if row else None

    def dependencies_of(self, batch: int) -> set[int]:
        """The batches whose results the calls of a batch take that was committed."""
        row = self._row(queries.EXTRAS, (batch,))
        return {on.batch for on in Extras.from_bytes(row[1], row[0]).depended_on()} if row else set()

    def is_unfinished(self, batch: int) -> bool:
        """Whether a batch was committed, and calls of it have no outcome yet."""
        row = self._row(queries.LEFT_OF_BATCH, (batch,))
        ended = [row[:2] for row in self._results] + [row[:2] for row in self._failures if row[4]]
        added = sum(stop - split_number(number)[1] for number, stop in ended if split_number(number)[0] == batch)
        return row is not None and row[0] > added

    def uncommitted_batches(self) -> set[int]:
        """Those that wait for the next commit."""
        return {row[0] for row in self._batches}

    def parents_of(self, batches: Iterable[int]) -> dict[int, int]:
        """The invocation that made each of these batches, 0 where none did; what is no batch is left out."""
        parents = {added.id: added.parent for added in self._batches}
        for batch in batches:
            if batch not in parents and (row := self._row(queries.PARENT, (batch,))) is not None:
                parents[batch] = row[0]
        return parents

    def parent_of(self, batch: int) -> int | None:
        """The invocation that made a batch, 0 for none; None when there is no such batch."""
        return self.parents_of([batch]).get(batch)

    def has_ended(self, invocation: int) -> bool:
        """Whether an invocation has its outcome."""
        _, index = split_number(invocation)
        ended = [row[:2] for row in self._results] + [row[:2] for row in self._failures if row[4]]
        if any(invocation - index <= first <= invocation and index < stop for first, stop in ended):
            return True
        bounds = (invocation - index, invocation, index)
        return bool(self._row(queries.HAS_ENDED, (*bounds, *bounds))[0])

    def task(self, number: int) -> tuple[str, str, str]:
        """A task's id, its options and where it is imported from, both JSON."""
        task_id, options, context = self._kept(queries.TASK, number)
        return task_id, options, context

    def retries_of(self, batch: int) -> dict[int, int]:
        """How many attempts of each call of a batch were followed by another."""
        bounds = (invocation_number(batch, 0), invocation_number(batch + 1, 0) - 1)
        return {split_number(number)[1]: count for number, count in self._rows(queries.RETRIES_OF_BATCH, bounds)}

    def outcomes_of(self, batch: int) -> tuple[list[Results], list[Failure]]:
        """All results and failures of a batch that were committed."""
        try:
            return reader.outcomes_of(self._connection, batch)
        except sqlite3.Error as error:
            raise explained(self.path, "cannot be read", error) from error

    def purge(self) -> None:
        """Forget all batches, results and failures, and give the disk their room back; client numbers stay used up.

        Raises:
            StateBackendError: The database did not take it; nothing is forgotten.
        """
        run = self._connection.execute
        try:
            run("BEGIN IMMEDIATE")
            for statement in queries.PURGE:
                run(statement)
            run("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    run("ROLLBACK")
            raise explained(self.path, "was not purged", error) from error
        with contextlib.suppress(sqlite3.Error):  # All is forgotten; the file gets smaller another time.
            run("PRAGMA auto_vacuum = INCREMENTAL")  # An old database has it from here on.
            run("VACUUM")
        self.commits += 1
        self.checkpoints.empty_log()

    def close(self) -> None:
        """Commit, move the log into the database and close it; the log's files are gone then.

        Raises:
            StateBackendError: The database did not take it.
        """
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.commit()
        finally:
            self.checkpoints.join()
            self._witness.close()
            # A reader that is still open keeps the log's file from being removed, but not from being emptied.
            self.checkpoints.empty_log()
            self._connection.close()

    def _row(self, query: str, values: tuple[Any, ...] = ()) -> Any:
        """The first row; None when there is none."""
        rows = self._rows(query, values)
        return rows[0] if rows else None

    def _kept(self, query: str, number: int) -> Any:
        """The row that belongs to a number that was given here."""
        row = self._row(query, (number,))
        if row is None:
            raise StateBackendError(f"{self.path} has lost what it had of number {number}", Fault.UNKNOWN)
        return row

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise explained(self.path, "cannot be read", error) from error
