"""One turn of the loop: what has come becomes events, the rules say what follows, one transaction, then it is sent.

Leases go out before the commit, so workers begin while their batches are written. Outcomes go out after it, so what a
client has seen is never lost. When a client reads slower than its results come, they stay in the state backend
and are read back once it has caught up: memory stays bounded, and no client holds up another.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, assert_never

from pynenc.exceptions import ProtocolError, StateBackendError
from pynenc.protocol.extras import Extras
from pynenc.protocol.frames import frame
from pynenc.protocol.messages import (
    BATCH_NUMBER_BITS,
    Batch,
    Ending,
    Failure,
    Kind,
    Lease,
    Pause,
    Results,
    bytes_frame,
    bytes_from,
    invocation_number,
    json_frame,
    json_from,
    number_frame,
    number_from,
    split_number,
)
from pynenc.protocol.slots import SETTLE_S
from pynenc.state_backend.store import Store
from pynenc.status import InvocationStatus
from pynenc.supervisor.committing import Committing
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
    PauseWorker,
    ResumeCall,
    ResumeWorker,
    RetireWorker,
    RetryDue,
    StopCall,
    TaskDeclared,
    TaskOptions,
    ThreadsWait,
    TimesChecked,
    UncutWorker,
    WatchTimes,
    WorkerJoined,
    WorkerLost,
    WorkerPaused,
    WorkerResumed,
)
from pynenc.supervisor.loop import Frames, Loop, Peer
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.payloads import Payloads
from pynenc.supervisor.pool import Pool, Worker
from pynenc.supervisor.report import Report
from pynenc.supervisor.task import Task

COMMITTED_EVERY = 16
"""After so many batches a client is told that they are committed, so that it need not keep them."""


class Client:
    """A connected client.

    Attributes:
        is_worker: Whether it is a worker whose task calls tasks; nobody stays for its sake.
        tasks: Its own numbers of the tasks that it declared.
        uncommitted: How many batches came since it was told up to which they are committed.
        backlog: Invocations whose outcomes wait in the state backend until it reads again.
        named_groups: The named groups that it goes on with.
    """

    __slots__ = ("backlog", "is_worker", "named_groups", "number", "peer", "tasks", "uncommitted")

    def __init__(self, number: int, peer: Peer, is_worker: bool) -> None:
        self.number = number
        self.is_worker = is_worker
        self.peer = peer
        self.tasks: dict[int, Task] = {}
        self.uncommitted = 0
        self.backlog: deque[tuple[Kind, int]] = deque()
        self.named_groups: set[int] = set()


class Turn:
    """What the supervisor does between reading and waiting.

    Args:
        client_buffer_bytes: How many outcome bytes wait in memory for a client that does not read.
        disk_timeout_s: How long a database may take no commit.
    """

    def __init__(
        self,
        store: Store,
        orchestrator: Orchestrator,
        payloads: Payloads,
        pool: Pool,
        client_buffer_bytes: int,
        disk_timeout_s: float,
    ) -> None:
        self.loop: Loop
        self.clients: dict[int, Client] = {}
        self._store = store
        self._orchestrator = orchestrator
        self._payloads = payloads
        self._pool = pool
        self.commits = Committing(
            store,
            disk_timeout_s,
            payloads.memory_bytes,
            notify=self.notify,
            wake_in=lambda seconds: self.loop.call_in(seconds, lambda: None),
            hold_clients=self._hold_clients,
        )
        self.interrupted = False
        self.stopped = False
        self._client_buffer_bytes = client_buffer_bytes
        self._tasks: dict[int, Task] = {}
        self._watchers: dict[int, set[int]] = {}
        self._offers: dict[int, tuple[Client, Batch, Extras]] = {}
        self._dependents: dict[int, list[int]] = {}
        self._depended_on: Counter[int] = Counter()
        self._failures: dict[int, Failure] = {}
        self._endings = Endings(store, pool, self._tasks, self._failures)
        self._report = Report(orchestrator, pool, self._tasks, self.clients)
        self._events: list[tuple[Event, Results | Failure | None]] = []
        self._deliveries: list[Results | Failure] = []
        self._after_commit: list[tuple[Peer, bytes]] = []

    def run(self) -> None:
        """Apply the rules to what has come, commit, and put what is to be sent into the peers' hands."""
        held_back = self.commits.held_back
        if not self._events and not self._after_commit and not held_back:
            return
        events, self._events = self._events, []
        for event, outcome in events:
            if type(event) is BatchArrived or type(event) is BatchOffered or type(event) is BatchRecovered:
                event = self._with_settled(event)
            for effect in self._orchestrator.handle(event):
                self._apply(effect, outcome)
        if (held_back or self._is_depended_on()) and not self.commit():
            return
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
        self._payloads.committed()
        self._tell()
        return True

    def _tell(self) -> None:
        self._failures.clear()
        for outcome in self._deliveries:
            self._deliver(outcome)
        if self._watchers:  # Only now: the last outcomes of a batch may be several.
            for batch in {outcome.batch for outcome in self._deliveries} - self._orchestrator.batches.keys():
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
        if self._orchestrator.batches or self._events or self._after_commit:
            return False
        return not self.commits.held_back

    def needed_batches(self) -> Callable[[int], bool]:
        """Which batches must not be forgotten yet, and which named groups, by their first batch."""
        clients = self.clients.values()
        named = {group for client in clients for group in client.named_groups}
        waiting = {split_number(number)[0] for client in clients for _, number in client.backlog}
        unfinished = self._orchestrator.batches
        return lambda batch: batch in unfinished or batch in self._depended_on or batch in waiting or batch in named

    # What clients send.

    def client_joined(self, peer: Peer, pid: int, is_worker: bool) -> int:
        """Give a client its number and begin to listen to it."""
        number = self._store.add_client(pid)  # Who asked for it commits that, with `after_commit`.
        client = Client(number, peer, is_worker)
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
            self.loop.hold(client.peer, held)

    def client_frames(self, peer: Peer, frames: Frames) -> None:
        """Take in what a client has sent."""
        client: Client = peer.role
        for kind, body in frames:
            if kind == Kind.BATCH:
                self._batch_came(client, Batch.from_body(body))
            elif kind == Kind.TASK:
                self._task_came(client, json_from(body))
            elif kind == Kind.SYNC:
                self._after_commit.append((peer, frame(Kind.SYNCED, body)))
            elif kind == Kind.WATCH:
                self._watch(client, number_from(body))
            elif kind == Kind.QUERY:
                self._query(client, json_from(body))
            elif kind == Kind.CANCEL:
                self._cancel(json_from(body))
            elif kind == Kind.COMMON:
                token, payload = bytes_from(body)
                number = self._store.add_common_arguments(payload)
                self._after_commit.append((peer, json_frame(Kind.REPORT, token=token, number=number)))
            elif kind == Kind.ADOPT:
                self._adopt(client, json_from(body))
            elif kind == Kind.GOODBYE:
                self.interrupted = self.interrupted or (body == b"interrupted" and self._is_only_client(client))
                self.loop.end(peer, "it said goodbye")
                return
            else:
                raise ProtocolError(f"a client sent a frame of kind {kind}")

    def _is_only_client(self, client: Client) -> bool:
        return all(other is client or other.is_worker for other in self.clients.values())

    def _batch_came(self, client: Client, batch: Batch) -> None:
        task = client.tasks.get(batch.task)
        if task is None or self.clients.get(batch.id >> BATCH_NUMBER_BITS) is not client:
            raise ProtocolError(f"batch {batch.id} of client {client.number} for task {batch.task} fits nothing")
        if batch.id in self._orchestrator.batches:
            return
        client.uncommitted += 1
        if client.uncommitted == COMMITTED_EVERY:
            client.uncommitted = 0
            self._after_commit.append((client.peer, number_frame(Kind.COMMITTED, batch.id)))
        batch = batch._replace(task=task.number)
        extras = Extras.from_bytes(batch.extras, batch.count)
        # Groups are named by their first batch, so a client's own number is free to name its single calls.
        arrived = BatchArrived(batch.id, task.number, batch.count, batch.group or client.number, extras)
        if extras.registration:
            self._offers[batch.id] = (client, batch, extras)
            self._events.append((BatchOffered(arrived, self._positions()), None))
        else:
            self._take_batch(batch, extras)
            self._events.append((arrived, None))

    def _take_batch(self, batch: Batch, extras: Extras) -> None:
        self._store.add_batch(batch, extras)
        self._payloads.add(batch)

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

    def _task_came(self, client: Client, fields: dict[str, Any]) -> None:
        import json

        try:
            task_id, options, context = fields["task_id"], fields["options"], fields["context"]
            rules = TaskOptions(**options)
            key = int(fields["key"])
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"a task was declared without {error}") from None
        number = self._store.add_task(task_id, json.dumps(options), json.dumps(context))
        task = self._tasks.setdefault(number, Task(number, task_id, context))
        client.tasks[key] = task
        self._events.append((TaskDeclared(number, rules), None))

    def _adopt(self, client: Client, fields: dict[str, Any]) -> None:
        """A client comes from a supervisor that died: what that one had committed and not finished is run here."""
        try:
            numbers = [int(number) for number in fields["clients"]]
            batches = [int(number) for number in fields["batches"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"a client came over without {error}") from None
        for number in numbers:
            self.clients.setdefault(number, client)
        unknown = [number for number in batches if not self._recover(client, number)]
        self._after_commit.append((client.peer, json_frame(Kind.REPORT, token=fields.get("token", 0), unknown=unknown)))

    def _recover(self, client: Client, number: int) -> bool:
        """Take a batch up that was committed by another supervisor; False when none was."""
        batch = self._store.batch(number)
        if batch is None:
            return False
        if self.clients.get(number >> BATCH_NUMBER_BITS) is not client:
            self._watchers.setdefault(number, set()).add(client.number)
        results, failures = self._store.outcomes_of(number)
        self._deliveries += [*results, *failures]
        succeeded, failed = [one[1:3] for one in results], [one[1:3] for one in failures]
        left = batch.count - sum(stop - first for first, stop in (*succeeded, *failed))
        if not left or number in self._orchestrator.batches:
            return True
        if not self._know_task(batch.task).rerun_on_worker_loss:
            self._keep_from_running(batch, [*succeeded, *failed])
            return True
        extras = Extras.from_bytes(batch.extras, batch.count)
        arrived = BatchArrived(number, batch.task, batch.count, batch.group or number >> BATCH_NUMBER_BITS, extras)
        self._payloads.add(batch)
        self._events.append((BatchRecovered(arrived, succeeded, failed, self._store.retries_of(number)), None))
        return True

    def _keep_from_running(self, batch: Batch, ended: list[tuple[int, int]]) -> None:
        """End calls that must not run twice: some of them may have begun."""
        start = 0
        for first, stop in [*sorted(ended), (batch.count, batch.count)]:
            if start < first:
                self._keep(self._endings.of_dead_supervisor(batch, start, first))
            start = stop

    def _know_task(self, number: int) -> TaskOptions:
        """Take in a task that a client has declared to another supervisor."""
        import json

        task_id, options, context = self._store.task(number)
        rules = TaskOptions(**json.loads(options))
        if number not in self._tasks:
            self._tasks[number] = Task(number, task_id, json.loads(context))
            self._events.append((TaskDeclared(number, rules), None))
        return rules

    def _watch(self, client: Client, batch: int) -> None:
        """Send all outcomes of a batch that another client submitted: those that are there, and those to come."""
        live = batch in self._orchestrator.batches or any(one.batch == batch for one in self._deliveries)
        if live:
            self._watchers.setdefault(batch, set()).add(client.number)
        results, failures = self._store.outcomes_of(batch)
        for one in results:
            client.peer.send(one.to_frame())
        for failure in failures:
            client.peer.send(failure.to_frame())
        client.peer.send(json_frame(Kind.REPORT, token=batch, live=live))

    def _cancel(self, fields: dict[str, Any]) -> None:
        try:
            ranges = [(int(batch), int(first), int(stop)) for batch, first, stop in fields["calls"]]
            force = bool(fields["force"])
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"a client cancelled calls without {error}") from None
        positions = self._positions()
        for calls in ranges:
            self._events.append((CallsWithdrawn(*calls, Ended.CANCELLED, force, positions), None))

    def _query(self, client: Client, fields: dict[str, Any]) -> None:
        answer: dict[str, Any]
        what = fields.get("what")
        if what == "status":
            answer = {"status": self._report.status_of(int(fields["batch"]), int(fields["index"]))}
        elif what == "counts":
            answer = self._report.counts_of(set(fields["batches"]))
        elif what == "report":
            answer = {**self._report.all(), "waits_for_disk": self.commits.why}
        elif what == "name_group":
            group = self._store.name_group(str(fields["task"]), str(fields["name"]), int(fields["group"]))
            client.named_groups.add(group)
            answer = {"group": group}
        elif what == "stop":
            answer = {}
            self._pool.persistent = False
            self.stopped = bool(fields.get("now"))
        elif what == "purge":
            if not self.drained():
                answer = {"error": "calls are still running or waiting to run"}
            elif any(one.backlog for one in self.clients.values()):
                answer = {"error": "results wait for a client that does not take them"}
            else:
                answer = self._purge()
        else:
            raise ProtocolError(f"a client asked for {what!r}")
        message = json_frame(Kind.REPORT, token=fields.get("token", 0), **answer)
        if what == "report":
            client.peer.send(message)  # It says why nothing is committed, so it does not wait for that.
        else:
            self._after_commit.append((client.peer, message))

    def _purge(self) -> dict[str, Any]:
        try:
            self._store.commit()
            self._store.purge()
        except StateBackendError as error:
            return {"error": str(error)}
        return {}

    def _client_left(self, peer: Peer, why: str) -> None:
        client: Client = peer.role
        for number in [number for number, known in self.clients.items() if known is client]:
            del self.clients[number]
        for watchers in self._watchers.values():
            watchers.discard(client.number)
        for worker in self._pool.workers.values():
            if worker.output_of == client.number:
                # Whoever reads that output waits for its end, so nobody may hold it open.
                self._direct_output(worker, client.number)

    def _client_drained(self, peer: Peer) -> None:
        client: Client = peer.role
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
                succeeded = CallsSucceeded(number, results.batch, results.first, results.stop, results.took)
                self._events.append((succeeded, results))
            elif kind == Kind.FAILURE:
                failure = Failure.from_body(body)
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
        self._events.append((WorkerLost(worker.number, position), None))

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
                self._forget_dependencies(effect.batch)
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
            case CallLater():
                self.loop.call_in(effect.seconds, lambda: self._its_time_came(effect.event))
            case CutWorker():
                worker = self._pool.workers[effect.worker]
                worker.slot.cut(effect.start, effect.stop)
                self.loop.call_in(SETTLE_S, lambda: self._cut_settled(worker, effect.serial))
            case UncutWorker():
                self._pool.workers[effect.worker].slot.uncut()
            case PauseWorker():
                worker = self._pool.workers[effect.worker]
                if effect.cut is None:
                    worker.slot.uncut()
                else:
                    worker.slot.cut(*effect.cut)
                worker.peer.send(frame(Kind.PAUSED))
            case ResumeWorker():
                worker = self._pool.workers[effect.worker]
                if effect.uncut:
                    worker.slot.uncut()
                worker.peer.send(frame(Kind.RESUMED))
            case ResumeCall():
                self._pool.workers[effect.worker].peer.send(number_frame(Kind.RESUMED, effect.position))
            case StopCall():
                self._pool.workers[effect.worker].peer.send(number_frame(Kind.CANCEL, effect.position))
            case AddWorker():
                self._pool.add(effect.concurrent)
            case RetireWorker():
                self._pool.retire(effect.worker)
            case LookAgain():
                self.loop.call_in(effect.seconds, self._looked)
            case _:
                assert_never(effect)

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
        else:
            self._store.add_failure(outcome)
            for index in range(outcome.first, outcome.stop):
                self._failures[invocation_number(outcome.batch, index)] = outcome
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
        failure = self._endings.of_ended(ended)
        if ended.again:
            self._store.add_failure(failure)
        else:
            self._keep(failure)
