"""What supervisors left unfinished, and whether on purpose. Written by the supervisor only.

One rule holds at all times: every batch that is not finished is shelved, or its client's number is above the mark. A
supervisor that ends with nothing left, or that shelves what is left, raises the mark over all clients; one that is killed
cannot. So the next one knows what to take up without reading anything that was settled before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from pynenc.exceptions import StateBackendError
from pynenc.protocol.messages import BATCH_NUMBER_BITS, first_batch_of, split_number
from pynenc.state_backend import queries
from pynenc.state_backend.reader import TaskCounts, counts_of

STRETCH = 2000
"""So many batches are looked at in one go."""


class Shelf:
    """Batches that are not finished.

    Args:
        connection: The one that writes.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._mark: int = connection.execute(queries.SETTLED).fetchone()[0]

    @property
    def first_unsettled(self) -> int:
        """All batches below this number are finished or shelved."""
        return first_batch_of(self._mark + 1)

    def settle(self, lowest_client: int | None = None) -> None:
        """All batches are finished or shelved; those that may come are of clients from this number on, or of new ones."""
        if lowest_client is None:
            mark: int = self._connection.execute(queries.LAST_CLIENT).fetchone()[0]
        else:
            mark = lowest_client - 1
        if mark > self._mark:
            self._write([(queries.SETTLE, [(mark,)])])
            self._mark = mark

    def unsettle(self, client: int) -> None:
        """A client of an earlier supervisor may send batches again."""
        if client <= self._mark:
            self._write([(queries.UNSETTLE, [(client - 1,)])])
            self._mark = client - 1

    def put(self, batches: Iterable[int]) -> None:
        """Keep batches until somebody asks for them."""
        self._write([(queries.SHELVE, [(batch,) for batch in batches])])

    def take(self, batches: Iterable[int]) -> set[int]:
        """Have batches run now; those of them that were shelved. If this supervisor is killed, the next one takes them up."""
        rows = [(batch,) for batch in batches]
        shelved = {row[0] for row in rows if self._connection.execute(queries.IS_SHELVED, row).fetchone()}
        client = min(rows)[0] >> BATCH_NUMBER_BITS if rows else self._mark + 1
        if shelved or client <= self._mark:
            self._write([(queries.UNSHELVE, rows), (queries.UNSETTLE, [(client - 1,)])])
            self._mark = min(self._mark, client - 1)
        return shelved

    def shelved(self) -> list[tuple[int, int]]:
        """The shelved batches, and the invocation that made each of them (0: none did)."""
        return self._connection.execute(queries.SHELVED).fetchall()

    def unfinished_of_group(self, group: int) -> list[tuple[int, int]]:
        """The unfinished batches of a named group, and the invocation that made each of them."""
        return self._connection.execute(queries.UNFINISHED_OF_GROUP, (group,)).fetchall()

    def unfinished_after(self, batch: int) -> tuple[list[tuple[int, int]], int | None]:
        """The unfinished ones among the batches that follow; and the last one that was looked at, None when none is left."""
        last: int | None = self._connection.execute(queries.END_OF_STRETCH, (batch, STRETCH)).fetchone()[0]
        if last is None:
            return [], None
        return self._connection.execute(queries.UNFINISHED, (batch, last)).fetchall(), last

    def counts_of(self, ranges: Sequence[tuple[int, int]]) -> list[TaskCounts]:
        """How many calls of each task there are in the batches `[first, stop)` of each range, and how many ended how."""
        return counts_of(self._connection, ranges)

    def has_ended(self, invocation: int) -> bool:
        """Whether an invocation has its outcome."""
        _, index = split_number(invocation)
        bounds = (invocation - index, invocation, index)
        return bool(self._connection.execute(queries.HAS_ENDED, (*bounds, *bounds)).fetchone()[0])

    def parent_of(self, batch: int) -> int | None:
        """The invocation that made a batch, 0 for none; None when there is no such batch."""
        row = self._connection.execute(queries.PARENT, (batch,)).fetchone()
        return None if row is None else int(row[0])

    def _write(self, statements: list[tuple[str, list[tuple[int]]]]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for statement, rows in statements:
                self._connection.executemany(statement, rows)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise StateBackendError(f"the list of kept batches was not written: {error}") from error
