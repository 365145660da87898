"""What supervisors left unfinished, and whether on purpose. Written by the supervisor only.

One rule holds at all times: every batch that is not finished is shelved, or its client's number is above the mark. A
supervisor that ends with nothing left, or that shelves what is left, raises the mark over all clients; one that is killed
cannot. So the next one knows what to take up without reading anything that was settled before.

What changes is written with the next commit of the store, together with whatever it is about. What is asked here of several
batches at once is what is committed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pynenc.protocol.messages import BATCH_NUMBER_BITS, first_batch_of
from pynenc.state_backend import queries
from pynenc.state_backend.faults import explained
from pynenc.state_backend.reader import TaskCounts, counts_of

STRETCH = 2000
"""So many batches are looked at in one go."""


class Shelf:
    """Batches that are not finished.

    Args:
        connection: The one that writes.
        path: The database.
        last_client: The highest number that a client has.

    Attributes:
        has_taken: Whether batches were taken and that is not committed yet. They must not begin before: should this supervisor
            be killed, the next one would believe that they have not.
    """

    def __init__(self, connection: sqlite3.Connection, path: str, last_client: Callable[[], int]) -> None:
        self._connection = connection
        self._path = path
        self._last_client = last_client
        self._mark = self._written_mark = int(self._rows(queries.SETTLED)[0][0])
        self._changed: dict[int, bool] = {}
        self.has_taken = False

    @property
    def first_unsettled(self) -> int:
        """All batches below this number are finished or shelved."""
        return first_batch_of(self._mark + 1)

    def settle(self, lowest_client: int | None = None) -> None:
        """All batches are finished or shelved; those that may come are of clients from this number on, or of new ones."""
        mark = self._last_client() if lowest_client is None else lowest_client - 1
        self._mark = max(self._mark, mark)

    def unsettle(self, client: int) -> None:
        """A client of an earlier supervisor may send batches again."""
        self._mark = min(self._mark, client - 1)

    def put(self, batches: Iterable[int]) -> None:
        """Keep batches until somebody asks for them."""
        self._changed.update(dict.fromkeys(batches, True))

    def take(self, batches: Iterable[int]) -> set[int]:
        """Have batches run now; those of them that were shelved. If this supervisor is killed, the next one takes them up."""
        taken = list(batches)
        shelved = {batch for batch in taken if self.has(batch)}
        for batch in shelved:
            self._changed[batch] = False
        if taken:
            self.unsettle(min(taken) >> BATCH_NUMBER_BITS)
        self.has_taken = self.has_taken or bool(shelved) or self._mark < self._written_mark
        return shelved

    def has(self, batch: int) -> bool:
        """Whether a batch is kept until somebody asks for it."""
        if batch in self._changed:
            return self._changed[batch]
        return bool(self._rows(queries.IS_SHELVED, (batch,)))

    def changes(self) -> list[tuple[str, list[Any]]]:
        """What is to be written with the next commit: statements, each with its rows."""
        changes: list[tuple[str, list[Any]]] = []
        if self._changed:
            put = [(batch,) for batch, is_shelved in self._changed.items() if is_shelved]
            taken = [(batch,) for batch, is_shelved in self._changed.items() if not is_shelved]
            changes += [(queries.SHELVE, put), (queries.UNSHELVE, taken)]
        if self._mark != self._written_mark:
            changes.append((queries.SETTLE, [(self._mark,)]))
        return changes

    def committed(self) -> None:
        """The changes are written."""
        self._changed.clear()
        self._written_mark = self._mark
        self.has_taken = False

    def shelved(self) -> list[tuple[int, int]]:
        """The shelved batches, and the invocation that made each of them (0: none did)."""
        return self._rows(queries.SHELVED)

    def unfinished_of_group(self, group: int) -> list[tuple[int, int]]:
        """The unfinished batches of a named group, and the invocation that made each of them."""
        return self._rows(queries.UNFINISHED_OF_GROUP, (group,))

    def unfinished_after(self, batch: int) -> tuple[list[tuple[int, int]], int | None]:
        """The unfinished ones among the batches that follow; and the last one that was looked at, None when none is left."""
        last: int | None = self._rows(queries.END_OF_STRETCH, (batch, STRETCH))[0][0]
        if last is None:
            return [], None
        return self._rows(queries.UNFINISHED, (batch, last)), last

    def counts_of(self, ranges: Sequence[tuple[int, int]]) -> list[TaskCounts]:
        """How many calls of each task there are in the batches `[first, stop)` of each range, and how many ended how."""
        try:
            return counts_of(self._connection, ranges)
        except sqlite3.Error as error:
            raise explained(self._path, "cannot be read", error) from error

    def _rows(self, query: str, values: tuple[int, ...] = ()) -> list[Any]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise explained(self._path, "cannot be read", error) from error
