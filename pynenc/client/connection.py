"""The connection to the supervisor. Whoever waits for a result reads it; no thread stands in between.

When several threads wait, one of them reads for all, and hands over when it has what it wanted.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from pynenc.client.launch import connect
from pynenc.client.lost import anew
from pynenc.exceptions import ProtocolError, RunnerError, SupervisorLostError
from pynenc.protocol.authentication import CHALLENGE_BYTES, PROOF_BYTES, prove
from pynenc.protocol.frames import READ_BYTES, FrameReader, frame
from pynenc.protocol.messages import VERSION, Kind, json_frame, json_from
from pynenc.protocol.run_file import Address
from pynenc.system.spin import Spin

LONGEST_S = 1e6
"""Waits that are longer have no end: the system takes none of more than 24 days."""


class Connection:
    """A connection of this process, shared by its threads.

    Args:
        connected: A fresh connection to the supervisor's address; the handshake is made here.
        on_frame: Told of each frame that comes, by whichever thread reads it.
        is_worker: Whether this process is one of the supervisor's own workers.
        asks_only: Whether no calls are made over it; then the supervisor listens also while nothing can be committed.

    Attributes:
        address: Where the supervisor listens.
        client: The number that the supervisor gave this client.
        python: Which Python it and its workers are, as the names of compiled files tell it.
        on_read: Called after each read by whichever thread has read.
        is_closed: Whether it ended because one of both sides wanted it to.
        gave_up: Why the supervisor gave up so that another one can begin anew; empty when it did not.
    """

    def __init__(
        self,
        connected: socket.socket,
        address: Address,
        on_frame: Callable[[int, bytes], None],
        is_worker: bool,
        asks_only: bool = False,
    ) -> None:
        self.address = address
        self._socket = connected
        self._on_frame = on_frame
        self._is_worker = is_worker
        self._asks_only = asks_only
        self._frames = FrameReader()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._send_lock = threading.Lock()
        self._turn = threading.Condition(threading.Lock())
        self._someone_reads = False
        self._poll = select.poll()
        self._spin = Spin()
        self._poll.register(connected, select.POLLIN)
        self.lost: RunnerError | None = None
        self.is_closed = False
        self.gave_up = ""
        self.on_read: Callable[[], None] | None = None
        try:
            self.client, self.supervisor_pid = self._shake_hands(address.key)
        except BaseException:
            connected.close()
            raise

    def send(self, message: bytes) -> None:
        """Send frames.

        Raises:
            SupervisorLostError: Nobody is there to take them.
        """
        with self._send_lock:
            if self.lost is not None:
                raise anew(self.lost)
            try:
                self._socket.sendall(message)
                return
            except OSError as error:
                why = str(error)
            except BaseException:  # Ctrl-C in the middle of a message: what follows it here would not be understood.
                self._lose("the script was interrupted while it sent something")
                self.shut_down()
                raise
        self.read_nowait()  # It may have said why it closed the connection.
        raise self._lose(why)

    @property
    def is_sending(self) -> bool:
        """Whether a thread is sending, perhaps this one."""
        return self._send_lock.locked()

    def wait_until(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Read until something is so.

        Args:
            done: Asked after every frame that was read; it becomes true by a frame.
            timeout: Seconds to wait at most; None waits as long as it takes.

        Returns:
            Whether it is so.

        Raises:
            SupervisorLostError: The supervisor is gone and it never will be so.
        """
        if timeout is not None and timeout > LONGEST_S:
            timeout = None
        deadline = None if timeout is None else time.monotonic() + timeout
        while not done():
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                self.read_nowait()
                return done()
            if not self._take_turn(remaining):
                continue
            try:
                if not done():
                    self._read(remaining)
            except SupervisorLostError:
                if not done():  # It may have come together with the end.
                    raise
            finally:
                self._pass_turn()
        return True

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def read_nowait(self) -> None:
        """Take in what has come already, unless another thread is at it."""
        with self._turn:
            if self._someone_reads:
                return
            self._someone_reads = True
        try:
            while self.lost is None and self._poll.poll(0):
                self._read(0)
        except SupervisorLostError:
            pass  # Whoever waits for something is told.
        finally:
            self._pass_turn()

    def close(self) -> None:
        """Close the connection; whoever waits on it is told that it is gone."""
        self.is_closed = True
        self.lost = self.lost or SupervisorLostError("the connection was closed by app.close()")
        self._socket.close()

    def give_up(self, why: str) -> None:
        """Send and read nothing more; `shut_down` tells those who wait."""
        self.is_closed = True
        self.lost = SupervisorLostError(why)

    def shut_down(self) -> None:
        """Wake up whoever sends or waits."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def limit_sends(self, seconds: float) -> None:
        """Give up sending when the supervisor does not read for so long."""
        limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connection without a word."""
        self.is_closed = True
        os.close(self._socket.detach())
        self.lost = SupervisorLostError("this invocation belongs to the process that forked this one")

    def _take_turn(self, timeout: float | None) -> bool:
        with self._turn:
            if self._someone_reads:
                self._turn.wait(timeout)
                return False
            self._someone_reads = True
            return True

    def _pass_turn(self) -> None:
        with self._turn:
            self._someone_reads = False
            self._turn.notify_all()

    def _read(self, timeout: float | None) -> None:
        if self.lost is not None:
            raise anew(self.lost)
        try:
            if not self._spin.look(lambda: self._poll.poll(0)):
                wait_ms = None if timeout is None else max(0.0, timeout * 1000)
                if not self._poll.poll(wait_ms):
                    return
        except OSError as error:
            raise self._lose(str(error)) from error
        try:
            self._take_in()
        except RunnerError:
            raise
        except BaseException:  # Ctrl-C: some of what has come may be lost, but not to another connection.
            self._lose("the script was interrupted while it read something")
            raise
        with self._turn:
            self._turn.notify_all()  # Other threads may wait for what this read brought.
        if self.on_read is not None:
            self.on_read()

    def _take_in(self) -> None:
        """Read what has come and hand it on."""
        try:
            count = self._socket.recv_into(self._buffer)
        except OSError as error:
            raise self._lose(str(error)) from error
        if not count:
            raise self._lose("it ended")
        for kind, body in self._frames.feed(bytes(self._buffer[:count])):
            if kind == Kind.REFUSED:
                fields = json_from(body)
                self.lost = self.lost or SupervisorLostError(str(fields.get("error")))
                if fields.get("again"):
                    self.gave_up = str(self.lost)
                else:
                    self.is_closed = True
                break  # Whoever has got what it waited for until now does not care.
            self._on_frame(kind, body)

    def _lose(self, why: str) -> RunnerError:
        if self.lost is None:
            self.lost = SupervisorLostError(
                f"the supervisor (pid {self.supervisor_pid}) is gone: {why}. Results that it had committed are still "
                "there: app.get_invocation(invocation_id). The next call starts a new supervisor."
            )
        return anew(self.lost)

    def _shake_hands(self, key: bytes) -> tuple[int, int]:
        self.supervisor_pid = 0
        challenge = self._next_frame(Kind.CHALLENGE)
        mine = os.urandom(CHALLENGE_BYTES)
        about = {"pid": os.getpid(), "is_worker": self._is_worker, "asks_only": self._asks_only}
        fields = json.dumps({"version": VERSION, **about}).encode()
        proof = frame(Kind.PROOF, mine, prove(key, challenge, b"client"), fields)
        # It may have gone just now, and perhaps said why: the next frame, or its absence, tells.
        with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
            # What workers print for this client is to appear where this process prints.
            outputs = [fd if _is_open(fd) else nowhere.fileno() for fd in (1, 2)]
            socket.send_fds(self._socket, [proof], outputs)
        welcome = self._next_frame(Kind.WELCOME)
        if not hmac.compare_digest(welcome[:PROOF_BYTES], prove(key, mine, b"supervisor")):
            raise ProtocolError("whoever listens at the supervisor's address does not know its key")
        answer = json_from(welcome[PROOF_BYTES:])
        self.python = answer.get("python")
        return answer["client"], answer["pid"]

    def _next_frame(self, expected: Kind) -> bytes:
        while True:
            try:
                received = self._socket.recv(READ_BYTES)
            except OSError:
                received = b""
            if not received:
                raise SupervisorLostError("the supervisor closed the connection during the handshake")
            frames = self._frames.feed(received)
            for at, (kind, body) in enumerate(frames):
                if kind == Kind.REFUSED:
                    fields = json_from(body)
                    why = str(fields.get("error"))
                    raise SupervisorLostError(why) if fields.get("again") else RunnerError(why)
                if kind == Kind.NOTICE:
                    self._on_frame(kind, body)
                    continue
                if kind != expected:
                    raise ProtocolError(f"the supervisor sent a frame of kind {kind} during the handshake")
                for early in frames[at + 1 :]:
                    self._on_frame(*early)
                return body


def query_frame(what: str, **fields: Any) -> bytes:
    """A question to the supervisor."""
    return json_frame(Kind.QUERY, what=what, **fields)


def stop_calls_of(connection: Connection, timeout: float) -> int:
    """Have the supervisor stop and keep the calls of a connection; how many there are, 0 when it does not say so in time.

    It is told over a connection of its own: somebody may be in the middle of a message on the other one.
    """
    answers: list[dict[str, Any]] = []

    def take_answer(kind: int, body: bytes) -> None:
        if kind == Kind.REPORT:
            answers.append(json_from(body))

    connected = connect(connection.address)
    if connected is None:
        return 0
    connected.settimeout(timeout)
    other = Connection(connected, connection.address, take_answer, is_worker=False, asks_only=True)
    try:
        other.send(query_frame("interrupt", token=0, client=connection.client))
        other.wait_until(lambda: bool(answers), timeout)
        return int(answers[0]["kept"]) if answers else 0
    finally:
        other.close()


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
