"""Who is connected, and what they are told: outcomes and answers once they are committed, notices at once.

When a client reads slower than its results come, they stay in the state backend and are read back once it has caught
up: memory stays bounded, and no client holds up another. Runs in the supervisor.
"""

from __future__ import annotations

from pynenc.exceptions import ProtocolError
from pynenc.protocol.messages import BATCH_NUMBER_BITS, Failure, Kind, Results, invocation_number, json_frame
from pynenc.state_backend.store import Store
from pynenc.supervisor.client import Client
from pynenc.supervisor.loop import Loop, Peer
from pynenc.supervisor.recovery import Recovery

MAX_UNREAD = 10_000
"""A client with more answers that it has not read is no client of ours."""


class Delivery:
    """Tells clients what they wait for.

    Args:
        loop: Reads from them.
        store: Has the outcomes of those that lag behind.
        recovery: Knows which batches have outcomes to come.
        buffer_bytes: How many outcome bytes wait in memory for a client that does not read.

    Attributes:
        clients: By all of their numbers.
        watchers: The numbers of the clients that wait for batches of others.
        outcomes: Those of this turn, to be told once they are committed.
    """

    def __init__(self, loop: Loop, store: Store, recovery: Recovery, buffer_bytes: int) -> None:
        self.clients: dict[int, Client] = {}
        self.watchers: dict[int, set[int]] = {}
        self.outcomes: list[Results | Failure] = []
        self._answers: list[tuple[Peer, bytes]] = []
        self._loop = loop
        self._store = store
        self._recovery = recovery
        self._buffer_bytes = buffer_bytes

    def has_clients(self) -> bool:
        """Whether anybody from outside is connected."""
        return any(not client.is_worker for client in self.clients.values())

    def has_some(self) -> bool:
        """Whether anything is to be told after the next commit."""
        return bool(self.outcomes or self._answers)

    def has_backlog(self) -> bool:
        """Whether outcomes wait in the state backend for a client that does not read."""
        return any(client.backlog for client in self.clients.values())

    def forget(self, client: Client) -> None:
        """A client is gone."""
        for number in client.numbers:
            if self.clients.get(number) is client:
                del self.clients[number]
        for batch in client.watched:
            self.watchers[batch].discard(client.number)

    # What is told after the commit.

    def after_commit(self, peer: Peer, message: bytes) -> None:
        """Send this once everything that has come up to now is committed."""
        self._answers.append((peer, message))

    def answer(self, client: Client, message: bytes) -> None:
        """Answer after the commit. Whoever asks reads the answer before the next question, in each of its threads."""
        client.unread += 1
        if client.unread > MAX_UNREAD:
            raise ProtocolError(f"it asked {MAX_UNREAD:,} questions and read no answer")
        self._answers.append((client.peer, message))

    def committed(self) -> None:
        """All that has come is committed: tell whoever waits for it."""
        outcomes = self.outcomes
        for outcome in outcomes:
            self._deliver(outcome)
        if self.watchers:  # Only now: the last outcomes of a batch may be several.
            for batch in {outcome.batch for outcome in outcomes}:
                if not self._recovery.is_there(batch):
                    for number in self.watchers.pop(batch, ()):
                        if (client := self.clients.get(number)) is not None:
                            client.watched.discard(batch)
        outcomes.clear()
        for peer, answer in self._answers:
            peer.send(answer)
        self._answers.clear()

    def _deliver(self, outcome: Results | Failure) -> None:
        if isinstance(outcome, Results):
            outcome = outcome._replace(ends=b"")
        receivers = [outcome.batch >> BATCH_NUMBER_BITS, *self.watchers.get(outcome.batch, ())]
        made: bytes | None = None
        for number in receivers:
            client = self.clients.get(number)
            if client is None:
                continue  # It left; the outcome is in the state backend.
            if client.backlog or client.peer.buffered > self._buffer_bytes:
                kind = Kind.RESULTS if isinstance(outcome, Results) else Kind.FAILURE
                client.backlog.append((kind, invocation_number(outcome.batch, outcome[1])))
                continue
            made = made or outcome.to_frame()
            client.peer.send(made)

    def caught_up(self, peer: Peer) -> None:
        """A client has read all that it was sent."""
        client: Client = peer.role
        client.unread = 0
        while client.backlog and peer.buffered < self._buffer_bytes:
            kind, number = client.backlog.popleft()
            if kind == Kind.RESULTS:
                peer.send(self._store.results_at(number).to_frame())
            else:
                peer.send(self._store.failure_at(number).to_frame())

    # What is told at once.

    def watch(self, client: Client, batch: int) -> None:
        """Send all outcomes of a batch that another client submitted: those that are there, and those to come."""
        live = self._recovery.is_there(batch) or any(one.batch == batch for one in self.outcomes)
        if live:
            self.add_watcher(client, batch)
        results, failures = self._store.outcomes_of(batch)
        for one in results:
            client.peer.send(one.to_frame())
        for failure in failures:
            client.peer.send(failure.to_frame())
        client.peer.send(json_frame(Kind.REPORT, token=batch, live=live))

    def add_watcher(self, client: Client, batch: int) -> None:
        """Have a client told the outcomes to come of a batch that is not its own."""
        client.watched.add(batch)
        self.watchers.setdefault(batch, set()).add(client.number)

    def notify(self, text: str) -> None:
        """Tell those in front of the screen something; workers are not."""
        for client in {id(one): one for one in self.clients.values() if not one.is_worker}.values():
            client.peer.send(json_frame(Kind.NOTICE, text=text))

    def hold(self, held: bool) -> None:
        """Read what clients send, or let them wait; those that only ask are always read."""
        for client in self.clients.values():
            if not client.asks_only:
                self._loop.hold(client.peer, held)
