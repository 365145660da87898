"""The pool: start workers through the fork server, watch them, replace those that die.

::

    supervisor ──SPAWN, socket──▶ fork server ──fork──▶ worker
        ▲  ◀──SPAWNED, EXITED────────┘                     │
        └──────────────── leases, results ─────────────────┘

A worker counts as lost when the fork server has reaped it, which also tells how it ended. A worker that closes its
connection without ending is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable

from pynenc.protocol.frames import frame
from pynenc.protocol.messages import Kind, json_frame, json_from, number_frame
from pynenc.protocol.recent import Recent
from pynenc.protocol.slots import MAX_SLOTS, POSITION, STARTED, Slot
from pynenc.supervisor.fork_server import ForkServerProcess
from pynenc.supervisor.loop import Frames, Loop, Peer
from pynenc.system.memory import ProcessMemory
from pynenc.system.stopped import is_stopped

MAX_EARLY_DEATHS = 8
"""So many workers in a row that die before any of them has run anything mean that none will."""

KEEP_LOST = MAX_SLOTS
"""All workers may be lost in one turn, and the rules are told at its end."""

RETIRE_S = 15.0
"""How long a worker may take to end that is not needed any more; longer than what it has called takes to leave."""

RETRY_SPAWN_S = 0.2


class Worker:
    """A worker process as its supervisor sees it.

    Attributes:
        tasks: The tasks it was told about, by number, each with the modules of its client then.
        common_arguments: The numbers of those it holds.
        output_of: The client whose output files it prints to.
        death: How it ended, in words; empty while it lives.
        ran_s: For how long it had run its last call when it ended.
        memory: What it takes for itself.
        peak_bytes: What it had resident at most, shared pages included; 0 while it lives.
        started: When it was started; monotonic seconds.
        was_ended: Whether the supervisor had it ended.
        hint: What its death looks like; empty when it looks like nothing.
        concurrent: Whether it is one that runs many calls at once.
        waits: How many threads of its call wait beside the main one: its own under 0, those of forked children under their clients.
    """

    def __init__(self, number: int, slot_number: int, slot: WatchedSlot, concurrent: bool) -> None:
        self.number = number
        self.concurrent = concurrent
        self.slot_number = slot_number
        self.slot = slot
        self.peer: Peer
        self.pid = 0
        self.tasks: dict[int, list[str]] = {}
        self.common_arguments = Recent()
        self.output_of = 0
        self.death = ""
        self.ran_s = 0.0
        self.memory = ProcessMemory()
        self.peak_bytes = 0
        self.started = time.monotonic()
        self.was_ended = False
        self.hint = ""
        self.waits: dict[int, int] = {}


class WatchedSlot(Slot):
    """A slot from the supervisor's side."""

    __slots__ = ()

    @property
    def position(self) -> int:
        return self.numbers[POSITION]

    def running_s(self) -> float:
        """For how long the worker has run its call."""
        return max(0.0, time.monotonic() - self.times[STARTED])


