"""One turn of the loop: what has come becomes events, the rules say what follows, one transaction, then it is sent.

Leases go out before the commit, so workers begin while their batches are written. Outcomes go out after it, so what a
client has seen is never lost.

    clients.py ──▶ batches.py, questions.py, taking_up.py ──┐
    workers.py ─────────────────────────────────────────────┼──▶ inbox.py ──▶ orchestrator/ ──▶ effects.py
    timers.py ──────────────────────────────────────────────┘                                      │
                                                  orders.py (to workers), outcomes.py, timers.py ◀─┘
                                                                           │
                                            committing.py, then delivery.py (to clients)
"""

from __future__ import annotations

from collections.abc import Callable, Container

from pynenc.exceptions import StateBackendError
from pynenc.protocol.messages import Failure, Kind, json_frame, split_number
from pynenc.state_backend.store import Store
from pynenc.supervisor.batches import Batches
from pynenc.supervisor.blobs import Blobs
from pynenc.supervisor.client import Client
from pynenc.supervisor.clients import Clients
from pynenc.supervisor.committing import Committing
from pynenc.supervisor.delivery import Delivery
from pynenc.supervisor.dependencies import Dependencies
from pynenc.supervisor.effects import LAST_EFFECTS, Effects
from pynenc.supervisor.endings import Endings
from pynenc.supervisor.events import BatchArrived, BatchOffered, BatchRecovered
from pynenc.supervisor.inbox import Inbox
from pynenc.supervisor.loop import Loop, Peer
from pynenc.supervisor.measuring import Measuring
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.orders import Orders
from pynenc.supervisor.outcomes import Outcomes
from pynenc.supervisor.payloads import Payloads
from pynenc.supervisor.pool import Pool, Worker
from pynenc.supervisor.questions import Questions
from pynenc.supervisor.recovery import Recovery
from pynenc.supervisor.refusals import Refusals
from pynenc.supervisor.report import Report
from pynenc.supervisor.stopping import Stopping
from pynenc.supervisor.taking_up import TakingUp
from pynenc.supervisor.task import Task
from pynenc.supervisor.timers import Timers
from pynenc.supervisor.workers import Workers


