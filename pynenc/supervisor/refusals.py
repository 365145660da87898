"""Connections that were closed because of what they sent: counted, and told of in the log, in short.

Whoever sends garbage may send much of it, so the log is bounded.
"""

from __future__ import annotations

import sys

LOGGED = 100
"""So many are told of one by one; after that each time their number has doubled."""

MAX_REASON = 200


class Refusals:
    """Counts them."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, who: str, why: str) -> None:
        """A connection is closed because of what it sent."""
        self.count += 1
        if self.count > LOGGED and self.count & (self.count - 1):
            return
        reason = why.encode("ascii", "backslashreplace").decode()[:MAX_REASON]
        reason = reason.replace("\n", " ").replace("\r", " ")
        # The log of a supervisor that was started from a terminal may be gone; that is no reason to end.
        try:
            print(f"pynenc: refused connection {self.count}, of {who}: {reason}", file=sys.stderr, flush=True)
        except OSError:
            pass
