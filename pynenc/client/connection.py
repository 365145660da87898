"""The connection to the supervisor. Whoever waits for a result reads it; no thread stands in between.

When several threads wait, one of them reads for all, and hands over when it has what it wanted. A signal handler reads on top
of what it has interrupted. Frames are cut and then handled one by one; each is forgotten when it was handled, so that a handler
begins with the one that it has interrupted, and nothing is missed. Whoever handles a frame may therefore be interrupted by
somebody who handles the same. Only where bytes are on the way between socket and frames nobody else can read, and only between
messages can another one be sent: there a handler is refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pynenc.client.launch import connect
from pynenc.client.lost import anew
from pynenc.client.reading import ReadingTurn
from pynenc.exceptions import ProtocolError, RunnerError, SupervisorLostError, asked_in_handler
from pynenc.protocol.authentication import CHALLENGE_BYTES, PROOF_BYTES, is_proof, prove
from pynenc.protocol.frames import READ_BYTES, FrameReader, frame
from pynenc.protocol.messages import VERSION, Kind, json_frame, json_from
from pynenc.protocol.run_file import Address
from pynenc.system.descriptors import is_open
from pynenc.system.sockets import NO_SIGPIPE, spare_sigpipe

LONGEST_S = 1e6
"""Waits that are longer have no end: the system takes none of more than 24 days."""

LEFT_WITHIN_S = 1.0
"""How long those who read or send may take to leave a connection that is shut down."""

LEFT = "the connection was closed by app.close()"


class Connection:
    """A connection of this process, shared by its threads.

    Args:
        connected: A fresh connection to the supervisor's address; the handshake is made here.
        on_frame: Told of each frame that comes, by whichever thread reads it; once more if it is interrupted.
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
        self._unhandled: deque[tuple[int, bytes]] = deque()
        self._cuts = False
        self._send_lock = threading.RLock()
        self._sends = False
        self._sent: list[int] = []
        self._size = 0
        self.lost: RunnerError | None = None
        self.is_closed = False
        self._leaves = False
        self.gave_up = ""
        self.on_read: Callable[[], None] | None = None
        try:
            spare_sigpipe(connected)
            self.client, self.supervisor_pid = self._shake_hands(address.key)
            self._turn = ReadingTurn(connected)
        except BaseException:
            connected.close()
            raise

    def send(self, message: bytes) -> None:
        """Send frames.

        Raises:
            SupervisorLostError: Nobody is there to take them.
        """
        with self._send_lock:
            if self._sends and self._sent != [self._size]:
                raise asked_in_handler("sent something")
            if self.lost is not None:
                raise anew(self.lost)
            size = len(message)
            sent: list[int] = []
            # Nothing is called in between, so no signal handler sees a part of it.
            self._size, self._sent, self._sends = size, sent, True
            try:
                # Through `map`, so that a signal handler that comes right after it, as most do, sees that the message has left.
                sent.extend(map(self._socket.send, (message,), (NO_SIGPIPE,)))
                if sent[0] < size:
                    self._socket.sendall(memoryview(message)[sent[0] :], NO_SIGPIPE)
                return
            except BaseException as error:
                if not self._is_its_own(error):
                    # Ctrl-C in the middle of a message: what follows it here would not be understood.
                    self._lose("the script was interrupted while it sent something")
                    self.shut_down()
                    raise
                why = str(error)
            finally:
                self._sends = False
        self.read_nowait()  # It may have said why it closed the connection.
        raise self._lose(why)

    @property
    def is_sending(self) -> bool:
        """Whether a thread is sending, perhaps this one."""
        return self._sends

    def wait_until(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Read until something is so.

        Args:
            done: Asked after every frame that was read; it becomes true by a frame.
            timeout: Seconds to wait at most; None waits as long as it takes.

        Returns:
            Whether it is so.

        Raises:
            SupervisorLostError: The supervisor is gone and it never will be so.
            RunnerError: This is a signal handler that has interrupted a read.
        """
        if timeout is not None and timeout > LONGEST_S:
            timeout = None
        deadline = None if timeout is None else time.monotonic() + timeout
        while not done():
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                self.read_nowait()
                return done()
            if not self._turn.take(done, remaining):
                continue
            try:
                if not done():
                    self._read(remaining)
            except SupervisorLostError:
                if not done():  # It may have come together with the end.
                    raise
            finally:
                self._turn.pass_on()
        return True

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def read_nowait(self) -> None:
        """Take in what has come already, unless another thread is at it."""
        if not self._turn.take_nowait():
            return
        try:
            while self.lost is None and not self._cuts and (self._unhandled or self._turn.is_readable()):
                self._read(0)
        except SupervisorLostError:
            pass  # Whoever waits for something is told.
        finally:
            self._turn.pass_on()

    def leave(self) -> None:
        """Tell the supervisor that this client goes, and close the connection."""
        self._leaves = True  # First: another thread may read that the supervisor closes it, too.
        with contextlib.suppress(RunnerError):
            self.send(frame(Kind.GOODBYE))
        self.close()

    def close(self) -> None:
        """Close the connection; whoever waits on it is told that it is gone."""
        self.is_closed = True
        self.lost = self.lost or SupervisorLostError(LEFT)
        self.shut_down()  # A thread that waits on it would not notice that it is closed.
        # Whoever is at it just now leaves it first: the numbers of its descriptors will be those of others.
        has_lock = self._send_lock.acquire(timeout=LEFT_WITHIN_S)
        has_turn = self._turn.take_within(LEFT_WITHIN_S)
        try:
            with contextlib.suppress(OSError):  # The script may have closed all descriptors.
                self._socket.close()
            self._turn.close()
        finally:
            if has_turn:
                self._turn.pass_on()
            if has_lock:
                self._send_lock.release()

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
        if (fd := self._socket.detach()) >= 0:
            os.close(fd)
        self._turn.close()
        self.lost = SupervisorLostError("this invocation belongs to the process that forked this one")

    def _read(self, timeout: float | None) -> None:
        if self.lost is not None:
            raise anew(self.lost)
        if self._cuts:
            raise asked_in_handler("read something")
        if not self._unhandled:
            if not self._turn.wait_readable(timeout):
                return
            self._cut()
        self._handle()
        self._turn.wake_others()  # They may wait for what this read brought.
        if self.on_read is not None:
            self.on_read()

    def _cut(self) -> None:
        """Read what has come, and cut it into frames."""
        self._cuts = True
        try:
            # A signal handler may have read what was there.
            count = self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            if count:
                self._unhandled.extend(self._frames.feed(bytes(self._buffer[:count])))
                return
        except BlockingIOError:
            return
        except ProtocolError:
            raise
        except BaseException as error:
            if self._is_its_own(error):
                raise self._lose(str(error)) from error
            # Ctrl-C: some of what has come may be lost, but not to another connection.
            self._lose("the script was interrupted while it read something")
            raise
        finally:
            self._cuts = False
        raise self._lose("it ended")

    def _handle(self) -> None:
        """Hand on what has come."""
        unhandled = self._unhandled
        while True:
            try:
                first = unhandled[0]
            except IndexError:
                return
            kind, body = first
            if kind == Kind.REFUSED:
                unhandled.clear()  # Whoever has got what it waited for until now does not care.
                fields = json_from(body)
                self.lost = self.lost or SupervisorLostError(str(fields.get("error")))
                if fields.get("again"):
                    self.gave_up = str(self.lost)
                else:
                    self.is_closed = True
                return
            try:
                self._on_frame(kind, body)
            except ProtocolError:
                self._forget(first)
                raise
            self._forget(first)

    def _forget(self, handled: tuple[int, bytes]) -> None:
        # Unless a signal handler has done it. No other one comes in between: Python runs them after calls and in loops.
        if self._unhandled and self._unhandled[0] is handled:
            self._unhandled.popleft()

    def _is_its_own(self, error: BaseException) -> bool:
        """Whether an error is the socket's, and not one that a signal handler has raised, such as a `TimeoutError` of an alarm."""
        if not isinstance(error, OSError) or (error.errno is None and self._socket.gettimeout() is None):
            return False
        if error.errno in (errno.EBADF, errno.ENOTSOCK) and not self.is_closed:
            # The script has closed all descriptors; those may be its own by now.
            self._socket.detach()
            self._turn.abandon()
        return True

    def _lose(self, why: str) -> RunnerError:
        if self.lost is None and self._leaves:
            self.lost = SupervisorLostError(LEFT)
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
            outputs = [fd if is_open(fd) else nowhere.fileno() for fd in (1, 2)]
            socket.send_fds(self._socket, [proof], outputs)
        welcome = self._next_frame(Kind.WELCOME)
        if not is_proof(welcome[:PROOF_BYTES], key, mine, b"supervisor"):
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
