"""The batches of clients: checked, kept, offered to the rules, let go when they are finished. Runs in the supervisor."""

from __future__ import annotations

from pynenc.blobs.references import from_column
from pynenc.exceptions import ProtocolError
from pynenc.protocol.extras import Extras
from pynenc.protocol.messages import BATCH_NUMBER_BITS, Batch, Kind, json_frame, numbers_frame
from pynenc.state_backend.store import Store
from pynenc.supervisor.blobs import Blobs
from pynenc.supervisor.client import Client
from pynenc.supervisor.delivery import Delivery
from pynenc.supervisor.dependencies import Dependencies
from pynenc.supervisor.events import AnswerOffer, BatchArrived, BatchOffered
from pynenc.supervisor.inbox import Inbox
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.payloads import Payloads
from pynenc.supervisor.pool import Pool
from pynenc.supervisor.recovery import Recovery

COMMITTED_EVERY = 16
"""After so many batches a client is told that they are committed, so that it need not keep them."""


class Batches:
    """Takes batches in, and lets them go.

    Args:
        store: Keeps them.
        orchestrator: Knows those that are under way.
        payloads: Holds their arguments.
        pool: Knows what workers run while one is offered.
        blobs: Counts who refers to which.
        recovery: Knows those that were taken up.
        dependencies: Knows what they wait for.
        delivery: Tells their clients.
        inbox: Takes events.
    """

    def __init__(
        self,
        store: Store,
        orchestrator: Orchestrator,
        payloads: Payloads,
        pool: Pool,
        blobs: Blobs,
        recovery: Recovery,
        dependencies: Dependencies,
        delivery: Delivery,
        inbox: Inbox,
    ) -> None:
        self._store = store
        self._orchestrator = orchestrator
        self._payloads = payloads
        self._pool = pool
        self._blobs = blobs
        self._recovery = recovery
        self._dependencies = dependencies
        self._delivery = delivery
        self._inbox = inbox
        self._offers: dict[int, tuple[Client, Batch, Extras]] = {}

    def came(self, client: Client, batch: Batch) -> None:
        """A client has sent a batch; it may have done so before, over a connection that broke."""
        task = client.tasks.get(batch.task)
        if task is None or self._delivery.clients.get(batch.id >> BATCH_NUMBER_BITS) is not client:
            raise ProtocolError(f"batch {batch.id} of client {client.number} for task {batch.task} fits nothing")
        if batch.id in self._orchestrator.batches or self._recovery.is_there(batch.id):
            return
        extras = self._extras_of(batch)
        if extras.dependencies:
            self._recovery.take_up_for({on.batch for on in extras.depended_on()})
        self._recovery.coming.add(batch.id)
        client.uncommitted.append(batch.id)
        if len(client.uncommitted) == COMMITTED_EVERY:
            self._delivery.after_commit(client.peer, numbers_frame(Kind.COMMITTED, client.uncommitted))
            client.uncommitted = []
        batch = batch._replace(task=task.number)
        # Groups are named by their first batch, so a client's own number is free to name its single calls.
        arrived = BatchArrived(batch.id, task.number, batch.count, batch.group or client.number, extras)
        if extras.registration:
            self._offers[batch.id] = (client, batch, extras)
            self._inbox.add(BatchOffered(arrived, self._pool.positions()))
        else:
            self._take(batch, extras)
            self._inbox.add(arrived)

    def answer_offer(self, answer: AnswerOffer) -> None:
        """The rules have taken a batch, or found that its calls are there already: its client waits to hear that."""
        client, batch, extras = self._offers.pop(answer.batch)
        if answer.reused:
            self._dependencies.forget(batch.id)
        else:
            self._take(batch, extras)
        self._delivery.after_commit(client.peer, json_frame(Kind.REPORT, token=batch.id, reused=answer.reused))

    def finished(self, batch: int) -> None:
        """Nothing of a batch is under way any more."""
        self._payloads.drop(batch)
        if batch not in self._recovery.leaving:
            self._blobs.batch_finished(batch)
        self._dependencies.forget(batch)
        self._recovery.finished(batch)

    def _extras_of(self, batch: Batch) -> Extras:
        extras = Extras.from_bytes(batch.extras, batch.count)
        if extras.common and not self._store.has_common_arguments(extras.common):
            raise ProtocolError(f"batch {batch.id} takes common arguments {extras.common}, which are not there")
        if extras.dependencies and any(on.batch == batch.id for on in extras.depended_on()):
            raise ProtocolError(f"batch {batch.id} waits for itself")
        from_column(extras.blobs)  # It raises when that cannot be.
        return extras

    def _take(self, batch: Batch, extras: Extras) -> None:
        self._store.add_batch(batch, extras)
        self._payloads.add(batch)
        if extras.blobs:
            self._blobs.batch_came(batch.id, extras.blobs)
