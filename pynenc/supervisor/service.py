"""The supervisor's service: begin, serve, end.

Started by a client (`client/launch.py`) with its settings as JSON. It tells that it serves, or why it cannot, on
the pipe that the client reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from typing import Any

from pynenc.blobs.directory import BlobDirectory
from pynenc.exceptions import ProtocolError, PynencError, RunnerError, StateBackendError
from pynenc.protocol import run_file
from pynenc.protocol.authentication import is_proof, prove
from pynenc.protocol.fields import Fields
from pynenc.protocol.frames import MAX_BODY_BYTES, MAX_UNPROVEN_BODY_BYTES, frame
from pynenc.protocol.messages import VERSION, Kind, json_frame
from pynenc.state_backend.faults import Fault
from pynenc.state_backend.store import Store
from pynenc.supervisor.blobs import Blobs
from pynenc.supervisor.committing import log
from pynenc.supervisor.fork_server import ForkServerProcess
from pynenc.supervisor.loop import Frames, Loop, Peer
from pynenc.supervisor.measuring import Measuring
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.payloads import Payloads
from pynenc.supervisor.pool import Pool
from pynenc.supervisor.turn import Turn
from pynenc.supervisor.upkeep import Upkeep
from pynenc.system.descriptors import raise_limit
from pynenc.system.lock import FileLock

FIRST_CLIENT_S = 30.0
"""A supervisor that no client has come to after this time ends."""

GREETING_S = 10.0
"""How long a connection may take to prove that it knows the key."""

MAX_STRANGERS = 256
"""How many connections at once may be about to prove it."""

RETRY_END_S = 0.05

SEEN_EVERY_S = 2.0
"""How often a supervisor looks whether it can still be found: those who tidy up temporary directories know nothing of it."""

OWN_DESCRIPTORS = 32
"""Open files of a supervisor beside those for its workers, when it has a few clients."""

NO_DESCRIPTORS = (
    "the supervisor has no open files left for another client, which takes three: raise the limit (ulimit -n), or let fewer "
    "scripts share it"
)


class Supervisor:
    """All parts put together.

    Args:
        settings: What the launching client decided; see `client/launch.py`.
        fork_server: The process that forks workers; it is starting.
    """

    def __init__(self, settings: dict[str, Any], fork_server: ForkServerProcess) -> None:
        self._settings = settings
        self._key = bytes.fromhex(settings["key"])
        self._had_client = False
        self._lock: FileLock | None = None
        self._is_terminated = False
        self._why_hopeless = ""
        self._over: StateBackendError | None = None
        self._greeting: set[Peer] = set()
        _see_that_descriptors_suffice(settings["num_workers"])
        self._listener = _listen(settings["address"])
        self.pool = Pool(
            settings["num_workers"],
            settings["spare_workers"],
            fork_server,
            settings["persistent"],
            on_started=lambda worker: self.turn.workers.started(worker),
            on_ended=lambda worker, position: self.turn.workers.ended(worker, position),
            on_hopeless=self._is_hopeless,
        )
        self.store = Store(settings["database"], settings["durability"])
        payloads = Payloads(self.store, settings["queued_bytes"])
        self.blobs = Blobs(BlobDirectory(settings["database"]), self.store, settings["blob_memory_bytes"])
        measuring = Measuring(self.pool, settings)
        orchestrator = Orchestrator(settings["lease_s"], self.pool.size, self.pool.spares, measuring.limits)
        refusal = json_frame(Kind.REFUSED, error=NO_DESCRIPTORS)
        self.loop = Loop(
            self._on_turn,
            on_idle=lambda: self.turn.settle(),
            on_refused=lambda peer, why: self.turn.refused(peer, why),
            refusal=refusal,
        )
        self.blobs.loop = self.loop
        self.turn = Turn(
            self.loop,
            self.store,
            orchestrator,
            payloads,
            self.pool,
            measuring,
            self.blobs,
            settings["client_buffer_bytes"],
            settings["disk_timeout_s"],
            settings["on_client_loss"],
        )
        limits = (settings["retention"], settings["max_state_bytes"])
        self.upkeep = Upkeep(self.loop, self.store, self.turn, self.blobs, *limits)

    def serve(self) -> None:
        """Start the workers and turn until there is nothing left to do."""
        self.loop.listen(self._listener, self._accept)
        self.pool.begin(self.loop)
        self.loop.call_in(FIRST_CLIENT_S, self._nobody_came)
        self.loop.call_in(SEEN_EVERY_S, self._see_that_it_is_found)
        self.upkeep.begin()
        try:
            if self._settings["takes_up"]:
                self.turn.begin()
            self.loop.run()
        except StateBackendError as error:
            self._give_up(error)

    def withdraw(self) -> None:
        """Whoever started this was killed meanwhile: be found by nobody, for others may start another one."""
        self._remove_address()

    def close(self) -> None:
        """End the workers, close the database, take the address away."""
        self._listener.close()
        self.pool.close()
        if self._over is not None:
            self._hand_over(self._over)
        else:
            self.upkeep.finish()
        self.loop.close()
        try:
            self.store.close()
        except StateBackendError as error:
            log(f"the supervisor ends: {error}")
        self.blobs.close()

    def _on_turn(self) -> None:
        self.turn.run()
        if self.store.set_aside and self.turn.delivery.has_clients():
            self._tell_of_new_database()
        why = self._why_stopped()
        if why:
            self._stop(why)
        elif (
            not self._greeting and not self.turn.delivery.has_clients() and self.turn.drained() and self.pool.is_settled
        ):
            self.turn.raise_mark()
            if self._had_client and not self.pool.persistent:
                self._end()

    def _why_stopped(self) -> str:
        if self._why_hopeless:
            return self._why_hopeless
        if self._is_terminated:
            return "it was ended by SIGTERM"
        if self.turn.stopping.all_interrupted:
            return "the script was interrupted"
        if self.turn.stopping.all_stopped:
            return "it was stopped: pynenc runner stop --now"
        return ""

    def _stop(self, why: str) -> None:
        """End at once, and on purpose: what is not finished is kept until somebody asks for it."""
        self.pool.end_workers()
        unwritten = self.turn.shelve()
        if unwritten:
            log(f"the supervisor ends, and could not write what was left: {unwritten}")
            self._fail(f"{why}; of its calls those are kept that were committed. {unwritten}")
        else:
            self._fail(f"{why}; its calls are kept: pynenc resume runs them")

    def _is_hopeless(self, why: str) -> None:
        self._why_hopeless = why

    def _end(self) -> None:
        """End, unless somebody is just about to connect.

        Whoever connects holds the start lock. So while the supervisor holds it, nobody does.
        """
        lock = FileLock(self._settings["start_lock"])
        try:
            is_held = lock.acquire_nowait()
        except OSError:
            self.store.see_that_it_is_there()  # Without its state directory, this ends another way.
            self._fail(f"{self._settings['start_lock']} cannot be locked")
            return
        if not is_held:
            self.loop.call_in(RETRY_END_S, lambda: None)
            return
        if self._somebody_waits():
            lock.release()
            return
        self._lock = lock  # Held until the process ends: the next supervisor waits for this one's end.
        self._remove_address()
        self.loop.stop()

    def _somebody_waits(self) -> bool:
        import select

        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        return bool(poll.poll(0))

    def _see_that_it_is_found(self) -> None:
        """Put the socket and the run file back if somebody has removed them: else others would start beside this one in vain."""
        if not self._had_client and os.getppid() != self._settings["starter"]:
            self._nobody_came()  # It was killed between hearing that this serves and coming.
        address = run_file.Address(self._settings["address"], self._key)
        lock = FileLock(self._settings["start_lock"])
        with contextlib.suppress(OSError):  # There is no room, or no state directory; what uses that says so.
            if not os.path.exists(address.path):
                self._listen_again(address.path)
            # Whoever holds the lock writes his own just now. He will not be served as long as this one lives.
            if run_file.read(self._settings["run_file"]) is None and lock.acquire_nowait():
                run_file.write(self._settings["run_file"], address)
        lock.release()
        self.loop.call_in(SEEN_EVERY_S, self._see_that_it_is_found)

    def _listen_again(self, path: str) -> None:
        directory = os.path.dirname(path)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        if os.lstat(directory).st_uid != os.geteuid():
            return  # Somebody else has made one of this name.
        listener = _listen(path)
        self.loop.forget(self._listener)
        self._listener.close()
        self._listener = listener
        self.loop.listen(listener, self._accept)
        log(f"somebody has removed the socket {path}: it is there again")

    def _remove_address(self) -> None:
        """Nobody finds this supervisor any more."""
        with contextlib.suppress(OSError):
            os.unlink(self._settings["address"])
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(self._settings["address"]))
        # Only under the lock: else this could be another supervisor's file that is just being written. Whoever holds the
        # lock finds that nobody listens at this one's address.
        # Without its state directory there is neither.
        lock = FileLock(self._settings["start_lock"])
        with contextlib.suppress(OSError):
            if self._lock is not None or lock.acquire_nowait():
                found = run_file.read(self._settings["run_file"])
                if found is not None and found.path == self._settings["address"]:
                    os.unlink(self._settings["run_file"])
        lock.release()

    def _nobody_came(self) -> None:
        self._had_client = True

    def _fail(self, why: str) -> None:
        """Tell every client why this ends, and end."""
        for client in self.turn.delivery.clients.values():
            client.peer.send(json_frame(Kind.REFUSED, error=why))
        self.loop.flush()
        self._remove_address()
        self.loop.stop()

    def _give_up(self, error: StateBackendError) -> None:
        """End because of the database. Where a new one can be begun, another supervisor does that."""
        if error.fault in (Fault.CORRUPT, Fault.GONE):
            self._over = error
        else:
            self._fail(str(error))

    def _hand_over(self, error: StateBackendError) -> None:
        """Have the clients go on with another supervisor and a new database. The workers are gone."""
        name = self.store.give_up(aside=error.fault == Fault.CORRUPT)
        why = f"{error}; it was set aside as {name}" if name else str(error)
        log(f"the supervisor ends: {why}")
        self.turn.delivery.notify(f"{why}. Calls that were not finished may be lost; a new database is begun")
        for client in self.turn.delivery.clients.values():
            client.peer.send(json_frame(Kind.REFUSED, error=why, again=True))
        self.loop.flush()
        self._remove_address()

    def _tell_of_new_database(self) -> None:
        text = f"the database was damaged and is set aside as {self.store.set_aside}; a new one is begun"
        if not self.store.set_aside.startswith(f"{self.store.path}.corrupt"):
            text = (
                f"the log of the database was damaged and is set aside as {self.store.set_aside}; what was committed last may "
                "be missing"
            )
        self.store.set_aside = ""
        log(text)
        self.turn.delivery.notify(text)

    def watch_signals(self) -> None:
        """SIGTERM ends the supervisor at the end of a turn; Ctrl-C is the client's business."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        woken, waker = socket.socketpair()
        waker.setblocking(False)
        self._waker = waker
        signal.set_wakeup_fd(waker.fileno())
        signal.signal(signal.SIGTERM, lambda *_: self._terminated())
        self.loop.add(Peer(self.loop, woken, lambda *_: None, lambda *_: None))

    def _terminated(self) -> None:
        self._is_terminated = True  # The signal may have come in the middle of a turn.

    # The handshake: both sides prove that they know the key, which only this user can read.

    def _accept(self, connection: socket.socket) -> None:
        if len(self._greeting) >= MAX_STRANGERS:
            connection.close()
            self.turn.refusals.add("a stranger", f"{MAX_STRANGERS} others have not proven yet that they know the key")
            return
        peer = Peer(self.loop, connection, self._proof_came, self._stranger_left, MAX_UNPROVEN_BODY_BYTES)
        self._greeting.add(peer)  # Whoever is about to become a client keeps the supervisor from ending.
        self.loop.call_in(GREETING_S, lambda: self._stranger_stays(peer))
        peer.role = os.urandom(32)
        peer.takes_descriptors = True
        self.loop.add(peer)
        peer.send(frame(Kind.CHALLENGE, peer.role))

    def _stranger_left(self, peer: Peer, why: str) -> None:
        self._greeting.discard(peer)
        self._had_client = True  # Perhaps the one that started this was interrupted before it could say anything.

    def _stranger_stays(self, peer: Peer) -> None:
        if peer in self._greeting:
            self.loop.refuse(peer, "it did not prove in time that it knows the key")

    def _proof_came(self, peer: Peer, frames: Frames) -> None:
        for kind, body in frames[:1]:
            if kind != Kind.PROOF or len(body) < 96:
                raise ProtocolError("a client began with something else than a proof")
            challenge, proof = body[:32], body[32:96]
            if not is_proof(proof, self._key, peer.role, b"client"):
                raise ProtocolError("a client does not know the key")
            fields = Fields.of("a proof", body[96:])
            version, pid, is_worker = fields.integer("version"), fields.integer("pid"), fields.flag("is_worker")
            asks_only = fields.flag("asks_only", default=False)
            if version != VERSION:
                refusal = (
                    f"the supervisor (pid {os.getpid()}) speaks protocol {VERSION}, this client "
                    f"{version}: stop it first (pynenc runner stop)"
                )
                peer.send(json_frame(Kind.REFUSED, error=refusal))
                peer.flush()
                raise ProtocolError(refusal)
            self._greeting.discard(peer)
            peer.reader.max_body_bytes = MAX_BODY_BYTES
            peer.takes_descriptors = False
            self._had_client = True
            number = self.turn.clients.joined(peer, pid, is_worker, asks_only)
            python = sys.implementation.cache_tag
            answer = {"client": number, "pid": os.getpid(), "workers": self.pool.size, "python": python}
            welcome = frame(Kind.WELCOME, prove(self._key, challenge, b"supervisor"), json.dumps(answer).encode())
            if asks_only:
                peer.send(welcome)  # Nothing is called by its number, so that need not be committed.
            else:
                self.turn.delivery.after_commit(peer, welcome)
        if frames[1:]:
            self.turn.clients.frames_came(peer, frames[1:])


