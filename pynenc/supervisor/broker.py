"""The broker: which calls are ready, and in which order they go.

Calls wait as ranges of batches, so a million of them are a few thousand entries. Each source (a group, or the single
calls of one client) has a queue of its own, and the sources take turns: a group of a million does not keep a single call waiting.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class Range(NamedTuple):
    """The calls `[first, stop)` of one batch."""

    batch: int
    task: int
    source: int
    first: int
    stop: int


class Broker:
    """The queues of ready calls. `ready` counts the calls in them."""

    def __init__(self) -> None:
        self.ready = 0
        self._queues: dict[int, deque[Range]] = {}
        self._turns: deque[int] = deque()

    def put(self, ready: Range) -> None:
        """Calls that arrived: behind the others of their source."""
        self._queue(ready.source).append(ready)
        self.ready += ready.stop - ready.first

    def put_back(self, ready: Range) -> None:
        """Calls that had been taken already: before the others of their source."""
        self._queue(ready.source).appendleft(ready)
        self.ready += ready.stop - ready.first

    def peek(self) -> Range:
        """The calls whose turn it is."""
        return self._queues[self._turns[0]][0]

    def take(self, count: int) -> Range:
        """Take up to `count` of the calls whose turn it is; the next source's turn follows."""
        source = self._turns[0]
        queue = self._queues[source]
        head = queue[0]
        if head.stop - head.first > count:
            taken = head._replace(stop=head.first + count)
            queue[0] = head._replace(first=taken.stop)
        else:
            taken = queue.popleft()
        if queue:
            self._turns.rotate(-1)
        else:
            self._turns.popleft()
            del self._queues[source]
        self.ready -= taken.stop - taken.first
        return taken

    def _queue(self, source: int) -> deque[Range]:
        queue = self._queues.get(source)
        if queue is None:
            queue = self._queues[source] = deque()
            self._turns.append(source)
        return queue
