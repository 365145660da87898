"""What has happened since the last turn, and the rules are not told of yet."""

from __future__ import annotations

from pynenc.protocol.messages import Failure, Results
from pynenc.supervisor.events import Event


class Inbox:
    """Events in the order in which they came, each with the outcome that it brought, if any."""

    __slots__ = ("_events",)

    def __init__(self) -> None:
        self._events: list[tuple[Event, Results | Failure | None]] = []

    def add(self, event: Event, outcome: Results | Failure | None = None) -> None:
        """Something has happened."""
        self._events.append((event, outcome))

    def take(self) -> list[tuple[Event, Results | Failure | None]]:
        """All that is there; what happens from here on is for the next turn."""
        events, self._events = self._events, []
        return events

    def __len__(self) -> int:
        return len(self._events)
