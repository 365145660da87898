"""One turn of the loop: what has come becomes events, the rules say what follows, one transaction, then it is sent.

Leases go out before the commit, so workers begin while their batches are written. Outcomes go out after it, so what a
client has seen is never lost. When a client reads slower than its results come, they stay in the state backend
and are read back once it has caught up: memory stays bounded, and no client holds up another.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Container
from typing import Any, assert_never

from pynenc.blobs.references import from_column
from pynenc.exceptions import ProtocolError, StateBackendError
from pynenc.protocol.extras import Extras
from pynenc.protocol.fields import Fields
from pynenc.protocol.messages import (
    BATCH_NUMBER_BITS,
    MAX_BATCH,
    MAX_BATCH_CALLS,
    MAX_INVOCATION,
    REFERRING,
    Batch,
    Ending,
    Failure,
    Kind,
    Lease,
    Pause,
    Results,
    batch_number,
    bytes_frame,
    bytes_from,
    invocation_number,
    is_of_worker,
    json_frame,
    number_frame,
    number_from,
    numbers_from,
    split_number,
)
from pynenc.protocol.slots import SETTLE_S
from pynenc.state_backend.reader import TaskCounts
from pynenc.state_backend.store import Store
from pynenc.status import InvocationStatus
from pynenc.supervisor.blobs import Blobs
from pynenc.supervisor.committing import Committing
from pynenc.supervisor.declarations import Declaration, declaration_from
from pynenc.supervisor.endings import Endings
from pynenc.supervisor.events import (
    AddWorker,
    AnswerOffer,
    BatchArrived,
    BatchFinished,
    BatchOffered,
    BatchRecovered,
    CallFailed,
    CallLater,
    CallsSucceeded,
    CallsWithdrawn,
    CutReached,
    CutSettled,
    CutWorker,
    Effect,
    EndCalls,
    Ended,
    Event,
    FailLost,
    KeepAttempt,
    KeepOutcome,
    KeepTransition,
    KillWorker,
    LeaseCalls,
    LookAgain,
    Looked,
    MeasureWorkers,
    PauseWorker,
    ResumeCall,
    ResumeWorker,
    RetireWorker,
    RetryDue,
    StopCall,
    StopsChecked,
    TaskDeclared,
    ThreadsWait,
    TimesChecked,
    UncutWorker,
    WatchStops,
    WatchTimes,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)
from pynenc.supervisor.groups import Groups
from pynenc.supervisor.loop import Frames, Loop, Peer
from pynenc.supervisor.measuring import Measuring
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.orders import Order, tell
from pynenc.supervisor.payloads import Payloads
from pynenc.supervisor.pool import Pool, Worker
from pynenc.supervisor.recovery import Recovery, Resumption
from pynenc.supervisor.refusals import Refusals
from pynenc.supervisor.report import Report
from pynenc.supervisor.stopping import Stopping
from pynenc.supervisor.task import Task

MAX_UNREAD = 10_000
"""A client with more answers that it has not read is no client of ours."""

MAX_CLIENT = MAX_BATCH >> BATCH_NUMBER_BITS

COMMITTED_EVERY = 16
"""After so many batches a client is told that they are committed, so that it need not keep them."""

LAST_EFFECTS = (KeepOutcome, KeepAttempt, KeepTransition, EndCalls, FailLost, BatchFinished)
"""What is still done when the workers have been ended."""


class Client:
    """A connected client.

    Attributes:
        is_worker: Whether it is a worker whose task calls tasks; nobody stays for its sake.
        tasks: Its own numbers of the tasks that it declared.
        unread: How many answers it may not have read yet.
        uncommitted: How many batches came since it was told up to which they are committed.
        backlog: Invocations whose outcomes wait in the state backend until it reads again.
        has_left: Whether it has said goodbye, or was interrupted.
        asks_only: Whether it makes no calls: it is welcome also while nothing is committed.
        needs: Batches that are not to be forgotten while it is there: named groups that it goes on with, by their first batch,
            and what it has resumed.
        numbers: Its number, and those that other supervisors had given it.
    """

    __slots__ = (
        "asks_only",
        "backlog",
        "has_left",
        "is_worker",
        "needs",
        "number",
        "numbers",
        "peer",
        "pid",
        "tasks",
        "uncommitted",
        "unread",
    )

    def __init__(self, number: int, peer: Peer, pid: int, is_worker: bool, asks_only: bool) -> None:
        self.number = number
        self.asks_only = asks_only
        self.numbers = {number}
        self.pid = pid
        self.is_worker = is_worker
        self.has_left = False
        self.peer = peer
        self.tasks: dict[int, Task] = {}
        self.uncommitted = self.unread = 0
        self.backlog: deque[tuple[Kind, int]] = deque()
        self.needs: set[int] = set()


class Turn:
    """What the supervisor does between reading and waiting.

    Args:
        measuring: Reads the workers' memory.
        client_buffer_bytes: How many outcome bytes wait in memory for a client that does not read.
        disk_timeout_s: How long a database may take no commit.
        on_client_loss: What becomes of the calls of a client that leaves without goodbye; `conf/config_runner.py`.

    Attributes:
        commits: Whether the database takes what comes.
        stopped: Whether a client has asked that all ends now.
        stopping: What becomes of the calls of clients that are interrupted or lost.
    """

    def __init__(
        self,
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
        self.loop: Loop
        self.clients: dict[int, Client] = {}
        self._store = store
        self._orchestrator = orchestrator
        self._payloads = payloads
        self._pool = pool
        self._measuring = measuring
        self._blobs = blobs
        self.commits = Committing(
            store,
            disk_timeout_s,
            payloads.memory_bytes,
            notify=self.notify,
            wake_in=lambda seconds: self.loop.call_in(seconds, lambda: None),
            hold_clients=self._hold_clients,
        )
        self.stopped = False
        self._interrupter: tuple[Peer, int] | None = None
        self._is_last = False
        self._is_recovering = False
        self._client_buffer_bytes = client_buffer_bytes
        self._tasks: dict[int, Task] = {}
        self._watchers: dict[int, set[int]] = {}
        self._groups = Groups()
        self._offers: dict[int, tuple[Client, Batch, Extras]] = {}
        self._dependents: dict[int, list[int]] = {}
        self._depended_on: Counter[int] = Counter()
        self._failures: dict[int, Failure] = {}
        self.refusals = Refusals()
        self._endings = Endings(store, pool, self._tasks, self._failures, measuring)
        self._report = Report(orchestrator, pool, self._tasks, self.clients, self.refusals, measuring, blobs)
        self._recovery = Recovery(
            store,
            orchestrator,
            payloads,
            self._endings,
            self._tasks,
            lambda event: self._events.append((event, None)),
            self._keep,
            blobs.batch_finished,
        )
        self.stopping = Stopping(
            self.clients,
            self._watchers,
            self._recovery,
            orchestrator,
            pool,
            store,
            lambda event: self._events.append((event, None)),
            self._catch_up,
            on_client_loss,
        )
        self._put_off: list[Callable[[], None]] = []
        self._events: list[tuple[Event, Results | Failure | None]] = []
        self._deliveries: list[Results | Failure] = []
        self._after_commit: list[tuple[Peer, bytes]] = []

    def run(self) -> None:
        """Apply the rules to what has come, commit, and put what is to be sent into the peers' hands."""
        held_back = self.commits.held_back
        if self._recovery.has_work and not self._is_recovering and not held_back:
            self._is_recovering = True
            self.loop.call_in(0, self._recover_more)  # A piece in each turn.
        if not (self._events or self._after_commit or self._deliveries or held_back):
            return
        events, self._events = self._events, []
        for event, outcome in events:
            if type(event) is BatchArrived or type(event) is BatchOffered or type(event) is BatchRecovered:
                event = self._with_settled(event)
            for effect in self._orchestrator.handle(event):
                if not self._is_last or isinstance(effect, LAST_EFFECTS):
                    self._apply(effect, outcome)
        self._recovery.arrived()
        if (held_back or self._is_depended_on() or self._store.shelf.has_taken) and not self.commit():
            return
        if not self._is_last:
            for effect in self._orchestrator.lease_ready_calls():
                self._apply(effect, None)
        self.loop.flush()
        if self._deliveries or self._after_commit:
            self.commit()  # Else nobody is told anything, so what has come may be committed with what comes next.

    def _is_depended_on(self) -> bool:
        """Whether a call that may be leased takes a result that is to be committed: its worker reads it from the database."""
        on = self._depended_on
        return bool(on) and any(outcome.batch in on for outcome in self._deliveries)

    def commit(self) -> bool:
        """Commit what has come, and tell whoever is to be told; whether that was possible."""
        if not self.commits.commit():
            return False
        self._tell()
        acts, self._put_off = self._put_off, []
        for act in acts:
            act()
        return True

    def _once_committed(self, act: Callable[[], None]) -> None:
        """Do what reads in the database what has come; while that takes nothing, it is put off."""
        if self.commit():
            act()
        else:
            self._put_off.append(act)

    def _tell(self) -> None:
        self._payloads.committed()
        if self._blobs.is_due:
            self._blobs.turn_over()
        self._failures.clear()
        for outcome in self._deliveries:
            self._deliver(outcome)
        if self._watchers:  # Only now: the last outcomes of a batch may be several.
            for batch in {outcome.batch for outcome in self._deliveries}:
                if not self._recovery.is_there(batch):
                    self._watchers.pop(batch, None)
        self._deliveries.clear()
        for peer, answer in self._after_commit:
            peer.send(answer)
        self._after_commit.clear()

    def settle(self) -> None:
        """Commit what has come, because the loop is about to sleep."""
        if not self.commits.held_back:
            self.commit()

    def has_clients(self) -> bool:
        """Whether anybody from outside is connected."""
        return any(not client.is_worker for client in self.clients.values())

    def drained(self) -> bool:
        """Whether no call waits for its outcome and nobody waits for an answer."""
        coming = self._events or self._after_commit or self._deliveries or self.commits.held_back
        return not self._orchestrator.batches and not coming and self._recovery.is_done

    def needed_batches(self) -> Callable[[int], bool]:
        """Which batches must not be forgotten yet, and which named groups, by their first batch."""
        clients = self.clients.values()
        needs = [client.needs for client in clients if client.needs]
        waiting = {split_number(number)[0] for client in clients for _, number in client.backlog}
        of_use: tuple[Container[int], ...] = (self._orchestrator.batches, self._depended_on, waiting, *needs)
        return lambda batch: any(batch in those for those in of_use)

    # Beginning and ending.

    def begin(self) -> None:
        """Take up what a supervisor that was killed has left."""
        self._recovery.begin()
        self.run()

    def raise_mark(self) -> None:
        """All is finished: should this supervisor be killed, the next one need not look at what was until now."""
        if self._recovery.has_begun:
            self._store.shelf.settle(min(self.clients, default=None))

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
        if self._interrupter is not None:
            peer, token = self._interrupter
            lost = self._store.uncommitted_batches()
            kept = sum(batch.unfinished for number, batch in batches.items() if number not in lost)
            peer.send(json_frame(Kind.REPORT, token=token, kept=kept))
        return why

    def _recover_more(self) -> None:
        self._is_recovering = False
        if not self.commits.held_back:
            self._once_committed(self._recovery.step)

    # What clients send.

    def client_joined(self, peer: Peer, pid: int, is_worker: bool, asks_only: bool = False) -> int:
        """Give a client its number and begin to listen to it."""
        number = self._store.add_client(pid)  # Who asked for it commits that, with `after_commit`.
        client = Client(number, peer, pid, is_worker, asks_only)
        self.clients[number] = client
        peer.role = client
        peer.on_frames = self.client_frames
        peer.on_end = self._client_left
        peer.on_drained = self._client_drained
        if self.commits.why and not is_worker:
            peer.send(json_frame(Kind.NOTICE, text=f"nothing is committed just now, so this waits: {self.commits.why}"))
        return number

    def after_commit(self, peer: Peer, message: bytes) -> None:
        """Send this once everything that has come up to now is committed."""
        self._after_commit.append((peer, message))

    def notify(self, text: str) -> None:
        """Tell those in front of the screen something; workers are not."""
        for client in {id(one): one for one in self.clients.values() if not one.is_worker}.values():
            client.peer.send(json_frame(Kind.NOTICE, text=text))

    def _hold_clients(self, held: bool) -> None:
        for client in self.clients.values():
            if not client.asks_only:
                self.loop.hold(client.peer, held)

    def client_frames(self, peer: Peer, frames: Frames) -> None:
        """Take in what a client has sent."""
        client: Client = peer.role
        for kind, body in frames:
            if kind == Kind.BATCH:
                self._batch_came(client, Batch.from_body(body))
            elif kind == Kind.TASK:
                self._task_came(client, declaration_from(body))
            elif kind == Kind.SYNC:
                self._answer(client, number_frame(Kind.SYNCED, number_from(body)))
            elif kind == Kind.WATCH:
                self._watch(client, batch_number(number_from(body)))
            elif kind == Kind.QUERY:
                self._query(client, Fields.of("a question", body))
            elif kind == Kind.CANCEL:
                self._cancel(Fields.of("a cancellation", body))
            elif kind == Kind.COMMON:
                token, payload = bytes_from(body)
                number = self._store.add_common_arguments(payload)
                self._answer(client, json_frame(Kind.REPORT, token=token, number=number))
            elif kind == Kind.HOLD:
                self._blobs.client_holds(client.number, body)
            elif kind == Kind.RELEASE:
                self._blobs.client_releases(client.number, body)
            elif kind == Kind.DROP:
                self._blobs.results_dropped(numbers_from(body, MAX_INVOCATION))
            elif kind == Kind.ADOPT:
                self._adopt(client, Fields.of("a client that comes over", body))
            elif kind == Kind.GOODBYE:
                client.has_left = True
                self.loop.end(peer, "it said goodbye")
                return
            else:
                raise ProtocolError(f"a client sent a frame of kind {kind}")

    def _interrupt(self, asking: Client, number: int, token: int) -> None:
        """A client, which tells this over another connection of its own, is interrupted."""
        kept = self.stopping.interrupt(number, asking)
        if kept is None:
            self._interrupter = (asking.peer, token)
        else:
            self._after_commit.append((asking.peer, json_frame(Kind.REPORT, token=token, kept=kept)))

    def _catch_up(self) -> None:
        """Have all that has come known to the rules, and in the database."""
        self.run()
        self.commit()

    def _batch_came(self, client: Client, batch: Batch) -> None:
        task = client.tasks.get(batch.task)
        if task is None or self.clients.get(batch.id >> BATCH_NUMBER_BITS) is not client:
            raise ProtocolError(f"batch {batch.id} of client {client.number} for task {batch.task} fits nothing")
        if batch.id in self._orchestrator.batches or self._recovery.is_there(batch.id):
            return
        extras = self._extras_of(batch)
        self._recovery.coming.add(batch.id)
        client.uncommitted += 1
        if client.uncommitted == COMMITTED_EVERY:
            client.uncommitted = 0
            self._after_commit.append((client.peer, number_frame(Kind.COMMITTED, batch.id)))
        batch = batch._replace(task=task.number)
        # Groups are named by their first batch, so a client's own number is free to name its single calls.
        arrived = BatchArrived(batch.id, task.number, batch.count, batch.group or client.number, extras)
        if extras.registration:
            self._offers[batch.id] = (client, batch, extras)
            self._events.append((BatchOffered(arrived, self._positions()), None))
        else:
            self._take_batch(batch, extras)
            self._events.append((arrived, None))

    def _extras_of(self, batch: Batch) -> Extras:
        extras = Extras.from_bytes(batch.extras, batch.count)
        if extras.common and not self._store.has_common_arguments(extras.common):
            raise ProtocolError(f"batch {batch.id} takes common arguments {extras.common}, which are not there")
        if extras.dependencies and any(on.batch == batch.id for on in extras.depended_on()):
            raise ProtocolError(f"batch {batch.id} waits for itself")
        from_column(extras.blobs)  # It raises when that cannot be.
        return extras

    def _take_batch(self, batch: Batch, extras: Extras) -> None:
        self._store.add_batch(batch, extras)
        self._payloads.add(batch)
        if extras.blobs:
            self._blobs.batch_came(batch.id, extras.blobs)

    def _with_settled(self, event: BatchArrived | BatchOffered | BatchRecovered) -> Event:
        """A new batch, with what is known of dependencies that are finished."""
        arrived = event if isinstance(event, BatchArrived) else event.batch
        if not arrived.extras.dependencies:
            return event
        self._forget_dependencies(arrived.batch)
        self._dependents[arrived.batch] = on_batches = [on.batch for on in arrived.extras.depended_on()]
        self._depended_on.update(on_batches)
        settled: dict[tuple[int, int, int], int] = {}
        for on in arrived.extras.depended_on():
            if on.batch not in self._orchestrator.batches and on[1:] not in settled:
                settled[on[1:]] = self._store.first_without_result(*on[1:])
        arrived = arrived._replace(settled=settled)
        return arrived if isinstance(event, BatchArrived) else event._replace(batch=arrived)

    def _task_came(self, client: Client, declared: Declaration) -> None:
        import json

        task_id, context = declared.task_id, declared.context
        number = self._store.add_task(task_id, json.dumps(declared.options), json.dumps(context))
        task = self._tasks.setdefault(number, Task(number, task_id, context))
        client.tasks[declared.key] = task
        self._events.append((TaskDeclared(number, declared.rules), None))

    def _adopt(self, client: Client, fields: Fields) -> None:
        """A client comes from a supervisor that died: what that one had committed and not finished is run here."""
        numbers, batches = fields.integers("clients", MAX_CLIENT), fields.integers("batches", MAX_BATCH)
        token = fields.integer("token", default=0)
        for number in numbers:
            self.clients.setdefault(number, client)
        client.numbers.update(numbers)
        if numbers:
            self._store.shelf.unsettle(min(numbers))

        def take_up() -> None:
            unknown = [number for number in batches if not self._recover(client, number)]
            self._answer(client, json_frame(Kind.REPORT, token=token, unknown=unknown))

        self._once_committed(take_up)

    def _recover(self, client: Client, number: int) -> bool:
        """Have a batch run that was committed by another supervisor; False when none was."""
        is_known, outcomes = self._recovery.adopt(client.number, number)
        if is_known and self.clients.get(number >> BATCH_NUMBER_BITS) is not client:
            self._watchers.setdefault(number, set()).add(client.number)
        self._deliveries += outcomes
        return is_known

    def _watch(self, client: Client, batch: int) -> None:
        """Send all outcomes of a batch that another client submitted: those that are there, and those to come."""
        live = self._recovery.is_there(batch) or any(one.batch == batch for one in self._deliveries)
        if live:
            self._watchers.setdefault(batch, set()).add(client.number)
        results, failures = self._store.outcomes_of(batch)
        for one in results:
            client.peer.send(one.to_frame())
        for failure in failures:
            client.peer.send(failure.to_frame())
        client.peer.send(json_frame(Kind.REPORT, token=batch, live=live))

    def _cancel(self, fields: Fields) -> None:
        force, positions = fields.flag("force"), self._positions()
        for calls in fields.ranges("calls", MAX_BATCH, MAX_BATCH_CALLS):
            self._events.append((CallsWithdrawn(*calls, Ended.CANCELLED, force, positions), None))

    def _query(self, client: Client, fields: Fields) -> None:
        answer: dict[str, Any]
        what = fields.text("what")
        token = fields.integer("token", default=0)
        if what == "status":
            batch, index = fields.integer("batch", MAX_BATCH), fields.integer("index", MAX_BATCH_CALLS)
            answer = {"status": self._report.status_of(batch, index)}
        elif what == "counts":
            answer = self._report.counts_of(set(fields.integers("batches", MAX_BATCH)))
        elif what == "report":
            answer = {**self._report.all(), "waits_for_disk": self.commits.why}
        elif what == "name_group":
            named = (fields.text("task"), fields.text("name"), fields.integer("group", MAX_BATCH))
            self._name_group(client, *named, token)
            return
        elif what == "group_made":
            self._groups.release(fields.integer("group", MAX_BATCH), client.number)
            answer = {}
        elif what == "interrupt":
            self._interrupt(client, fields.integer("client", MAX_CLIENT), token)
            return
        elif what == "resume":
            self._resume(client, token, fields.integer("ended"))
            return
        elif what == "resumed":
            answer = {"left": sum(one.left for one in self._recovery.resumptions if one.client == client.number)}
        elif what == "stop":
            self.stopped = fields.flag("now", default=False)
            self._pool.persistent = False
            answer = {}
        elif what == "purge":
            if self._orchestrator.batches or self._events or self._after_commit or self.commits.held_back:
                answer = {"error": "calls are still running or waiting to run"}
            elif any(one.backlog for one in self.clients.values()):
                answer = {"error": "results wait for a client that does not take them"}
            else:
                answer = self._purge()
        else:
            raise ProtocolError(f"a client asked for {what!r:.100}")
        message = json_frame(Kind.REPORT, token=token, **answer)
        if what == "report":
            client.peer.send(message)  # It says why nothing is committed, so it does not wait for that.
        else:
            self._answer(client, message)

    def _purge(self) -> dict[str, Any]:
        try:
            self._store.commit()
            self._store.purge()
        except StateBackendError as error:
            return {"error": str(error)}
        self._recovery.drop()
        self._blobs.purge()
        return {}

    def _answer(self, client: Client, answer: bytes) -> None:
        """Answer after the commit. Whoever asks reads the answer before the next question, in each of its threads."""
        client.unread += 1
        if client.unread > MAX_UNREAD:
            raise ProtocolError(f"it asked {MAX_UNREAD:,} questions and read no answer")
        self._after_commit.append((client.peer, answer))

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

    def _name_group(self, client: Client, task: str, name: str, fresh: int, token: int) -> None:
        """Answer with the group of a name, as soon as nobody else makes calls of it; those that it has go on."""
        group = self._store.name_group(task, name, fresh)
        client.needs.add(group)

        def go_on() -> None:
            if not client.peer.open:
                return
            if group != fresh:
                self._recovery.take_up_group(group, client.number)
            self._after_commit.append((client.peer, json_frame(Kind.REPORT, token=token, group=group)))

        self._groups.claim(group, client.number, lambda: self._once_committed(go_on))

    def _resume(self, client: Client, token: int, ended: int) -> None:
        """Take up what nobody runs. The client is told what that is, and later that it has ended."""

        def tell(token: int, **fields: Any) -> None:
            self._after_commit.append((client.peer, json_frame(Kind.REPORT, token=token, **fields)))

        def begun(batches: list[tuple[int, int]], counts: list[TaskCounts]) -> None:
            for first, stop in batches:
                client.needs.update(range(first, stop))  # It counts how they have ended.
            tell(token, batches=batches, counts=counts)

        resumption = Resumption(client.number, begun, ended=lambda: tell(ended))
        self._once_committed(lambda: self._recovery.resume(resumption) if client.peer.open else None)

    def _client_left(self, peer: Peer, why: str) -> None:
        client: Client = peer.role
        if not (client.has_left or client.is_worker):
            self.stopping.lost(client, self.loop)
        for number in client.numbers:
            if self.clients.get(number) is client:
                del self.clients[number]
        self._recovery.forget(client.number)
        self._groups.forget(client.number)
        self._blobs.client_left(client.numbers)
        for watchers in self._watchers.values():
            watchers.discard(client.number)
        for worker in self._pool.workers.values():
            if worker.output_of == client.number:
                # Whoever reads that output waits for its end, so nobody may hold it open.
                self._direct_output(worker, client.number)

    def _client_drained(self, peer: Peer) -> None:
        client: Client = peer.role
        client.unread = 0
        while client.backlog and peer.buffered < self._client_buffer_bytes:
            kind, number = client.backlog.popleft()
            if kind == Kind.RESULTS:
                peer.send(self._store.results_at(number).to_frame())
            else:
                peer.send(self._store.failure_at(number).to_frame())

    # What workers send.

    def worker_started(self, worker: Worker) -> None:
        """A worker can be leased calls: it reads them when it is up."""
        worker.peer.on_frames = self.worker_frames
        self._events.append((WorkerJoined(worker.number, worker.concurrent), None))

    def worker_frames(self, peer: Peer, frames: Frames) -> None:
        """Take in what a worker has sent."""
        worker: Worker = peer.role
        number = worker.number
        for kind, body in frames:
            if kind == Kind.RESULTS:
                results = Results.from_body(body)
                if results.worker != number:
                    raise ProtocolError(f"results of worker {results.worker}")
                if results.packing & REFERRING:
                    results = self._blobs.results_came(results)
                succeeded = CallsSucceeded(number, results.batch, results.first, results.stop, results.took)
                self._events.append((succeeded, results))
            elif kind == Kind.FAILURE:
                failure = Failure.from_body(body)
                if failure.worker != number or failure.stop != failure.first + 1 or not is_of_worker(failure):
                    raise ProtocolError(f"a failure of worker {failure.worker}, ending {failure.ending}")
                took = failure.ended - failure.started
                failed = CallFailed(number, failure.batch, failure.first, took, failure.retry_s, random.random())
                self._events.append((failed, failure))
            elif kind == Kind.CUT:
                self._events.append((CutReached(number, number_from(body)), None))
            elif kind == Kind.PAUSE:
                self._events.append((WorkerPaused(number, *Pause.from_body(body)), None))
            elif kind == Kind.RESUME:
                self._events.append((WorkerResumed(number, number_from(body)), None))
            elif kind == Kind.WAITS:
                self._events.append((ThreadsWait(number, number_from(body)), None))
            else:
                raise ProtocolError(f"a worker sent a frame of kind {kind}")

    def worker_ended(self, worker: Worker, position: int) -> None:
        """A worker's process is gone, and all that it had sent is read."""
        self._measuring.note_death(worker)
        self._events.append((WorkerLost(worker.number, position, self._pool.is_ending), None))
        self._blobs.somebody_died()

    # What the rules ask for.

    def _apply(self, effect: Effect, outcome: Results | Failure | None) -> None:
        match effect:
            case LeaseCalls():
                self._lease(effect)
            case KeepOutcome():
                assert outcome is not None
                self._keep(outcome)
            case AnswerOffer():
                self._answer_offer(effect)
            case BatchFinished():
                self._payloads.drop(effect.batch)
                if effect.batch not in self._recovery.leaving:
                    self._blobs.batch_finished(effect.batch)
                self._forget_dependencies(effect.batch)
                self._recovery.finished(effect.batch)
            case FailLost():
                self._keep(self._endings.of_lost(effect))
            case EndCalls():
                self._end_calls(effect)
            case KeepAttempt():
                assert isinstance(outcome, Failure)
                self._store.add_failure(outcome._replace(ending=Ending.RETRY))
            case KeepTransition():
                self._keep_transition(effect)
            case KillWorker():
                self._pool.kill(effect.worker)
            case WatchTimes():
                self.loop.call_in(effect.seconds, self._check_times)
            case MeasureWorkers():
                self._measuring.call_in(self.loop, effect.seconds, lambda event: self._events.append((event, None)))
            case CallLater():
                self.loop.call_in(effect.seconds, lambda: self._its_time_came(effect.event))
            case AddWorker():
                self._pool.add(effect.concurrent)
            case LookAgain():
                self.loop.call_in(effect.seconds, self._looked)
            case WatchStops():
                self.loop.call_in(effect.seconds, self._check_stops)
            case (
                CutWorker()
                | UncutWorker()
                | PauseWorker()
                | ResumeWorker()
                | ResumeCall()
                | StopCall()
                | RetireWorker()
            ):
                self._tell_worker(effect.worker, effect)
            case _:
                assert_never(effect)

    def _tell_worker(self, number: int, order: Order | RetireWorker) -> None:
        worker = self._pool.workers.get(number)
        if worker is None:
            return  # It has died in this very turn; the rules are told next.
        if isinstance(order, RetireWorker):
            self._pool.retire(number)
            return
        tell(worker, order)
        if isinstance(order, CutWorker):
            self.loop.call_in(SETTLE_S, lambda: self._cut_settled(worker, order.serial))

    def _answer_offer(self, answer: AnswerOffer) -> None:
        client, batch, extras = self._offers.pop(answer.batch)
        if answer.reused:
            self._forget_dependencies(batch.id)
        else:
            self._take_batch(batch, extras)
        self._after_commit.append((client.peer, json_frame(Kind.REPORT, token=batch.id, reused=answer.reused)))

    def _forget_dependencies(self, of: int) -> None:
        for batch in self._dependents.pop(of, ()):
            self._depended_on[batch] -= 1
            if not self._depended_on[batch]:
                del self._depended_on[batch]

    def _lease(self, lease: LeaseCalls) -> None:
        worker = self._pool.workers[lease.worker]
        self._direct_output(worker, lease.batch >> BATCH_NUMBER_BITS)
        if lease.task not in worker.tasks:
            worker.tasks.add(lease.task)
            task = self._tasks[lease.task]
            worker.peer.send(json_frame(Kind.TASK, number=task.number, task_id=task.task_id, context=task.context))
        extras = self._orchestrator.batches[lease.batch].extras
        common = extras.common
        if common and worker.common_arguments.add(common):
            worker.peer.send(bytes_frame(Kind.COMMON, common, self._store.common_arguments(common)))
        packing, payload = self._payloads.slice(lease.batch, lease.first, lease.stop)
        head = (lease.position, lease.batch, lease.task, lease.first, lease.stop, lease.attempt, common)
        message = Lease(*head, packing, payload, extras.lineage)
        worker.peer.send(message.to_frame())

    def _direct_output(self, worker: Worker, client_number: int) -> None:
        """Have what the worker prints from here on appear where the client's own output does."""
        client = self.clients.get(client_number)
        wanted = client_number if client is not None else 0
        if worker.output_of != wanted:
            worker.output_of = wanted
            files = client.peer.descriptors if client is not None else []
            if files:
                try:
                    worker.peer.send_descriptors(number_frame(Kind.OUTPUT, len(files)), files)
                    return
                except OSError:
                    worker.output_of = 0  # No descriptors are left: it prints to the supervisor's log for once.
            worker.peer.send(number_frame(Kind.OUTPUT, 0))

    def _keep(self, outcome: Results | Failure) -> None:
        if isinstance(outcome, Results):
            self._store.add_results(outcome)
            self._blobs.results_kept(outcome)
        else:
            self._store.add_failure(outcome)
            for index in range(outcome.first, outcome.stop):
                self._failures[invocation_number(outcome.batch, index)] = outcome
        self._recovery.outcomes_kept(outcome.batch, outcome.stop - outcome.first)
        self._deliveries.append(outcome)

    def _keep_transition(self, step: KeepTransition) -> None:
        now = time.time()
        calls = (step.batch, step.first, step.stop)
        if step.ran and not self._pool.lost[step.worker].concurrent:
            began = now - self._pool.lost[step.worker].ran_s
            self._store.add_transition(*calls, InvocationStatus.RUNNING, step.worker, began)
        self._store.add_transition(*calls, step.status, step.worker, now)

    def _deliver(self, outcome: Results | Failure) -> None:
        if isinstance(outcome, Results):
            outcome = outcome._replace(ends=b"")
        receivers = [outcome.batch >> BATCH_NUMBER_BITS, *self._watchers.get(outcome.batch, ())]
        made: bytes | None = None
        for number in receivers:
            client = self.clients.get(number)
            if client is None:
                continue  # It left; the outcome is in the state backend.
            if client.backlog or client.peer.buffered > self._client_buffer_bytes:
                kind = Kind.RESULTS if isinstance(outcome, Results) else Kind.FAILURE
                client.backlog.append((kind, invocation_number(outcome.batch, outcome[1])))
                continue
            made = made or outcome.to_frame()
            client.peer.send(made)

    def _cut_settled(self, worker: Worker, serial: int) -> None:
        if worker.number in self._pool.workers:
            self._events.append((CutSettled(worker.number, worker.slot.position, serial), None))

    def _looked(self) -> None:
        self._events.append((Looked(self._positions()), None))

    def _check_stops(self) -> None:
        positions = self._positions()
        stopped = frozenset(one for one in self._orchestrator.suspects(positions) if self._pool.is_stopped(one))
        self._events.append((StopsChecked(positions, stopped), None))

    def _positions(self) -> dict[int, int]:
        return {number: worker.slot.position for number, worker in self._pool.workers.items()}

    def _check_times(self) -> None:
        running = {}
        for number, worker in self._pool.workers.items():
            # In this order: a worker notes the time before the position, so this is never the time of an earlier call.
            running[number] = (worker.slot.position, worker.slot.running_s())
        now = time.monotonic()
        concurrent = [worker for worker in self._pool.workers.values() if worker.concurrent]
        overdue = {worker.number: position for worker in concurrent if (position := worker.slot.overdue(now))}
        self._events.append((TimesChecked(running, overdue, now), None))

    def _its_time_came(self, event: RetryDue | CallsWithdrawn) -> None:
        if isinstance(event, CallsWithdrawn):
            event = event._replace(positions=self._positions())
        self._events.append((event, None))

    def _end_calls(self, ended: EndCalls) -> None:
        if ended.why is Ended.SHELVED:
            return
        failure = self._endings.of_ended(ended)
        if ended.again:
            self._store.add_failure(failure)
        else:
            self._keep(failure)
