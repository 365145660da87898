"""Concurrency control: which calls may run beside which, by key.

A key is held by the workers that have calls of it in hand. A worker runs one call at a time, so it holds a key once however
many calls of it were leased to it; calls that run beside others in one worker hold their keys themselves. Calls whose key is
held as often as it may be are blocked: they leave the ready queues and lie here by key in the order in which they are
to run. The first of them is woken each time a holder lets go. Nothing looks at the others.
"""

from __future__ import annotations

from collections import deque

from pynenc.protocol.extras import KEY_BYTES, key_at
from pynenc.supervisor.broker import Line, Order, Range


class KeyHolders:
    """Who holds which key, and who waits for it."""

    def __init__(self) -> None:
        self.holders: dict[bytes, dict[int, int]] = {}
        self.blocked: dict[bytes, Line] = {}
        self.resuming: dict[bytes, deque[int]] = {}

    def may_hold(self, key: bytes, holder: int, most: int) -> bool:
        """Whether a worker may be given a call of this key."""
        holders = self.holders.get(key)
        return holders is None or holder in holders or len(holders) < most

    def holds(self, key: bytes, holder: int) -> bool:
        """Whether calls of a key are in these hands."""
        return holder in self.holders.get(key, ())

    def held(self, key: bytes) -> int:
        """How many calls of a key are in workers' hands."""
        return sum(self.holders.get(key, {}).values())

    def hold(self, key: bytes, holder: int, calls: int) -> None:
        """A worker is given calls of this key."""
        holders = self.holders.setdefault(key, {})
        holders[holder] = holders.get(holder, 0) + calls

    def let_go(self, key: bytes, holder: int, calls: int) -> bool:
        """Calls of this key left a worker's hands; whether it has none left."""
        holders = self.holders[key]
        holders[holder] -= calls
        if holders[holder]:
            return False
        del holders[holder]
        if not holders:
            del self.holders[key]
        return True

    def let_all_go(self, worker: int) -> list[bytes]:
        """A worker is gone; the keys that it held."""
        for key in [key for key, resuming in self.resuming.items() if worker in resuming]:
            self.resume_no_more(key, worker)
        held = [key for key, holders in self.holders.items() if worker in holders]
        for key in held:
            self.let_go(key, worker, self.holders[key][worker])
        return held

    def resume_no_more(self, key: bytes, holder: int) -> None:
        """Whoever waited to hold a key again does not."""
        self.resuming[key].remove(holder)
        if not self.resuming[key]:
            del self.resuming[key]

    def block(self, key: bytes, order: Order, calls: Range) -> None:
        """Have calls wait for their key."""
        blocked = self.blocked.get(key)
        if blocked is None:
            blocked = self.blocked[key] = Line()
        blocked.put(order, calls)

    def wake(self, key: bytes) -> Range | None:
        """Take out the calls that come first for this key."""
        blocked = self.blocked.get(key)
        if blocked is None:
            return None
        woken = blocked.pop()
        if not blocked:
            del self.blocked[key]
        return woken

    def remove(self, keys: set[bytes], batch: int, first: int, stop: int) -> list[Range]:
        """Take out those calls of a batch that are blocked."""
        removed = []
        for key in keys & self.blocked.keys():
            removed += self.blocked[key].remove(batch, first, stop)
            if not self.blocked[key]:
                del self.blocked[key]
        return removed

    def ranges(self) -> list[Range]:
        """All that is blocked."""
        return [calls for blocked in self.blocked.values() for calls in blocked.ranges()]


def first_stretch(column: bytes, first: int, stop: int) -> tuple[bytes, int]:
    """The key of the first of the calls `[first, stop)`, and up to where the others have it too."""
    key = key_at(column, first)
    if len(column) == KEY_BYTES:
        return key, stop
    end = first + 1
    while end < stop and key_at(column, end) == key:
        end += 1
    return key, end


def stretches(column: bytes, first: int, stop: int) -> list[tuple[bytes, int, int]]:
    """The calls `[first, stop)` of a batch as stretches of the same key."""
    found = []
    while first < stop:
        key, end = first_stretch(column, first, stop)
        found.append((key, first, end))
        first = end
    return found
