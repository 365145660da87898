"""How many workers may run calls at once since the machine ran short of memory."""

from __future__ import annotations

from collections.abc import Iterable

from pynenc.supervisor.orchestrator.leases import WorkerLeases

PAUSE_S = 2.0
"""Calls are ended for the machine's sake at most this often: what one of them held takes a moment to be free."""

FIRST_TRUST_S = 5.0
"""After this time one more worker may be tried; after each further shortage, twice that."""


class Seats:
    """Fewer workers run calls when memory was short, and one more each time it has sufficed for a while.

    Attributes:
        count: How many may hold calls; 0 while that is not limited.
    """

    def __init__(self) -> None:
        self.count = 0
        self._needed = 0
        self._trust_s = FIRST_TRUST_S
        self._since = float("-inf")

    def has_free(self, workers: Iterable[WorkerLeases]) -> bool:
        """Whether one more worker may begin calls. Those that wait in threads need others to go on."""
        return sum(is_busy(worker) for worker in workers) < self.count

    def may_take(self, now: float) -> bool:
        """Whether it was long enough ago that a call was ended."""
        return now - self._since >= PAUSE_S

    def take(self, busy: int, used: int, now: float) -> None:
        """One of so many busy workers, which used so many bytes, is ended."""
        if self.count:
            self._trust_s *= 2
        self.count = max(1, busy - 1)
        self._needed = used
        self._since = now

    def measured(self, busy: int, size: int, spare_bytes: int, now: float) -> None:
        """Give seats back: one when there is room for what was ended, all when nothing runs.

        Args:
            busy: How many workers run calls.
            size: How many there are meant to be.
            spare_bytes: What may be taken before memory is short again.
            now: Monotonic seconds.
        """
        if not self.count:
            return
        if spare_bytes > self._needed and busy >= self.count and now - self._since >= self._trust_s:
            self.count += 1
            self._since = now
        if not busy or self.count >= size:
            self.count = 0
            self._trust_s = FIRST_TRUST_S


def is_busy(worker: WorkerLeases) -> bool:
    """Whether a worker runs calls, rather than that it is idle or only waits."""
    return bool(worker.outstanding) and not worker.threads
