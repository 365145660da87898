"""What the supervisor does now and then: forget what is old, and see that its database still has its name.

Each step takes a few milliseconds. An idle supervisor looks once every ten seconds, which costs nothing that could be measured.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pynenc.exceptions import StateBackendError
from pynenc.state_backend.faults import LASTING
from pynenc.state_backend.retention import LargeResults
from pynenc.state_backend.store import Store
from pynenc.supervisor.committing import log
from pynenc.supervisor.loop import Loop

if TYPE_CHECKING:
    from pynenc.supervisor.turn import Turn

STEP_S = 0.005
PAUSE_S = 0.02
"""Between two steps, so that purging takes a fifth of the time at most, unless it does not keep up."""

BUSY_S = 1.0
IDLE_S = 10.0
"""How long after a look the next one comes, when something was committed in between and when nothing was."""

FINISH_S = 0.1
"""How long a supervisor purges before it ends: scripts that run for less than a second leave no other time for it."""


class Upkeep:
    """Looks after the database.

    Args:
        loop: Calls when it is time.
        store: The database.
        turn: Knows what is needed.
        blobs: Large results.
        retention_s: How long calls are kept.
        max_bytes: How large the database may be.
    """

    def __init__(
        self,
        loop: Loop,
        store: Store,
        turn: Turn,
        blobs: LargeResults,
        retention_s: float | None,
        max_bytes: int | None,
    ) -> None:
        self._loop = loop
        self._store = store
        self._turn = turn
        self._retention = store.retention(retention_s, max_bytes, blobs)
        self._seen_commits = 0
        self._due = 0.0
        self._is_hindered = False
        self._told = ""

    def begin(self) -> None:
        """Look for the first time soon."""
        self._loop.call_in(BUSY_S, self._look)

    def finish(self) -> None:
        """Forget, for a short time, what is to be forgotten, before the supervisor ends."""
        deadline = time.monotonic() + FINISH_S
        self._retention.begin()
        while self._step() and time.monotonic() < deadline:
            pass

    def _look(self) -> None:
        self._store.see_that_it_is_there()
        is_busy = self._store.commits != self._seen_commits
        self._seen_commits = self._store.commits
        if is_busy or time.monotonic() >= self._due:
            self._retention.begin()
            self._go_on()
        else:
            self._loop.call_in(BUSY_S if is_busy else IDLE_S, self._look)

    def _go_on(self) -> None:
        if self._step():
            self._loop.call_in(0 if self._retention.is_behind() else PAUSE_S, self._go_on)
            return
        self._due = time.monotonic() + self._next_due()
        self._loop.call_in(BUSY_S, self._look)

    def _next_due(self) -> float:
        """In how many seconds there is more to do, although nothing is committed until then."""
        if self._is_hindered:
            return 0.0
        next_due = self._retention.next_due(time.time())
        if self._retention.has_spared:  # A client that takes its results later commits nothing.
            return IDLE_S if next_due is None else min(IDLE_S, next_due)
        return float("inf") if next_due is None else next_due

    def _step(self) -> bool:
        """Do a little; whether there is more to do just now."""
        self._is_hindered = True
        if self._turn.commits.held_back:
            return False
        try:
            more = self._retention.step(time.time(), self._turn.needed_batches(), STEP_S)
            if more:
                self._store.checkpoints.written(0)
            self._is_hindered = self._store.checkpoints.mind()
            return more
        except StateBackendError as error:
            if error.fault in LASTING:
                raise
            if str(error) != self._told:
                self._told = str(error)
                log(self._told)
            return False
