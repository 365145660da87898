"""The broker: which calls are ready, and in which order they go.

Calls wait as ranges of batches, so a million of them are a few thousand entries. Calls of a higher priority go first. Within
a priority each source (a group, or the single calls of one client) has a queue of its own, and the sources take
turns: a group of a million does not keep a single call waiting.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from typing import NamedTuple

from pynenc.protocol.messages import MAX_BATCH_CALLS


class Range(NamedTuple):
    """The calls `[first, stop)` of one batch; `attempt` counts how often they were tried before."""

    batch: int
    task: int
    source: int
    first: int
    stop: int
    attempt: int = 0
    priority: int = 0

    def part(self, first: int, stop: int) -> Range:
        """Some of these calls."""
        return self._replace(first=first, stop=stop)

    def split(self, first: int, stop: int) -> tuple[list[Range], Range | None]:
        """What of this range lies outside of `[first, stop)`, and what inside."""
        if stop <= self.first or self.stop <= first:
            return [self], None
        inside = self.part(max(first, self.first), min(stop, self.stop))
        outside = []
        if self.first < inside.first:
            outside.append(self.part(self.first, inside.first))
        if inside.stop < self.stop:
            outside.append(self.part(inside.stop, self.stop))
        return outside, inside


class Level:
    """The queues of one priority."""

    __slots__ = ("queues", "turns")

    def __init__(self) -> None:
        self.queues: dict[int, deque[Range]] = {}
        self.turns: deque[int] = deque()

    def queue(self, source: int) -> deque[Range]:
        """The queue of a source, which has its turn from now on."""
        queue = self.queues.get(source)
        if queue is None:
            queue = self.queues[source] = deque()
            self.turns.append(source)
        return queue

    def end(self, source: int) -> None:
        """A source has nothing left."""
        del self.queues[source]
        self.turns.remove(source)


class Broker:
    """The queues of ready calls. `ready` counts the calls in them."""

    def __init__(self) -> None:
        self.ready = 0
        self._levels: dict[int, Level] = {}
        self._priorities: list[int] = []

    def put(self, ready: Range) -> None:
        """Calls that arrived: behind the others of their source."""
        self._level(ready.priority).queue(ready.source).append(ready)
        self.ready += ready.stop - ready.first

    def put_back(self, ready: Range) -> None:
        """Calls that had been taken already: before the others of their source."""
        self._level(ready.priority).queue(ready.source).appendleft(ready)
        self.ready += ready.stop - ready.first

    def peek(self) -> Range:
        """The calls whose turn it is."""
        level = self._levels[self._priorities[-1]]
        return level.queues[level.turns[0]][0]

    def take(self, count: int) -> Range:
        """Take up to `count` of the calls whose turn it is; the next source's turn follows."""
        priority = self._priorities[-1]
        level = self._levels[priority]
        source = level.turns[0]
        queue = level.queues[source]
        head = queue[0]
        if head.stop - head.first > count:
            taken = head.part(head.first, head.first + count)
            queue[0] = head.part(taken.stop, head.stop)
        else:
            taken = queue.popleft()
        if queue:
            level.turns.rotate(-1)
        else:
            level.turns.popleft()
            del level.queues[source]
            self._drop_empty(priority, level)
        self.ready -= taken.stop - taken.first
        return taken

    def remove(self, batch: int, source: int, priority: int, first: int, stop: int) -> list[Range]:
        """Take out those calls of one batch that are queued."""
        level = self._levels.get(priority)
        queue = level.queues.get(source) if level is not None else None
        if level is None or queue is None:
            return []
        removed, left = [], deque[Range]()
        for ready in queue:
            if ready.batch != batch:
                left.append(ready)
                continue
            outside, inside = ready.split(first, stop)
            left.extend(outside)
            if inside is not None:
                removed.append(inside)
        level.queues[source] = left
        if not left:
            level.end(source)
            self._drop_empty(priority, level)
        self.ready -= sum(one.stop - one.first for one in removed)
        return removed

    def take_of(self, batch: int, source: int, priority: int, count: int) -> Range | None:
        """Take up to `count` calls of one batch, out of turn; None when none of them is queued."""
        found = self.remove(batch, source, priority, 0, MAX_BATCH_CALLS)
        if not found:
            return None
        taken, *rest = found
        if taken.stop - taken.first > count:
            rest.insert(0, taken.part(taken.first + count, taken.stop))
            taken = taken.part(taken.first, taken.first + count)
        for one in reversed(rest):
            self.put_back(one)
        return taken

    def ranges(self) -> list[Range]:
        """All that is queued."""
        return [ready for level in self._levels.values() for queue in level.queues.values() for ready in queue]

    def _level(self, priority: int) -> Level:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = Level()
            insort(self._priorities, priority)
        return level

    def _drop_empty(self, priority: int, level: Level) -> None:
        if not level.queues:
            del self._levels[priority]
            self._priorities.remove(priority)
