"""What stops when a client is interrupted or lost: everything if it is alone, else its own calls, unless others wait for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pynenc.protocol.messages import BATCH_NUMBER_BITS, split_number
from pynenc.state_backend.store import Store
from pynenc.supervisor.client import Client
from pynenc.supervisor.events import BatchesShelved, Event
from pynenc.supervisor.loop import Loop, Peer
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.pool import Pool
from pynenc.supervisor.recovery import Recovery

KEEP_LOST = 16
"""So many lost clients are remembered; one that was interrupted in the middle of a message tells it after it was lost."""


class Stopping:
    """Stops and keeps calls.

    Args:
        clients: By all of their numbers.
        watchers: The numbers of the clients that wait for batches of others.
        recovery: Knows who has asked for what was left by others.
        orchestrator: Knows what is unfinished.
        pool: The workers, which are clients too while their calls make calls.
        store: Knows which invocation has made a batch.
        happened: Takes events.
        catch_up: Has all that has come committed.
        on_client_loss: What becomes of the calls of a client that leaves without goodbye; `conf/config_runner.py`.

    Attributes:
        all_interrupted: Whether the only client was interrupted, so that all is to end now.
        interrupter: Who waits to be told how many calls are kept then, and the name of the question.
        all_stopped: Whether a client has asked that all ends now.
    """

    def __init__(
        self,
        clients: Mapping[int, Client],
        watchers: Mapping[int, set[int]],
        recovery: Recovery,
        orchestrator: Orchestrator,
        pool: Pool,
        store: Store,
        happened: Callable[[Event], None],
        catch_up: Callable[[], None],
        on_client_loss: str,
    ) -> None:
        self.all_interrupted = False
        self.interrupter: tuple[Peer, int] | None = None
        self.all_stopped = False
        self._clients = clients
        self._watchers = watchers
        self._recovery = recovery
        self._orchestrator = orchestrator
        self._pool = pool
        self._store = store
        self._happened = happened
        self._catch_up = catch_up
        self._on_client_loss = on_client_loss
        self._lost: dict[int, Client] = {}

    def interrupt(self, number: int, asking: Client) -> int | None:
        """Stop and keep the calls of a client; how many there are, None when all is to end and that is not known yet.

        Args:
            number: The client's number.
            asking: The connection over which it tells that.
        """
        client = self._clients.get(number) or self._lost.get(number)
        if client is None:
            return 0
        if client.peer.open:
            asking.peer.loop.receive(client.peer)  # What it had sent before comes first.
        client.has_left = True
        if self._is_alone(client, asking):
            self.all_interrupted = True
            return None
        return self._stop_calls_of(client)

    def lost(self, client: Client, loop: Loop) -> None:
        """A client was killed, or was interrupted in the middle of a message, of which it will tell."""
        self._lost[client.number] = client
        if len(self._lost) > KEEP_LOST:
            del self._lost[next(iter(self._lost))]
        if self._on_client_loss == "STAY":
            self._pool.persistent = True
        elif self._on_client_loss == "STOP" and self._is_alone(client):
            self.all_interrupted = True
        elif self._on_client_loss == "STOP":
            loop.call_in(0, lambda: self._stop_lost(client))  # This may be in the middle of a turn.

    def _is_alone(self, client: Client, asking: Client | None = None) -> bool:
        others = (one for one in self._clients.values() if one is not client and one is not asking)
        return not self._pool.persistent and all(other.is_worker for other in others)

    def _stop_lost(self, client: Client) -> None:
        self._stop_calls_of(client)

    def _stop_calls_of(self, client: Client) -> int:
        """Stop and keep what is there for one client's sake alone; how many calls that are."""
        self._catch_up()
        batches = self.batches_of(client) - self._recovery.leaving
        if not batches:
            return 0
        self._recovery.leaving |= batches
        self._store.shelf.put(batches)
        self._happened(BatchesShelved(tuple(sorted(batches)), self._pool.positions()))
        return sum(self._orchestrator.batches[batch].unfinished for batch in batches)

    def batches_of(self, client: Client) -> set[int]:
        """The unfinished batches that are there for this client's sake alone."""
        batches = self._orchestrator.batches
        own = self._asked_by(client) & batches.keys()
        made = [batch for batch in batches if batch not in own and self._is_made(batch)]
        made_by = self._store.parents_of(made)
        made_in: dict[int, list[int]] = {}
        for batch in made:
            made_in.setdefault(split_number(made_by.get(batch, 0))[0], []).append(batch)
        todo = list(own)
        for batch in todo:  # It grows while it is gone through, and so does what is needed.
            own.update(made_in.get(batch, ()))
            todo += made_in.get(batch, ())
        needed = [batch for batch in batches if batch not in own or self._is_watched(batch, client, own)]
        own.difference_update(needed)
        for batch in needed:
            more = own.intersection(batches[batch].depends_on) | own.intersection(made_in.get(batch, ()))
            own -= more
            needed += more
        return own

    def _asked_by(self, client: Client) -> set[int]:
        batches = self._orchestrator.batches
        own = {batch for batch in batches if batch >> BATCH_NUMBER_BITS in client.numbers}
        own |= {batch for batch, asked in self._recovery.taken.items() if asked == client.number}
        for one in self._recovery.resumptions:
            if one.client == client.number:
                own |= one.batches
        for one in self._recovery.resumptions:
            if one.client != client.number:
                own -= one.batches
        return own

    def _is_made(self, batch: int) -> bool:
        """Whether a batch may have been made by a call: its client is a worker, or was one."""
        client = self._clients.get(batch >> BATCH_NUMBER_BITS)
        return client is None or client.is_worker

    def _is_watched(self, batch: int, client: Client, own: set[int]) -> bool:
        """Whether anybody else waits for a batch; a worker does so for the calls that it runs."""
        for number in self._watchers.get(batch, ()):
            watcher = self._clients.get(number)
            if watcher is None or watcher is client:
                continue
            if not watcher.is_worker or not self._runs_only(watcher.pid, own):
                return True
        return False

    def _runs_only(self, pid: int, own: set[int]) -> bool:
        numbers = [number for number, worker in self._pool.workers.items() if worker.pid == pid]
        return all(one.calls.batch in own for number in numbers for one in self._orchestrator.in_hands_of(number))
