"""What a worker that lives is told, by its slot or over its connection: its calls, where its output goes, what to do with calls.

Runs in the supervisor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, assert_never

from pynenc.protocol.frames import frame
from pynenc.protocol.messages import BATCH_NUMBER_BITS, Kind, Lease, bytes_frame, json_frame, number_frame
from pynenc.state_backend.store import Store
from pynenc.supervisor.client import Client
from pynenc.supervisor.events import (
    CutWorker,
    LeaseCalls,
    PauseWorker,
    ResumeCall,
    ResumeWorker,
    RetireWorker,
    StopCall,
    UncutWorker,
)
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.payloads import Payloads
from pynenc.supervisor.pool import Pool, Worker
from pynenc.supervisor.task import Task

Order: TypeAlias = CutWorker | UncutWorker | PauseWorker | ResumeWorker | ResumeCall | StopCall


class Orders:
    """Tells workers.

    Args:
        store: Has common arguments.
        orchestrator: Knows the batches.
        payloads: Holds their arguments.
        pool: The workers.
        tasks: By their numbers.
        clients: By their numbers; workers print where these do.
    """

    def __init__(
        self,
        store: Store,
        orchestrator: Orchestrator,
        payloads: Payloads,
        pool: Pool,
        tasks: Mapping[int, Task],
        clients: Mapping[int, Client],
    ) -> None:
        self._store = store
        self._orchestrator = orchestrator
        self._payloads = payloads
        self._pool = pool
        self._tasks = tasks
        self._clients = clients

    def lease(self, lease: LeaseCalls) -> None:
        """Give a worker calls, and before them what it needs to know of them and has not been told."""
        worker = self._pool.workers[lease.worker]
        self._direct_output(worker, lease.batch >> BATCH_NUMBER_BITS)
        task = self._tasks[lease.task]
        if worker.tasks.get(lease.task) is not task.modules:
            worker.tasks[lease.task] = task.modules
            told = {"number": task.number, "task_id": task.task_id, "context": task.context, "modules": task.modules}
            worker.peer.send(json_frame(Kind.TASK, **told))
        extras = self._orchestrator.batches[lease.batch].extras
        common = extras.common
        if common and worker.common_arguments.add(common):
            worker.peer.send(bytes_frame(Kind.COMMON, common, self._store.common_arguments(common)))
        packing, payload = self._payloads.slice(lease.batch, lease.first, lease.stop)
        head = (lease.position, lease.batch, lease.task, lease.first, lease.stop, lease.attempt, common)
        message = Lease(*head, packing, payload, extras.lineage, extras.directory)
        worker.peer.send(message.to_frame())

    def give(self, number: int, order: Order | RetireWorker) -> None:
        """Tell a worker what to do with calls that it has, or that it is not needed any more."""
        worker = self._pool.workers.get(number)
        if worker is None:
            return  # It has died in this very turn; the rules are told next.
        if isinstance(order, RetireWorker):
            self._pool.retire(number)
        else:
            _tell(worker, order)

    def client_left(self, number: int) -> None:
        """Have no worker print to a client any more: whoever reads that output waits for its end, so nobody may hold it open."""
        for worker in self._pool.workers.values():
            if worker.output_of == number:
                self._direct_output(worker, number)

    def _direct_output(self, worker: Worker, client_number: int) -> None:
        """Have what the worker prints from here on appear where the client's own output does."""
        client = self._clients.get(client_number)
        if client is not None and client.is_worker and (parent := self._pool.of_pid(client.pid)) is not None:
            client_number = parent.output_of  # Calls that calls make print where these do.
            client = self._clients.get(client_number)
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


def _tell(worker: Worker, order: Order) -> None:
    match order:
        case CutWorker():
            worker.slot.cut(order.start, order.stop)
        case UncutWorker():
            worker.slot.uncut()
        case PauseWorker():
            if order.cut is None:
                worker.slot.uncut()
            else:
                worker.slot.cut(*order.cut)
            worker.peer.send(frame(Kind.PAUSED))
        case ResumeWorker():
            if order.uncut:
                worker.slot.uncut()
            worker.peer.send(frame(Kind.RESUMED))
        case ResumeCall():
            worker.peer.send(number_frame(Kind.RESUMED, order.position))
        case StopCall():
            worker.peer.send(number_frame(Kind.CANCEL, order.position))
        case _:
            assert_never(order)
