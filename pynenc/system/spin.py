"""Look for a moment before going to sleep.

The answer to a short call comes within microseconds, and to be woken up for it takes several times longer, above all on
virtual machines, where an idle processor has been given away. So whoever waits looks a few times first and
lets others run in between. A look that was in vain makes the next ones rarer: where calls are long, waiting costs
nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

SPIN_S = 0.0003
"""For how long one look goes on at most."""

MAX_VAIN = 5
"""At worst one wait in 2 ** 5 looks in vain."""


class Spin:
    """Decides for one waiting place whether to look before it sleeps."""

    __slots__ = ("_skip", "_vain")

    def __init__(self) -> None:
        self._vain = 0
        self._skip = 0

    def look(self, find: Callable[[], Found]) -> Found | None:
        """What `find` finds within a moment, or None; then it is time to sleep."""
        found = find()
        if found:
            return found
        if self._skip:
            self._skip -= 1
            return None
        deadline = time.monotonic() + SPIN_S
        while time.monotonic() < deadline:
            os.sched_yield()
            found = find()
            if found:
                # Only a row of successes brings the looks back: now and then one succeeds by chance.
                self._vain = max(0, self._vain - 1)
                return found
        self._vain = min(self._vain + 1, MAX_VAIN)
        self._skip = (1 << self._vain) - 1
        return None
