"""The supervisor without its processes: its real turn, rules and database; clients and workers are whatever a seed says."""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable
from typing import Any

from pynenc.blobs.directory import BlobDirectory
from pynenc.exceptions import ProtocolError
from pynenc.protocol.frames import HEADER_BYTES, FrameReader
from pynenc.protocol.messages import Kind, Lease, Packing, Results, json_frame, number_frame, rows_payload
from pynenc.protocol.slots import CUT_FROM, CUT_TO, POSITION, SLOT_BYTES
from pynenc.state_backend.store import Store
from pynenc.supervisor.blobs import Blobs
from pynenc.supervisor.measuring import Measuring
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.payloads import Payloads
from pynenc.supervisor.pool import WatchedSlot, Worker
from pynenc.supervisor.refusals import Refusals
from pynenc.supervisor.turn import Turn
from tests.fuzz.frames import Frames

TURN_EVERY = 24
"""So many frames come in a turn, on average."""

LIMITS: dict[str, Any] = dict.fromkeys(["worker_memory_limit", "max_calls_per_worker", "max_worker_age"])
LIMITS["memory_check_s"] = 0.1


class FakePeer:
    """A connection of which both ends are here: keeps what was sent."""

    def __init__(self) -> None:
        self.role: Any = None
        self.on_frames: Any = None
        self.on_end: Any = None
        self.on_drained: Any = None
        self.descriptors: list[int] = []
        self.buffered = 0
        self.open = True
        self.sent: list[bytes] = []
        self.reader = FrameReader()
        self.batches: list[int] = []

    def send(self, message: bytes) -> None:
        self.sent.append(message)

    def send_descriptors(self, message: bytes, descriptors: list[int]) -> None:
        self.sent.append(message)

    def flush(self) -> None:
        """Nothing is kept back."""


