"""Which batches wait for the results of which others, and what is known of those when a batch comes.

The rules know only what is under way (`orchestrator/dependencies.py`); what has ended is looked up here. Runs in the supervisor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pynenc.protocol.messages import Failure, Results
from pynenc.state_backend.store import Store
from pynenc.supervisor.events import BatchArrived, BatchOffered, BatchRecovered, Event
from pynenc.supervisor.orchestrator import Orchestrator


class Dependencies:
    """Looks up what batches wait for.

    Args:
        store: Has the outcomes of what has ended.
        orchestrator: Knows what has not.

    Attributes:
        depended_on: The batches whose results others take, and how many times.
    """

    def __init__(self, store: Store, orchestrator: Orchestrator) -> None:
        self.depended_on: Counter[int] = Counter()
        self._store = store
        self._orchestrator = orchestrator
        self._dependents: dict[int, list[int]] = {}

    def with_settled(self, event: BatchArrived | BatchOffered | BatchRecovered) -> Event:
        """A new batch, with what is known of dependencies that are finished."""
        arrived = event if isinstance(event, BatchArrived) else event.batch
        if not arrived.extras.dependencies:
            return event
        self.forget(arrived.batch)
        self._dependents[arrived.batch] = on_batches = [on.batch for on in arrived.extras.depended_on()]
        self.depended_on.update(on_batches)
        settled: dict[tuple[int, int, int], int] = {}
        for on in arrived.extras.depended_on():
            if on.batch not in self._orchestrator.batches and on[1:] not in settled:
                settled[on[1:]] = self._store.first_without_result(*on[1:])
        arrived = arrived._replace(settled=settled)
        return arrived if isinstance(event, BatchArrived) else event._replace(batch=arrived)

    def take_any_of(self, outcomes: Iterable[Results | Failure]) -> bool:
        """Whether a call may take one of these, as soon as it is leased: its worker reads it from the database."""
        on = self.depended_on
        return bool(on) and any(outcome.batch in on for outcome in outcomes)

    def forget(self, of: int) -> None:
        """A batch is finished, or was not taken: it waits for nothing."""
        for batch in self._dependents.pop(of, ()):
            self.depended_on[batch] -= 1
            if not self.depended_on[batch]:
                del self.depended_on[batch]