def _see_that_descriptors_suffice(workers: int) -> None:
    # The workers keep the limit that the user has set: the fork server was started before.
    allowed = raise_limit()
    needed = OWN_DESCRIPTORS + workers
    if allowed < needed:
        raise RunnerError(
            f"{workers} workers need {needed} open files, and the limit is {allowed}: raise it (ulimit -n) or lower "
            "num_workers (PYNENC__NUM_WORKERS)"
        )


def _listen(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    os.chmod(address, 0o600)
    listener.listen(128)
    return listener


def serve(settings: dict[str, Any], fork_server: ForkServerProcess) -> None:
    """Serve until the work is done; tell the launching client how the start went."""
    try:
        supervisor = Supervisor(settings, fork_server)
    except (PynencError, OSError) as error:
        _tell(settings["ready_fd"], error=f"{type(error).__name__}: {error}")
        fork_server.end()
        sys.exit(1)
    try:
        supervisor.watch_signals()  # Before anybody knows its pid: ended as soon as it serves, it still clears up.
        if _tell(settings["ready_fd"], pid=os.getpid()):
            supervisor.serve()
        else:
            supervisor.withdraw()
    finally:
        supervisor.close()


def _tell(ready_fd: int, **fields: object) -> bool:
    """Tell the launching client how the start went; whether it is still there to hear it."""
    try:
        with open(ready_fd, "w") as ready:
            json.dump(fields, ready)
    except BrokenPipeError:
        return False
    return True