class FakeLoop:
    """Timers go off when the seed says so."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []

    def flush(self) -> None:
        """What was sent is there already."""

    def call_in(self, seconds: float, callback: Callable[[], None]) -> None:
        assert seconds >= 0
        self.timers.append(callback)

    def end(self, peer: FakePeer, why: str) -> None:
        if peer.open:
            peer.open = False
            peer.on_end(peer, why)


class FakePool:
    """Workers that are nothing but a peer and a slot."""

    size = 2
    persistent = False
    fork_server_pid = 1
    is_ending = False

    def __init__(self) -> None:
        self.workers: dict[int, Worker] = {}
        self.lost: dict[int, Worker] = {}
        self.killed: set[int] = set()
        self.turn: Turn
        self._last = 0

    def add(self, concurrent: bool) -> None:
        self._last += 1
        worker = Worker(self._last, 0, WatchedSlot(mmap.mmap(-1, SLOT_BYTES), 0), concurrent)
        worker.slot.clear()
        worker.peer = FakePeer()  # type: ignore[assignment]
        worker.peer.role = worker
        worker.peer.on_end = lambda peer, why: self.killed.add(worker.number)
        self.workers[worker.number] = worker
        self.turn.workers.started(worker)

    def retire(self, number: int) -> None:
        del self.workers[number]

    def kill(self, number: int) -> None:
        self.killed.add(number)

    def of_pid(self, pid: int) -> Worker | None:
        return next((worker for worker in self.workers.values() if worker.pid == pid), None)

    def position_of(self, number: int) -> int:
        worker = self.workers.get(number)
        return worker.slot.position if worker is not None else 0

    def positions(self) -> dict[int, int]:
        return {number: worker.slot.position for number, worker in self.workers.items()}

    def is_stopped(self, number: int) -> bool:
        return number % 2 == 0

    def die(self, number: int) -> None:
        """One of them is gone, and another one takes its place, unless it runs many calls at once."""
        worker = self.workers.pop(number)
        worker.death, worker.ran_s = "was killed", 0.1
        position = worker.slot.position
        self.killed.discard(number)
        self.lost[number] = worker
        self.turn.workers.ended(worker, position)
        if not worker.concurrent and sum(not one.concurrent for one in self.workers.values()) < self.size:
            self.add(False)


class World:
    """A supervisor among madmen.

    Args:
        database: Its file.
        seed: What happens.
    """

    def __init__(self, database: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.frames = Frames(self.chance)
        self.sent = self.refused = 0
        self.refusals = Refusals()
        self.store = Store(database)
        self._begin()

    def _begin(self) -> None:
        """Be a supervisor that has just started."""
        self.pool, self.loop = FakePool(), FakeLoop()
        self.clients: list[FakePeer] = []
        self.orchestrator = Orchestrator(0.02, self.pool.size, 2)
        payloads = Payloads(self.store, 1 << 16)
        measuring = Measuring(self.pool, LIMITS)  # type: ignore[arg-type]
        self.blobs = Blobs(BlobDirectory(self.store.path), self.store, 1 << 20)
        self.blobs.loop = self.loop  # type: ignore[assignment]
        parts = (self.loop, self.store, self.orchestrator, payloads, self.pool, measuring, self.blobs)
        self.turn = Turn(*parts, 1 << 16, 60.0)  # type: ignore[arg-type]
        self.turn.refusals = self.refusals  # One log for all supervisors, to see that it is bounded.
        self.pool.turn = self.turn
        for _ in range(self.pool.size):
            self.pool.add(False)

    def _begin_again(self) -> None:
        """The supervisor was killed; clients bring their batches to another one."""
        known = [batch for client in self.clients for batch in client.batches]
        self._release()
        self._begin()
        peer = self._join()
        peer.batches = known[-40:]

    def close(self) -> None:
        """Let go of everything."""
        self._release()
        self.store.close()
        self.blobs.close()

    def _release(self) -> None:
        for worker in [*self.pool.workers.values(), *self.pool.lost.values()]:
            worker.slot.release()

    def step(self) -> None:
        """Let something happen."""
        chance = self.chance
        what = chance.random()
        if len(self.clients) < 3 or what < 0.002:
            self._join()
        elif what < 0.70:
            self._client_sends(chance.choice(self.clients))
        elif what < 0.97:
            self._worker_sends(chance.choice(list(self.pool.workers.values())))
        elif what < 0.98:
            self._something_ends()
        elif what < 0.981:
            self._begin_again()
        if self.sent % TURN_EVERY == 0:
            self.settle()

    def settle(self) -> None:
        """Turn, with the timers that are due."""
        timers, self.loop.timers = self.loop.timers, []
        for timer in timers:
            if self.chance.random() < 0.7:
                timer()
            else:
                self.loop.timers.append(timer)
        self.turn.run()
        for number in list(self.pool.killed & self.pool.workers.keys()):
            self.pool.die(number)
        del self.loop.timers[:-200]  # Time limits and expiries of years are not waited for.

    def serve_honest_client(self) -> None:
        """Somebody who makes no mistakes gets his results, whatever went on before."""
        for client in list(self.clients):
            self._end_client(client)
        for number in list(self.pool.workers):
            self.pool.die(number)
        self.settle()
        peer = self._join()
        options = {"priority": 1 << 62}  # Before all that others left behind.
        declared = json_frame(Kind.TASK, key=1, task_id="m.f", options=options, context={"sys_path": [], "cwd": "/"})
        self.turn.clients.frames_came(peer, [(Kind.TASK, declared[HEADER_BYTES:])])  # type: ignore[arg-type]
        number = (peer.role.number << 29) + (1 << 28)
        body = b"".join(
            (number.to_bytes(8, "little"), b"\x01\0\0\0\x02\0\0\0", bytes(24), bytes([Packing.COLUMN]), bytes(4), b"x")
        )
        self.turn.clients.frames_came(peer, [(Kind.BATCH, body)])  # type: ignore[arg-type]
        for _ in range(20_000):
            self.settle()
            for worker in list(self.pool.workers.values()):
                self._work_honestly(worker)
            done = {
                Results.from_body(one[HEADER_BYTES:]).batch
                for one in peer.sent
                if one[HEADER_BYTES - 1] == Kind.RESULTS
            }
            if number in done:
                return
        raise AssertionError("an honest client got no result")

    def _join(self) -> FakePeer:
        peer = FakePeer()
        self.turn.clients.joined(peer, 1, self.chance.random() < 0.2)  # type: ignore[arg-type]
        self.clients.append(peer)
        for key in (1, 2, 3):
            peer.on_frames(peer, peer.reader.feed(self.frames.task(key)))
        return peer

    def _end_client(self, peer: FakePeer) -> None:
        self.loop.end(peer, "it left")
        self.clients.remove(peer)

    def _something_ends(self) -> None:
        if self.chance.random() < 0.5:
            self._end_client(self.chance.choice(self.clients))
            return
        number = self.chance.choice(list(self.pool.workers))
        worker = self.pool.workers[number]
        worker.slot.numbers[POSITION] = self.frames._edge()
        self.pool.die(number)

    def _client_sends(self, peer: FakePeer) -> None:
        sent = self.frames.of_client(peer.role.number, peer.batches)
        del peer.batches[:-40]
        if self.chance.random() < 0.3:
            sent = self.frames.mutated(sent)
        self._receive(peer, sent)
        if not peer.open and peer in self.clients:
            self.clients.remove(peer)
        elif peer.sent and self.chance.random() < 0.3:
            peer.sent.clear()
            peer.on_drained(peer)

    def _worker_sends(self, worker: Worker) -> None:
        if self.chance.random() < 0.7:
            self._work_honestly(worker)
            return
        known = list(self.orchestrator.batches)[-40:]
        sent = self.frames.of_worker(worker.number, known, worker.slot.position)
        if self.chance.random() < 0.3:
            sent = self.frames.mutated(sent)
        self._receive(worker.peer, sent)  # type: ignore[arg-type]

    def _work_honestly(self, worker: Worker) -> None:
        """Run what was leased, up to a cut; now and then it begins with something and does not come to its end yet."""
        peer: Any = worker.peer
        numbers = worker.slot.numbers
        while peer.sent:
            message = peer.sent.pop(0)
            if message[HEADER_BYTES - 1] != Kind.LEASE:
                continue
            lease = Lease.from_body(message[HEADER_BYTES:])
            cut, dropped_to = numbers[CUT_FROM], numbers[CUT_TO]
            end = lease.position + lease.stop - lease.first
            if cut and max(cut, lease.position) < min(dropped_to, end):
                end = max(cut, lease.position)
                peer.sent[:] = [one for one in peer.sent if not _is_lease_before(one, dropped_to)]
            elif self.chance.random() < 0.3:
                numbers[POSITION] = lease.position
                peer.sent.insert(0, message)
                break
            count = end - lease.position
            if count:
                numbers[POSITION] = end - 1
                packing, payload = (Packing.ROWS, rows_payload([b"x"] * count)) if count < 5 else (Packing.COLUMN, b"x")
                calls = (lease.batch, lease.first, lease.first + count)
                results = Results(*calls, worker.number, packing, 1.0, 0.001, b"\0" * 8 * count, payload)
                self._receive(peer, results.to_frame())
            if count < lease.stop - lease.first:
                numbers[POSITION] = end
                self._receive(peer, number_frame(Kind.CUT, end))

    def _receive(self, peer: FakePeer, sent: bytes) -> None:
        """What the loop does with bytes that come."""
        self.sent += 1
        try:
            peer.on_frames(peer, peer.reader.feed(sent))
        except ProtocolError as error:
            self.refused += 1
            self.turn.refused(peer, str(error))  # type: ignore[arg-type]
            self.loop.end(peer, str(error))


def _is_lease_before(message: bytes, position: int) -> bool:
    return message[HEADER_BYTES - 1] == Kind.LEASE and Lease.from_body(message[HEADER_BYTES:]).position < position
