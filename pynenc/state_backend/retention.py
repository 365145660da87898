"""Forget what is final and old, or too much, a few milliseconds at a time. Runs in the supervisor, between turns.

Batches of one client are numbered in the order in which they were made, so the oldest batch of all is one of the clients' oldest:
those are kept in a heap, and no index by time is needed. An index would cost every commit something.
"""

from __future__ import annotations

import contextlib
import heapq
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from pynenc.exceptions import ProtocolError
from pynenc.protocol.extras import KEY_BYTES, NONE, Extras, key_at
from pynenc.protocol.messages import BATCH_NUMBER_BITS, first_batch_of, invocation_number
from pynenc.state_backend import queries
from pynenc.state_backend.faults import explained
from pynenc.state_backend.opening import size_of

DATABASE_SHARE = 0.75
"""Of the size that is allowed; the rest is for the log, and for pages that wait to be used again."""

SPARE_SHARE = 8
"""The file is made smaller when more than one page of so many is unused: fewer are soon used again."""

SPARE_PAGES = 16
VACUUM_PAGES = 128
"""How many pages are given back at once; about two milliseconds."""

CLIENTS_AT_ONCE = 1000


class LargeResults(Protocol):
    """What the supervisor keeps of results beside the database."""

    result_bytes: int

    def results_dropped(self, numbers: Iterable[int]) -> None:
        """Results are not needed any more: those of these invocations, each the first of a stretch."""


