"""What one single call costs in each process, without the kernel: `python -m benchmarks.parts`.

The real code of client, supervisor and worker, with sockets and the database taken away.
"""

from __future__ import annotations

import mmap
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from benchmarks.tasks import app, noop_task
from pynenc.blobs.directory import BlobDirectory
from pynenc.protocol.frames import HEADER_BYTES, FrameReader
from pynenc.protocol.messages import Batch, Kind, Lease, Packing, Results, first_batch_of, json_frame
from pynenc.protocol.slots import Slot
from pynenc.supervisor.blobs import Blobs
from pynenc.supervisor.measuring import Measuring
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.payloads import Payloads
from pynenc.supervisor.turn import Turn
from pynenc.worker import lease
from pynenc.worker.base import DeclaredTask

COUNT = 3_000
ARGUMENTS = pickle.dumps([(5,)], 5)
RESULT = pickle.dumps([5], 5)


def best_us(action: Callable[[int], object]) -> float:
    """Microseconds per action, the best of five rounds."""
    rounds = []
    for turn in range(5):
        began = time.perf_counter()
        for number in range(turn * COUNT, (turn + 1) * COUNT):
            action(number)
        rounds.append((time.perf_counter() - began) / COUNT * 1e6)
    return min(rounds)


class AnsweringConnection:
    """Answers a batch as soon as somebody waits."""

    lost = None

    def __init__(self, take_in: Callable[[int, bytes], None]) -> None:
        self._take_in = take_in
        self._sent = b""
        self._reader = FrameReader()

    def send(self, message: bytes) -> None:
        self._sent = message

    def read_nowait(self) -> None:
        """Nothing comes by itself."""

    def wait_until(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        batch = Batch.from_body(self._sent[HEADER_BYTES:])
        results = Results(batch.id, 0, 1, 1, Packing.COLUMN, 1.0, 1e-6, b"", RESULT)
        for kind, body in self._reader.feed(results.to_frame()):
            self._take_in(kind, body)
        return done()


def client() -> float:
    """A call and its result, in the client."""
    runner: Any = app._cluster
    runner._connection = AnsweringConnection(runner._take_in)
    runner._number_batches(1)
    runner._declarations.sent(noop_task, runner._declarations.key_of(noop_task)[0])
    try:
        return best_us(lambda number: noop_task(number).result)
    finally:
        runner._connection = None


def worker() -> float:
    """A lease of one call, from its frame to the frame of its result."""
    slot = Slot(mmap.mmap(-1, 4096), 0)
    slot.clear()
    shipper = lease.Shipper(lambda message: None, 1)
    message = Lease(1, first_batch_of(1), 1, 0, 1, 0, 0, Packing.COLUMN, ARGUMENTS).to_frame()
    reader = FrameReader()
    declared = DeclaredTask(noop_task.task_id, {"sys_path": sys.path, "cwd": os.getcwd()})
    declared.load()

    def run(_: int) -> None:
        for _, body in reader.feed(message):
            lease.run(Lease.from_body(body), declared, declared.func, slot, shipper)
            shipper.ship()

    return best_us(run)


def supervisor() -> float:
    """Two turns: a batch comes and is leased, its result comes and is delivered."""
    peer = SimpleNamespace(
        send=lambda frame: None, send_descriptors=lambda *_: None, open=True, buffered=0, descriptors=[], role=None
    )
    store = SimpleNamespace(
        add_client=lambda pid: 1,
        add_task=lambda *_: 1,
        add_batch=lambda batch, extras: None,
        add_results=lambda results: None,
        commit=lambda: None,
        shelf=SimpleNamespace(has_taken=False),
        see_that_it_is_there=lambda: None,
        blobs=list,
    )
    blobs = Blobs(BlobDirectory(os.path.join(tempfile.gettempdir(), "parts.db")), store, 0)  # type: ignore[arg-type]
    held = SimpleNamespace(number=1, peer=peer, tasks={}, output_of=0, concurrent=False)
    pool = SimpleNamespace(workers={1: held}, persistent=False)
    measuring = Measuring(pool, app.supervisor_settings())  # type: ignore[arg-type]
    payloads = Payloads(store, 1 << 26)  # type: ignore[arg-type]
    loop = SimpleNamespace(flush=lambda: None, call_in=lambda *_: None)
    turn = Turn(loop, store, Orchestrator(0.02), payloads, pool, measuring, blobs, 1 << 24, 60.0)  # type: ignore[arg-type]
    turn.clients.joined(peer, 1, False)  # type: ignore[arg-type]
    turn.workers.started(held)  # type: ignore[arg-type]
    client_role, worker_role = peer.role, held
    options = noop_task.conf.rules()
    surroundings = {"sys_path": [], "cwd": "/"}
    declared = json_frame(Kind.TASK, key=1, task_id="m.f", options=options, context=surroundings)
    turn.clients.frames_came(peer, [(Kind.TASK, declared[HEADER_BYTES:])])  # type: ignore[arg-type]

    def two_turns(number: int) -> None:
        batch = first_batch_of(1) + number
        peer.role = client_role
        body = Batch(batch, 1, 1, 0, 0, 1.0, Packing.COLUMN, ARGUMENTS).to_frame()[HEADER_BYTES:]
        turn.clients.frames_came(peer, [(Kind.BATCH, body)])  # type: ignore[arg-type]
        turn.run()
        peer.role = worker_role
        body = Results(batch, 0, 1, 1, Packing.COLUMN, 1.0, 1e-6, b"12345678", RESULT).to_frame()[HEADER_BYTES:]
        turn.workers.frames_came(peer, [(Kind.RESULTS, body)])  # type: ignore[arg-type]
        turn.run()

    return best_us(two_turns)


def main() -> None:
    """Measure and print."""
    print("| part of a single call | µs |\n| --- | --- |")
    print(f"| client: check, freeze, batch, frame; read the result | {client():.1f} |")
    print(f"| supervisor: two turns without commits | {supervisor():.1f} |")
    print(f"| worker: read the lease, run, pack the result | {worker():.1f} |")


if __name__ == "__main__":
    main()
