"""Which calls stop when one client of several is interrupted or lost: its own, unless others wait for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pynenc.protocol.messages import BATCH_NUMBER_BITS, split_number
from pynenc.state_backend.shelf import Shelf
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.pool import Pool
from pynenc.supervisor.recovery import Recovery


class Client(Protocol):
    """What has to be known of a client."""

    number: int
    numbers: set[int]
    pid: int
    is_worker: bool


class Stopping:
    """Finds the batches of one client.

    Args:
        clients: By all of their numbers.
        watchers: The numbers of the clients that wait for batches of others.
        recovery: Knows who has asked for what was left by others.
        orchestrator: Knows what is unfinished.
        pool: The workers, which are clients too while their calls make calls.
        shelf: Knows which invocation has made a batch.
    """

    def __init__(
        self,
        clients: Mapping[int, Client],
        watchers: Mapping[int, set[int]],
        recovery: Recovery,
        orchestrator: Orchestrator,
        pool: Pool,
        shelf: Shelf,
    ) -> None:
        self._clients = clients
        self._watchers = watchers
        self._recovery = recovery
        self._orchestrator = orchestrator
        self._pool = pool
        self._shelf = shelf

    def batches_of(self, client: Client) -> set[int]:
        """The unfinished batches that are there for this client's sake alone. All batches are committed."""
        batches = self._orchestrator.batches
        own = self._asked_by(client)
        made = [batch for batch in batches if batch not in own]
        parents = {batch: split_number(self._shelf.parent_of(batch) or 0)[0] for batch in made if self._is_made(batch)}
        while more := [batch for batch, parent in parents.items() if parent in own and batch not in own]:
            own.update(more)
        needed = [batch for batch in batches if batch not in own or self._is_watched(batch, client, own)]
        for batch in needed:  # It grows while what is needed is gone through.
            own.discard(batch)
            needed += [one for one in batches[batch].depends_on if one in own]
            needed += [one for one, parent in parents.items() if parent == batch and one in own]
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
