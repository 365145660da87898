"""The connections of clients: they join, what they send goes to whoever sees to it, they leave. Runs in the supervisor."""

from __future__ import annotations

import json

from pynenc.exceptions import ProtocolError
from pynenc.protocol.fields import Fields
from pynenc.protocol.messages import (
    MAX_BATCH,
    MAX_BATCH_CALLS,
    MAX_INVOCATION,
    Batch,
    Kind,
    batch_number,
    bytes_from,
    json_frame,
    number_frame,
    number_from,
    numbers_from,
)
from pynenc.state_backend.store import Store
from pynenc.supervisor.batches import Batches
from pynenc.supervisor.blobs import Blobs
from pynenc.supervisor.client import Client
from pynenc.supervisor.committing import Committing
from pynenc.supervisor.declarations import Declaration, declaration_from
from pynenc.supervisor.delivery import Delivery
from pynenc.supervisor.events import CallsWithdrawn, Ended, TaskDeclared, ThreadsWait
from pynenc.supervisor.inbox import Inbox
from pynenc.supervisor.loop import Frames, Loop, Peer, close_all
from pynenc.supervisor.orders import Orders
from pynenc.supervisor.pool import Pool
from pynenc.supervisor.questions import Questions
from pynenc.supervisor.stopping import Stopping
from pynenc.supervisor.taking_up import TakingUp
from pynenc.supervisor.task import Task


class Clients:
    """Listens to clients.

    Args:
        loop: Ends their connections.
        store: Numbers them, and keeps what they declare.
        pool: Knows what workers run while calls are cancelled.
        blobs: Counts who holds which.
        tasks: By their numbers.
        orders: Has workers let go of their output.
        commits: Knows why nothing is committed.
        stopping: Is told of those that are lost.
        taking_up: Has them go on with what was left.
        batches: Takes their batches.
        questions: Answers them.
        delivery: Knows who is connected.
        inbox: Takes events.
    """

    def __init__(
        self,
        loop: Loop,
        store: Store,
        pool: Pool,
        blobs: Blobs,
        tasks: dict[int, Task],
        orders: Orders,
        commits: Committing,
        stopping: Stopping,
        taking_up: TakingUp,
        batches: Batches,
        questions: Questions,
        delivery: Delivery,
        inbox: Inbox,
    ) -> None:
        self._loop = loop
        self._store = store
        self._pool = pool
        self._blobs = blobs
        self._tasks = tasks
        self._orders = orders
        self._commits = commits
        self._stopping = stopping
        self._taking_up = taking_up
        self._batches = batches
        self._questions = questions
        self._delivery = delivery
        self._inbox = inbox

    def joined(self, peer: Peer, pid: int, is_worker: bool, asks_only: bool = False) -> int:
        """Give a client its number and begin to listen to it."""
        number = self._store.add_client(pid)  # Who asked for it commits that, with `Delivery.after_commit`.
        client = Client(number, peer, pid, is_worker, asks_only)
        self._delivery.clients[number] = client
        peer.role = client
        peer.on_frames = self.frames_came
        peer.on_end = self._left
        peer.on_drained = self._delivery.caught_up
        if is_worker and self._pool.of_pid(pid) is not None:
            close_all(peer.descriptors)  # They are another client's, which nobody may hold open when that has left.
        if self._commits.why and not is_worker:
            text = f"nothing is committed just now, so this waits: {self._commits.why}"
            peer.send(json_frame(Kind.NOTICE, text=text))
        return number

    def frames_came(self, peer: Peer, frames: Frames) -> None:
        """Take in what a client has sent."""
        client: Client = peer.role
        for kind, body in frames:
            if kind == Kind.BATCH:
                self._batches.came(client, Batch.from_body(body))
            elif kind == Kind.TASK:
                self._task_came(client, declaration_from(body))
            elif kind == Kind.SYNC:
                self._delivery.answer(client, number_frame(Kind.SYNCED, number_from(body)))
            elif kind == Kind.WATCH:
                self._delivery.watch(client, batch_number(number_from(body)))
            elif kind == Kind.QUERY:
                self._questions.ask(client, Fields.of("a question", body))
            elif kind == Kind.CANCEL:
                self._cancel(Fields.of("a cancellation", body))
            elif kind == Kind.COMMON:
                token, payload = bytes_from(body)
                number = self._store.add_common_arguments(payload)
                self._delivery.answer(client, json_frame(Kind.REPORT, token=token, number=number))
            elif kind == Kind.HOLD:
                self._blobs.client_holds(client.number, body)
            elif kind == Kind.RELEASE:
                self._blobs.client_releases(client.number, body)
            elif kind == Kind.DROP:
                self._blobs.results_dropped(numbers_from(body, MAX_INVOCATION))
            elif kind == Kind.ADOPT:
                self._taking_up.adopt(client, Fields.of("a client that comes over", body))
            elif kind == Kind.WAITS:
                self._child_waits(client, Fields.of("a child that waits", body))
            elif kind == Kind.GOODBYE:
                client.has_left = True
                self._loop.end(peer, "it said goodbye")
                return
            else:
                raise ProtocolError(f"a client sent a frame of kind {kind}")

    def _task_came(self, client: Client, declared: Declaration) -> None:
        task_id, context = declared.task_id, declared.context
        number = self._store.add_task(task_id, json.dumps(declared.options), json.dumps(context))
        task = self._tasks.setdefault(number, Task(number, task_id, context))
        if declared.modules != task.modules:
            task.modules = declared.modules  # Workers are told of it before they get more of its calls.
        client.tasks[declared.key] = task
        self._inbox.add(TaskDeclared(number, declared.rules))

    def _cancel(self, fields: Fields) -> None:
        force, positions = fields.flag("force"), self._pool.positions()
        for calls in fields.ranges("calls", MAX_BATCH, MAX_BATCH_CALLS):
            self._inbox.add(CallsWithdrawn(*calls, Ended.CANCELLED, force, positions))

    def _child_waits(self, client: Client, fields: Fields) -> None:
        """So many threads of a process that a worker's call has forked wait for calls, as if they were threads of the call."""
        self._waits_no_more(client)
        worker, count = fields.integer("worker"), fields.integer("count")
        if count:
            client.waits_beside = worker
            self._count_waits(client, worker, count)

    def _waits_no_more(self, client: Client) -> None:
        if client.waits_beside is not None:
            self._count_waits(client, client.waits_beside, 0)
            client.waits_beside = None

    def _count_waits(self, client: Client, number: int, count: int) -> None:
        worker = self._pool.workers.get(number)
        if worker is not None:
            worker.waits.pop(client.number, None)
            if count:
                worker.waits[client.number] = count
            self._inbox.add(ThreadsWait(number, sum(worker.waits.values())))

    def _left(self, peer: Peer, why: str) -> None:
        client: Client = peer.role
        if not (client.has_left or client.is_worker):
            self._stopping.lost(client, self._loop)
        self._waits_no_more(client)
        self._delivery.forget(client)
        self._taking_up.forget(client)
        self._blobs.client_left(client.numbers)
        self._orders.client_left(client.number)