class Turn:
    """What the supervisor does between reading and waiting.

    Args:
        measuring: Reads the workers' memory.
        client_buffer_bytes: How many outcome bytes wait in memory for a client that does not read.
        disk_timeout_s: How long a database may take no commit.
        on_client_loss: What becomes of the calls of a client that leaves without goodbye; `conf/config_runner.py`.

    Attributes:
        clients: Listens to clients.
        workers: Listens to workers.
        delivery: Who is connected, and what they are told.
        commits: Whether the database takes what comes.
        stopping: What becomes of the calls of clients that are interrupted or lost.
        refusals: Counts the connections that were closed because of what they sent.
    """

    def __init__(
        self,
        loop: Loop,
        store: Store,
        orchestrator: Orchestrator,
        payloads: Payloads,
        pool: Pool,
        measuring: Measuring,
        blobs: Blobs,
        client_buffer_bytes: int,
        disk_timeout_s: float,
        on_client_loss: str = "DRAIN",
    ) -> None:
        self._loop = loop
        self._store = store
        self._orchestrator = orchestrator
        self._payloads = payloads
        self._blobs = blobs
        self._inbox = inbox = Inbox()
        self._is_last = False
        self._is_recovering = False
        self._put_off: list[Callable[[], None]] = []
        self.refusals = Refusals()
        tasks: dict[int, Task] = {}
        failures: dict[int, Failure] = {}
        endings = Endings(store, pool, tasks, failures, measuring)
        self._recovery = recovery = Recovery(
            store,
            orchestrator,
            payloads,
            endings,
            tasks,
            inbox.add,
            lambda failure: self._outcomes.keep(failure),
            blobs.batch_finished,
        )
        self.delivery = delivery = Delivery(loop, store, recovery, client_buffer_bytes)
        self._outcomes = Outcomes(store, pool, blobs, endings, failures, recovery, delivery)
        self.commits = Committing(
            store,
            disk_timeout_s,
            payloads.memory_bytes,
            notify=delivery.notify,
            wake_in=lambda seconds: loop.call_in(seconds, lambda: None),
            hold_clients=delivery.hold,
        )
        connected, watchers = delivery.clients, delivery.watchers
        self.stopping = Stopping(
            connected, watchers, recovery, orchestrator, pool, store, inbox.add, self._catch_up, on_client_loss
        )
        self._dependencies = Dependencies(store, orchestrator)
        batches = Batches(store, orchestrator, payloads, pool, blobs, recovery, self._dependencies, delivery, inbox)
        orders = Orders(store, orchestrator, payloads, pool, tasks, connected)
        timers = Timers(loop, pool, orchestrator, measuring, inbox)
        self._effects = Effects(pool, orders, self._outcomes, batches, timers)
        report = Report(orchestrator, pool, tasks, connected, self.refusals, measuring, blobs)
        taking_up = TakingUp(store, recovery, delivery, self._once_committed)
        questions = Questions(report, pool, self.stopping, taking_up, self.commits, delivery, self._purge)
        self.workers = Workers(pool, measuring, blobs, inbox)
        self.clients = Clients(
            loop,
            store,
            pool,
            blobs,
            tasks,
            orders,
            self.commits,
            self.stopping,
            taking_up,
            batches,
            questions,
            delivery,
            inbox,
        )

    def run(self) -> None:
        """Apply the rules to what has come, commit, and put what is to be sent into the peers' hands."""
        held_back = self.commits.held_back
        if self._recovery.has_work and not self._is_recovering and not held_back:
            self._is_recovering = True
            self._loop.call_in(0, self._recover_more)  # A piece in each turn.
        if not (self._has_news() or held_back):
            return
        apply = self._effects.apply
        for event, outcome in self._inbox.take():
            if type(event) is BatchArrived or type(event) is BatchOffered or type(event) is BatchRecovered:
                event = self._dependencies.with_settled(event)
            for effect in self._orchestrator.handle(event):
                if not self._is_last or isinstance(effect, LAST_EFFECTS):
                    apply(effect, outcome)
        self._recovery.arrived()
        is_taken = self._dependencies.take_any_of(self.delivery.outcomes)
        if (held_back or is_taken or self._store.shelf.has_taken) and not self.commit():
            return
        if not self._is_last:
            for effect in self._orchestrator.lease_ready_calls():
                apply(effect, None)
        self._loop.flush()
        if self.delivery.has_some():
            self.commit()  # Else nobody is told anything, so what has come may be committed with what comes next.

    def commit(self) -> bool:
        """Commit what has come, and tell whoever is to be told; whether that was possible."""
        if not self.commits.commit():
            return False
        self._tell()
        acts, self._put_off = self._put_off, []
        for act in acts:
            act()
        return True

    def settle(self) -> None:
        """Commit what has come, because the loop is about to sleep."""
        if not self.commits.held_back:
            self.commit()

    def _tell(self) -> None:
        self._payloads.committed()
        # Results of which the rules have not heard yet refer to blobs, too, and nobody knows of it.
        if self._blobs.is_due and not self._inbox:
            self._blobs.turn_over()
        self._outcomes.committed()
        self.delivery.committed()

    def _once_committed(self, act: Callable[[], None]) -> None:
        """Do what reads in the database what has come; while that takes nothing, it is put off."""
        if self.commit():
            act()
        else:
            self._put_off.append(act)

    def _catch_up(self) -> None:
        """Have all that has come known to the rules, and in the database."""
        self.run()
        self.commit()

    def refused(self, peer: Peer, why: str) -> None:
        """A connection is closed because of what came over it."""
        role = peer.role
        if isinstance(role, Client):
            who = f"client {role.number}"
            peer.send(json_frame(Kind.REFUSED, error=f"the supervisor closed the connection: {why}"))
            peer.flush()
        else:
            who = f"worker {role.number} (pid {role.pid})" if isinstance(role, Worker) else "a stranger"
        self.refusals.add(who, why)

    # What is there.

    def _has_news(self) -> bool:
        return bool(self._inbox or self.delivery.has_some())

    def drained(self) -> bool:
        """Whether no call waits for its outcome and nobody waits for an answer."""
        coming = self._has_news() or self.commits.held_back
        return not self._orchestrator.batches and not coming and self._recovery.is_done

    def needed_batches(self) -> Callable[[int], bool]:
        """Which batches must not be forgotten yet, and which named groups, by their first batch."""
        clients = self.delivery.clients.values()
        needs = [client.needs for client in clients if client.needs]
        waiting = {split_number(number)[0] for client in clients for _, number in client.backlog}
        depended_on = self._dependencies.depended_on
        of_use: tuple[Container[int], ...] = (self._orchestrator.batches, depended_on, waiting, *needs)
        return lambda batch: any(batch in those for those in of_use)

    def _purge(self) -> str:
        """Forget all that the database has; why that cannot be, or is not possible now."""
        if self._orchestrator.batches or self._has_news() or self.commits.held_back:
            return "calls are still running or waiting to run"
        if self.delivery.has_backlog():
            return "results wait for a client that does not take them"
        try:
            self._store.commit()
            self._store.purge()
        except StateBackendError as error:
            return str(error)
        self._recovery.drop()
        self._blobs.purge()
        return ""

    # Beginning and ending.

    def begin(self) -> None:
        """Take up what a supervisor that was killed has left."""
        self._recovery.begin()
        self.run()

    def _recover_more(self) -> None:
        self._is_recovering = False
        if not self.commits.held_back:
            self._once_committed(self._recovery.step)

    def raise_mark(self) -> None:
        """All is finished: should this supervisor be killed, the next one need not look at what was until now."""
        if self._recovery.has_begun:
            self._store.shelf.settle(min(self.delivery.clients, default=None))

    def shelve(self) -> str:
        """The workers are ended: keep what is not finished, and tell whoever has interrupted the calls how many there are.

        Returns:
            Why the database did not take it; empty when it did. What it has is taken up by the next supervisor then.
        """
        self._is_last = True
        batches = self._orchestrator.batches
        why = ""
        try:
            self.run()
            self._store.shelf.put(batches)
            if self._recovery.has_begun and self._recovery.is_done:
                self._store.shelf.settle()
            self.commits.commit_last()
            self._tell()
        except StateBackendError as error:
            why = str(error)
        if self.stopping.interrupter is not None:
            peer, token = self.stopping.interrupter
            lost = self._store.uncommitted_batches()
            kept = sum(batch.unfinished for number, batch in batches.items() if number not in lost)
            peer.send(json_frame(Kind.REPORT, token=token, kept=kept))
        return why
