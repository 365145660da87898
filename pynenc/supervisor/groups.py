"""Named groups that are just being made or resumed: by one client at a time, so that none of their calls is made twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Groups:
    """Who makes which named group, and who waits for that."""

    def __init__(self) -> None:
        self._makers: dict[int, int] = {}
        self._waiting: dict[int, deque[tuple[int, Callable[[], None]]]] = {}

    def claim(self, group: int, client: int, granted: Callable[[], None]) -> None:
        """Tell a client when it is its turn. A client that is at it already goes on: it may be inside of itself."""
        if self._makers.setdefault(group, client) == client:
            granted()
        else:
            self._waiting.setdefault(group, deque()).append((client, granted))

    def release(self, group: int, client: int) -> None:
        """A client has made all calls of a group that were missing."""
        if self._makers.get(group) != client:
            return
        del self._makers[group]
        waiting = self._waiting.get(group)
        if waiting:
            following, granted = waiting.popleft()
            if not waiting:
                del self._waiting[group]
            self.claim(group, following, granted)

    def forget(self, client: int) -> None:
        """A client is gone."""
        for group in list(self._waiting):
            self._waiting[group] = deque(one for one in self._waiting[group] if one[0] != client)
        for group in [group for group, maker in self._makers.items() if maker == client]:
            self.release(group, client)