class Retention:
    """What is to be forgotten of one database.

    Args:
        connection: The one that writes.
        path: The database.
        seconds: How long calls are kept after they have ended; None for ever.
        max_bytes: How large the database and its log may be together; None for any size.
        last_client: The last client that an earlier supervisor knew.
        blobs: Where large results lie, beside the database; they go with their calls.

    Attributes:
        has_spared: Whether something stays that is due, because somebody needed it when it was looked at.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: str,
        seconds: float | None,
        max_bytes: int | None,
        last_client: int,
        blobs: LargeResults,
    ) -> None:
        self._connection = connection
        self._path = path
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._last_client = last_client
        self._blobs = blobs
        self._dropped: list[int] = []
        self._dropped_bytes = 0
        self._next_client = 1
        self._page_bytes: int = self._pragma("page_size")
        self._shrinks = self._pragma("auto_vacuum") == 2
        self._scan_from: int | None = 0
        self._oldest: list[tuple[float, int]] = []
        self._kept_groups: set[int] = set()
        self.has_spared = False

    def begin(self) -> None:
        """Look at everything anew with the next steps."""
        self.has_spared = False
        self._scan_from = 0
        self._oldest.clear()
        self._kept_groups.clear()
        self._next_client = 1

    def step(self, now: float, is_needed: Callable[[int], bool], budget_s: float) -> bool:
        """Do a little of what is to be done, in one transaction.

        Args:
            now: Seconds since the epoch.
            is_needed: Whether somebody still needs a batch, or the named group that began with it.
            budget_s: How long it may take, about: a single large result is forgotten as a whole.

        Returns:
            Whether there is more to do.

        Raises:
            StateBackendError: The database did not take it; nothing of this step is done.
        """
        deadline = time.monotonic() + budget_s
        run = self._connection.execute
        try:
            if self._has_limits() and self._scan(deadline):
                return True
            if self._is_due(now):
                run("BEGIN IMMEDIATE")
                while self._is_due(now) and time.monotonic() < deadline:
                    self._forget_oldest(now, is_needed)
                run("COMMIT")
                self._blobs.results_dropped(self._dropped)
                self._forget_dropped()
                return True
            if self._next_client <= self._last_client:
                last = min(self._last_client, self._next_client + CLIENTS_AT_ONCE - 1)
                run(queries.FORGET_CLIENTS, (self._next_client, last))
                self._next_client = last + 1
                return True
            return self._give_pages_back()
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    run("ROLLBACK")
            self._forget_dropped()
            self.begin()
            raise explained(self._path, "was not made smaller", error) from error

    def next_due(self, now: float) -> float | None:
        """In how many seconds the oldest call will be too old, if any grows old; known at the end of the steps."""
        if self._seconds is None or not self._oldest:
            return None
        return max(0.0, self._oldest[0][0] + self._seconds - now)

    def stored_bytes(self) -> int:
        """How large all that is kept is; what is unused in the file does not count, for it is used again."""
        in_database = (self._pragma("page_count") - self._pragma("freelist_count")) * self._page_bytes
        return in_database + self._blobs.result_bytes - self._dropped_bytes

    def _forget_dropped(self) -> None:
        self._dropped, self._dropped_bytes = [], 0

    def is_behind(self) -> bool:
        """Whether more is kept than is allowed, although parts are forgotten."""
        return self._max_bytes is not None and self.stored_bytes() + size_of(f"{self._path}-wal") > self._max_bytes

    def _has_limits(self) -> bool:
        return self._seconds is not None or self._is_too_large()

    def _is_too_large(self) -> bool:
        return self._max_bytes is not None and self.stored_bytes() > DATABASE_SHARE * self._max_bytes

    def _is_due(self, now: float) -> bool:
        if not self._oldest:
            return False
        return self._is_too_old(self._oldest[0][0], now) or self._is_too_large()

    def _is_too_old(self, at: float, now: float) -> bool:
        return self._seconds is not None and at + self._seconds < now

    def _scan(self, deadline: float) -> bool:
        """Find each client's oldest batch; whether some are still to be found."""
        while self._scan_from is not None and time.monotonic() < deadline:
            found = self._connection.execute(queries.OLDEST_BATCH, (self._scan_from,)).fetchone()
            if found is None:
                self._scan_from = None
            else:
                batch, registered = found
                heapq.heappush(self._oldest, (registered, batch))
                self._scan_from = first_batch_of((batch >> BATCH_NUMBER_BITS) + 1)
        return self._scan_from is not None

    def _forget_oldest(self, now: float, is_needed: Callable[[int], bool]) -> None:
        _, batch = heapq.heappop(self._oldest)
        if is_needed(batch):
            self.has_spared = True
        else:
            self._forget(batch, now, is_needed)
        # Whether it is forgotten or has to stay, the next one of the same client is that one's oldest to look at.
        after = self._connection.execute(queries.OLDEST_BATCH, (batch + 1,)).fetchone()
        if after is not None and after[0] >> BATCH_NUMBER_BITS == batch >> BATCH_NUMBER_BITS:
            heapq.heappush(self._oldest, (after[1], after[0]))

    def _forget(self, batch: int, now: float, is_needed: Callable[[int], bool]) -> None:
        run = self._connection.execute
        found = run(queries.BATCH_TO_FORGET, (batch,)).fetchone()
        if found is None:
            return  # Everything was purged between two steps.
        count, group, extras_bytes = found
        span = {"first": invocation_number(batch, 0), "last": invocation_number(batch + 1, 0) - 1}
        ended, last = run(queries.ENDED, span).fetchone()
        if ended != count:
            return  # Its supervisor was killed, and nobody has run it since.
        too_large = self._is_too_large()
        if not too_large and not self._is_too_old(last, now):
            return
        if run(queries.IS_NAMED, (group, batch)).fetchone() and not self._forget_name(group, now, too_large, is_needed):
            return
        try:
            extras = Extras.from_bytes(extras_bytes, count)
        except ProtocolError:  # Another version's.
            extras = NONE
        for index in range(len(extras.cache) // KEY_BYTES):
            run(queries.FORGET_CACHE_KEY, (key_at(extras.cache, index), invocation_number(batch, index)))
        for number, size in run(queries.BLOBS_OF_RESULTS, span).fetchall():
            self._dropped.append(number)
            self._dropped_bytes += size
        run(queries.FORGET_BLOBS_OF_RESULTS, span)
        for statement in queries.FORGET_OUTCOMES:
            run(statement, span)
        for statement in queries.FORGET_BATCH:
            run(statement, (batch,))
        if extras.common:
            client = batch >> BATCH_NUMBER_BITS
            those = {"first": first_batch_of(client), "last": first_batch_of(client + 1) - 1, "group": group}
            common = {"common": extras.common, "bytes": extras.common.to_bytes(8, "little")}
            run(queries.FORGET_COMMON, {**those, **common})

    def _forget_name(self, group: int, now: float, too_large: bool, is_needed: Callable[[int], bool]) -> bool:
        """Take a named group its name, so that no run goes on with a part of it; False when it has to stay."""
        if group in self._kept_groups:
            return False
        batches = self._connection.execute(queries.NAMED_SINCE, (group,)).fetchall()
        in_use = is_needed(group) or any(is_needed(batch) for batch, _ in batches)
        if in_use or not (too_large or all(self._is_too_old(registered, now) for _, registered in batches)):
            self._kept_groups.add(group)
            return False
        for statement in queries.FORGET_NAME:
            self._connection.execute(statement, (group,))
        return True

    def _give_pages_back(self) -> bool:
        spare = max(SPARE_PAGES, self._pragma("page_count") // SPARE_SHARE)
        if not self._shrinks or self._pragma("freelist_count") <= spare:
            return False
        # Not `execute`, which would stop after the first page.
        self._connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
        return True

    def _pragma(self, name: str) -> int:
        value: int = self._connection.execute(f"PRAGMA {name}").fetchone()[0]
        return value
