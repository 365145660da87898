"""Dependencies: calls that take the results of others wait until these are there."""

from __future__ import annotations

from collections.abc import Iterator

from pynenc.protocol.extras import Dependency

Call = tuple[int, int]
"""A batch and an index in it."""


class Dependencies:
    """Which calls wait for which.

    Attributes:
        waiting: For how many results each call still waits.
    """

    def __init__(self) -> None:
        self.waiting: dict[Call, int] = {}
        self._by_call: dict[int, dict[int, list[Call]]] = {}
        self._by_range: dict[int, list[tuple[int, int, Call]]] = {}
        self._batches: set[int] = set()

    def add(self, batch: int, on: Dependency, results: int) -> None:
        """A call waits for the calls of a dependency, of which so many have no result yet."""
        call = (batch, on.index)
        self.waiting[call] = self.waiting.get(call, 0) + results
        self._batches.add(on.batch)
        if on.stop - on.first == 1:
            self._by_call.setdefault(on.batch, {}).setdefault(on.first, []).append(call)
        else:
            self._by_range.setdefault(on.batch, []).append((on.first, on.stop, call))

    def succeeded(self, batch: int, first: int, stop: int) -> list[Call]:
        """Results are there; the calls that wait for nothing any more."""
        if batch not in self._batches:
            return []
        ready = []
        for call, count in self._dependents(batch, first, stop):
            left = self.waiting.get(call)
            if left is None:
                continue  # It has failed because of another.
            if left > count:
                self.waiting[call] = left - count
            else:
                del self.waiting[call]
                ready.append(call)
        return ready

    def failed(self, batch: int, first: int, stop: int) -> list[Call]:
        """Calls have failed; those that wait for them, and do so no longer."""
        if batch not in self._batches:
            return []
        dependents = {call for call, _ in self._dependents(batch, first, stop) if call in self.waiting}
        for call in dependents:
            del self.waiting[call]
        return sorted(dependents)

    def remove(self, batch: int, first: int, stop: int) -> list[int]:
        """Calls wait no longer, whatever comes; which of them did."""
        return [index for index in range(first, stop) if self.waiting.pop((batch, index), None) is not None]

    def finished(self, batch: int) -> None:
        """All calls of a batch have ended, and all that waited for them was told."""
        if batch not in self._batches:
            return
        self._batches.discard(batch)
        self._by_range.pop(batch, None)
        self._by_call.pop(batch, None)

    def _dependents(self, batch: int, first: int, stop: int) -> Iterator[tuple[Call, int]]:
        by_call = self._by_call.get(batch, {})
        for index in range(first, stop):
            for call in by_call.get(index, ()):
                yield call, 1
        for start, end, call in self._by_range.get(batch, ()):
            overlap = min(stop, end) - max(first, start)
            if overlap > 0:
                yield call, overlap
