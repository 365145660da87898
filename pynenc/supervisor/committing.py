"""Commits, and what to do while the database takes none: hold back what waits for it, try again, tell why.

Rules go on meanwhile, so that time limits hold and what workers ship is read. But nothing is delivered and nothing
leased: no call begins whose result could not be kept. Runs in the supervisor.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable

from pynenc.exceptions import StateBackendError
from pynenc.state_backend.faults import LASTING, Fault
from pynenc.state_backend.store import Store

FIRST_RETRY_S = 0.02
LAST_RETRY_S = 1.0

TELL_AFTER_S = 1.0
"""A database that is locked for a moment is nobody's concern."""

LOOK_EVERY_S = 0.5
"""How often a busy supervisor looks whether its database still has its name."""


class Committing:
    """Commits at the end of each turn.

    Args:
        store: What is committed.
        timeout_s: For how long commits are tried again.
        memory_bytes: How much may wait for a commit before clients are not read any more.
        notify: Tells the clients something.
        wake_in: Sees to a turn after so many seconds.
        hold_clients: Has clients be read, or not.

    Attributes:
        why: Why nothing is committed just now; empty when all is well.
    """

    def __init__(
        self,
        store: Store,
        timeout_s: float,
        memory_bytes: int,
        notify: Callable[[str], None],
        wake_in: Callable[[float], None],
        hold_clients: Callable[[bool], None],
    ) -> None:
        self.why = ""
        self._store = store
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._notify = notify
        self._wake_in = wake_in
        self._hold_clients = hold_clients
        self._began = 0.0
        self._next = 0.0
        self._retry_s = FIRST_RETRY_S
        self._told = False
        self._looked = 0.0

    @property
    def held_back(self) -> bool:
        """Whether something waits for the database to take it."""
        return bool(self.why)

    def commit(self) -> bool:
        """Commit; whether all that was added is committed now.

        Raises:
            StateBackendError: It is not, and trying again does not help or was done for long enough.
        """
        now = time.monotonic()
        if self.why:
            self._hold_clients(self._store.added_bytes > self._memory_bytes)
            if now < self._next:
                return False
        try:
            if now - self._looked > LOOK_EVERY_S:
                self._looked = now
                self._store.see_that_it_is_there()
            self._store.commit()
        except StateBackendError as error:
            if error.fault in LASTING:
                raise
            self._hold_back(error)
            return False
        if self.why:
            self._go_on()
        return True

    def commit_last(self) -> None:
        """Commit before the supervisor ends, when there is no time to try again.

        Raises:
            StateBackendError: The database did not take it.
        """
        self._store.commit()
        self.why = ""

    def _hold_back(self, error: StateBackendError) -> None:
        now = time.monotonic()
        if not self.why:
            self._began, self._retry_s = now, FIRST_RETRY_S
        waited_s = now - self._began
        if waited_s > self._timeout_s:
            raise StateBackendError(
                f"{error}. It was tried again for {waited_s:.3g} s (disk_timeout_s); what was committed is kept, and what "
                "was not is lost",
                error.fault,
            )
        self.why = str(error)
        if waited_s > TELL_AFTER_S and not self._told:
            self._told = True
            self._tell(f"{error}. Calls and results wait for it, for {self._timeout_s:g} s at most (disk_timeout_s)")
        if error.fault == Fault.FULL:
            self._store.checkpoints.empty_log()
        self._next = now + self._retry_s
        self._wake_in(self._retry_s)
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _go_on(self) -> None:
        self.why = ""
        self._hold_clients(False)
        self._wake_in(0)  # For what was put off meanwhile.
        if self._told:
            self._told = False
            waited_s = time.monotonic() - self._began
            self._tell(f"{self._store.path} takes commits again, after {waited_s:.3g} s; nothing was lost")

    def _tell(self, text: str) -> None:
        log(text)
        self._notify(text)


def log(text: str) -> None:
    """Print a line to the supervisor's log, if that can be written."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)