class Pool:
    """The fork server and the workers.

    Args:
        size: How many workers there are from the start.
        spares: How many more there may be.
        fork_server: The process that forks workers.
        persistent: Whether the supervisor stays when its clients have left.
        on_started: Told of each worker that can be sent leases.
        on_ended: Told of each worker that is gone, after all it had sent was handed on.
        on_hopeless: Told why when workers only die.
    """

    def __init__(
        self,
        size: int,
        spares: int,
        fork_server: ForkServerProcess,
        persistent: bool,
        on_started: Callable[[Worker], None],
        on_ended: Callable[[Worker, int], None],
        on_hopeless: Callable[[str], None],
    ) -> None:
        self.size = min(size, MAX_SLOTS)
        self.spares = min(spares, MAX_SLOTS - self.size)
        self.persistent = persistent
        self.workers: dict[int, Worker] = {}
        self.lost: dict[int, Worker] = {}
        self.loop: Loop
        self._fork_server = fork_server
        self._on_started = on_started
        self._on_ended = on_ended
        self._on_hopeless = on_hopeless
        self._last_number = 0
        self._early_deaths = 0
        self._ending = False
        self._free_slots = list(range(MAX_SLOTS))
        self._retired: dict[int, Worker] = {}
        self._server: Peer

    @property
    def fork_server_pid(self) -> int:
        """The process of the fork server."""
        return self._fork_server.pid

    def begin(self, loop: Loop) -> None:
        """Start the workers; their connections join the loop."""
        self.loop = loop
        self._join_server()
        for _ in range(self.size):
            self._spawn()

    @property
    def is_ending(self) -> bool:
        """Whether the workers are ended for no fault of their calls."""
        return self._ending

    def end_workers(self) -> None:
        """End all workers at once, and hand on what they had shipped."""
        self._ending = True
        self.loop.end(self._server, "its workers are ended")
        self._fork_server.end()
        for worker in list(self.workers.values()):
            self._worker_gone(worker, "was ended with its supervisor")

    def close(self) -> None:
        """End all workers and the fork server, and wait until they are gone."""
        self._ending = True
        for worker in self.workers.values():
            worker.peer.connection.close()
        self._fork_server.end()
        for worker in [*self.workers.values(), *self._retired.values()]:
            worker.slot.release()
        self._fork_server.close()

    def add(self, concurrent: bool) -> None:
        """Start a worker beyond those that there are from the start; one that runs many calls at once, or a spare one."""
        self._spawn(concurrent)

    def retire(self, number: int) -> None:
        """Let a worker end that holds nothing, and start none in its place."""
        worker = self.workers.pop(number)
        self._retired[number] = worker
        worker.peer.send(frame(Kind.GOODBYE))
        worker.peer.flush()
        self.loop.end(worker.peer, "it is not needed any more")
        self.loop.call_in(RETIRE_S, lambda: self._end_retired(number))

    @property
    def is_settled(self) -> bool:
        """Whether all workers have ended that are not needed any more; until then they may send what they have called."""
        return not self._retired

    def of_pid(self, pid: int) -> Worker | None:
        """The worker that is a process; None when it is none of them."""
        return next((worker for worker in self.workers.values() if worker.pid == pid), None)

    def position_of(self, number: int) -> int:
        """Which call a worker runs, by its slot; 0 when it has died in this very turn."""
        worker = self.workers.get(number)
        return worker.slot.position if worker is not None else 0

    def positions(self) -> dict[int, int]:
        """Which call each worker runs, by its slot."""
        return {number: worker.slot.position for number, worker in self.workers.items()}

    def is_stopped(self, number: int) -> bool:
        """Whether a worker's process is stopped, or has closed its connection and not been reaped yet: it begins nothing."""
        worker = self.workers.get(number)
        return worker is not None and (not worker.peer.open or is_stopped(worker.pid))

    def kill(self, number: int) -> None:
        """End a worker at once; the fork server tells when it is gone."""
        if number in self.workers:
            self.workers[number].was_ended = True
            self._server.send(number_frame(Kind.KILL, number))

    def _end_retired(self, number: int) -> None:
        if number in self._retired:  # It does not come to the end of what it does, though that is no call.
            self._server.send(number_frame(Kind.KILL, number))

    def _join_server(self) -> None:
        self._server = Peer(self.loop, self._fork_server.connection, self._server_frames, self._server_lost)
        self.loop.add(self._server)

    def _spawn(self, concurrent: bool = False) -> None:
        if self._ending:
            return
        try:
            slot_number = self._free_slots[0]
            ours, theirs = socket.socketpair()
        except (IndexError, OSError):  # No slot or descriptor is left: when a worker or a client ends, there is.
            self.loop.call_in(RETRY_SPAWN_S, lambda: self._spawn(concurrent))
            return
        del self._free_slots[0]
        self._last_number += 1
        worker = Worker(self._last_number, slot_number, WatchedSlot(self._fork_server.memory, slot_number), concurrent)
        worker.slot.clear()
        self.workers[worker.number] = worker
        worker.peer = Peer(self.loop, ours, _ignore, self._connection_ended)
        worker.peer.role = worker
        self.loop.add(worker.peer)
        request = json_frame(Kind.SPAWN, worker=worker.number, slot=slot_number, concurrent=concurrent)
        # The fork server always reads, and requests are few and short: this never waits.
        with contextlib.suppress(OSError):  # It has just died: that is read soon, and begins all workers anew.
            socket.send_fds(self._fork_server.connection, [request], [theirs.fileno()])
        theirs.close()
        self._on_started(worker)

    def _server_frames(self, peer: Peer, frames: Frames) -> None:
        for kind, body in frames:
            fields = json_from(body)
            number = fields["worker"]
            worker = self.workers.get(number)
            if worker is None:
                if kind == Kind.EXITED and (retired := self._retired.pop(number, None)) is not None:
                    self._free_slot(retired)
                continue
            if kind == Kind.SPAWNED:
                worker.pid = fields["pid"]
            elif kind == Kind.EXITED:
                worker.peak_bytes = fields["peak"]
                self._count_death([worker])
                self._worker_gone(worker, _death(fields["status"]))

    def _connection_ended(self, peer: Peer, why: str) -> None:
        worker: Worker = peer.role
        if worker.number in self.workers:
            # It is dead or will never ship again; the fork server tells when it is gone.
            self._server.send(number_frame(Kind.KILL, worker.number))

    def _count_death(self, dead: list[Worker]) -> None:
        """They died of one cause. Where any worker that lived until now has run something, others will, too."""
        hopeful = any(worker.slot.position for worker in [*dead, *self.workers.values()])
        self._early_deaths = 0 if hopeful else self._early_deaths + 1

    def _worker_gone(self, worker: Worker, death: str) -> None:
        if worker.peer.open:
            self.loop.receive(worker.peer)  # What it shipped last.
        position = worker.slot.position
        worker.death = death
        worker.ran_s = worker.slot.running_s()
        del self.workers[worker.number]
        self.loop.end(worker.peer, death)
        self._free_slot(worker)
        self.lost[worker.number] = worker
        if len(self.lost) > KEEP_LOST and not self._ending:
            del self.lost[next(iter(self.lost))]
        self._on_ended(worker, position)
        if self._ending:
            return
        if self._early_deaths >= MAX_EARLY_DEATHS:
            self._on_hopeless(
                f"{self._early_deaths} workers in a row died before they ran anything; the last one {death}"
            )
        elif not worker.concurrent:  # Of those there are as many as are asked for.
            self._spawn()

    def _free_slot(self, worker: Worker) -> None:
        worker.slot.release()
        self._free_slots.append(worker.slot_number)

    def _server_lost(self, peer: Peer, why: str) -> None:
        """The fork server was killed, and its workers die with it: begin anew."""
        if self._ending:
            return
        lost = list(self.workers.values())
        self._count_death(lost)
        for retired in self._retired.values():
            self._free_slot(retired)
        self._retired.clear()
        self._fork_server.start_again()
        self._join_server()
        for worker in lost:
            self._worker_gone(worker, "died with the fork server, which was killed,")


def _death(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"was killed by {name}"
    return f"exited with code {os.waitstatus_to_exitcode(status)}"


def _ignore(peer: Peer, frames: Frames) -> None:
    """What a worker sends before anybody listens; nothing, since it is leased nothing."""
