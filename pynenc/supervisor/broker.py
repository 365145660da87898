"""The broker: which calls are ready, and in which order they go.

Calls wait as ranges of batches, so a million of them are a few thousand entries. Calls of a higher priority go first. Within
a priority each source (a group, or the single calls of one client) has a queue of its own, and the sources take
turns: a group of a million does not keep a single call waiting.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from pynenc.named_tuples import NamedTuple
from pynenc.protocol.messages import MAX_BATCH_CALLS

SHORT = 64
"""A queue of up to so many ranges is looked through for those of a batch: that is quicker than an index."""


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


Order = tuple[int, ...]
"""Where a range stands in a line, the smallest first; no two have the same. The last number is that of its first call."""


class Line:
    """Ranges in their order, out of which those of a batch are taken without a look at the others.

    The first removal makes an index. What is removed stays in the heap until it comes first there, or is the larger part of
    it: then the heap is made anew, and the index goes. So a removal costs no more than a few steps, on average, and who only
    puts and takes pays for no index.
    """

    __slots__ = ("_heap", "_index", "_removed")

    def __init__(self) -> None:
        self._heap: list[tuple[Order, Range]] = []  # The first of them was not removed.
        self._removed = 0
        self._index: dict[int, dict[Order, Range]] | None = None

    def __bool__(self) -> bool:
        return bool(self._heap)

    def put(self, order: Order, calls: Range) -> None:
        """Have calls stand in line."""
        heappush(self._heap, (order, calls))
        if self._index is not None:
            self._index.setdefault(calls.batch, {})[order] = calls

    def first(self) -> Range:
        """The calls that come first."""
        return self._heap[0][1]

    def pop(self) -> Range:
        """Take out the calls that come first."""
        order, calls = heappop(self._heap)
        if self._index is not None:
            _take(self._index, order, calls.batch)
            self._drop_removed(self._index)
        return calls

    def remove(self, batch: int, first: int, stop: int) -> list[Range]:
        """Take out those calls `[first, stop)` of a batch that stand here, in their order."""
        index = self._index
        if index is None:
            index = self._index = {}
            for order, calls in self._heap:
                index.setdefault(calls.batch, {})[order] = calls
        standing = index.get(batch, {})
        hit = [(order, calls) for order, calls in standing.items() if first < calls.stop and calls.first < stop]
        removed = []
        for order, calls in sorted(hit):
            outside, inside = calls.split(first, stop)
            assert inside is not None
            removed.append(inside)
            _take(index, order, batch)
            self._removed += 1
            for one in outside:
                self.put((*order[:-1], one.first), one)
        self._drop_removed(index)
        return removed

    def ranges(self) -> list[Range]:
        """All that stand here, in no order."""
        return [calls for order, calls in self._heap if self._index is None or _stands(self._index, order, calls)]

    def _drop_removed(self, index: dict[int, dict[Order, Range]]) -> None:
        heap = self._heap
        if 2 * self._removed > len(heap):
            self._heap = [(order, calls) for standing in index.values() for order, calls in standing.items()]
            heapify(self._heap)
            self._removed, self._index = 0, None
            return
        while heap and not _stands(index, *heap[0]):
            heappop(heap)
            self._removed -= 1


def _take(index: dict[int, dict[Order, Range]], order: Order, batch: int) -> None:
    del index[batch][order]
    if not index[batch]:
        del index[batch]


def _stands(index: dict[int, dict[Order, Range]], order: Order, calls: Range) -> bool:
    """Whether these very calls stand in line; others may have come to the place of some that were removed."""
    return index.get(calls.batch, {}).get(order) is calls


class ThinnedQueue(Line):
    """A queue of ranges, as a deque is one, out of which some were taken."""

    __slots__ = ("_back", "_front")

    def __init__(self, queue: Iterable[Range]) -> None:
        super().__init__()
        self._front = self._back = 0
        for ready in queue:
            self.append(ready)

    def append(self, ready: Range) -> None:
        """Have calls come last."""
        self._back += 1
        self.put((self._back, ready.first), ready)

    def appendleft(self, ready: Range) -> None:
        """Have calls come first."""
        self._front -= 1
        self.put((self._front, ready.first), ready)

    popleft = Line.pop


def _remove(queue: deque[Range], batch: int, first: int, stop: int) -> list[Range]:
    """Take calls of a batch out of a queue by looking through it."""
    removed = []
    for _ in range(len(queue)):
        ready = queue.popleft()
        outside, inside = ready.split(first, stop) if ready.batch == batch else ([ready], None)
        queue.extend(outside)
        if inside is not None:
            removed.append(inside)
    return removed


class Broker:
    """The queues of ready calls. `ready` counts the calls in them."""

    def __init__(self) -> None:
        self.ready = 0
        # By priority, then by source: the first of these has its turn. Out of most long queues nothing is ever removed.
        self._levels: dict[int, OrderedDict[int, deque[Range] | ThinnedQueue]] = {}
        self._priorities: list[int] = []

    def put(self, ready: Range) -> None:
        """Calls that arrived: behind the others of their source."""
        self._queue_of(ready).append(ready)
        self.ready += ready.stop - ready.first

    def put_back(self, ready: Range) -> None:
        """Calls that had been taken already: before the others of their source."""
        self._queue_of(ready).appendleft(ready)
        self.ready += ready.stop - ready.first

    def peek(self) -> Range:
        """The calls whose turn it is."""
        queue = next(iter(self._levels[self._priorities[-1]].values()))
        return queue[0] if isinstance(queue, deque) else queue.first()

    def take(self, count: int) -> Range:
        """Take up to `count` of the calls whose turn it is; the next source's turn follows."""
        priority = self._priorities[-1]
        level = self._levels[priority]
        source, queue = next(iter(level.items()))
        taken = queue.popleft()
        if taken.stop - taken.first > count:
            queue.appendleft(taken.part(taken.first + count, taken.stop))
            taken = taken.part(taken.first, taken.first + count)
        if queue:
            level.move_to_end(source)
        else:
            self._end(priority, source)
        self.ready -= taken.stop - taken.first
        return taken

    def remove(self, batch: int, source: int, priority: int, first: int, stop: int) -> list[Range]:
        """Take out those calls of one batch that are queued."""
        level = self._levels.get(priority)
        queue = level.get(source) if level is not None else None
        if level is None or queue is None:
            return []
        if isinstance(queue, deque) and len(queue) > SHORT:
            queue = level[source] = ThinnedQueue(queue)
        removed = _remove(queue, batch, first, stop) if isinstance(queue, deque) else queue.remove(batch, first, stop)
        if not queue:
            self._end(priority, source)
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
        queues = [queue for level in self._levels.values() for queue in level.values()]
        return [one for queue in queues for one in (queue if isinstance(queue, deque) else queue.ranges())]

    def _queue_of(self, ready: Range) -> deque[Range] | ThinnedQueue:
        level = self._levels.get(ready.priority)
        if level is None:
            level = self._levels[ready.priority] = OrderedDict()
            insort(self._priorities, ready.priority)
        queue = level.get(ready.source)
        if queue is None:
            queue = level[ready.source] = deque()
        return queue

    def _end(self, priority: int, source: int) -> None:
        """A source has nothing left."""
        level = self._levels[priority]
        del level[source]
        if not level:
            del self._levels[priority]
            self._priorities.remove(priority)
