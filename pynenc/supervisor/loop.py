"""The loop: sockets and their buffers. It knows frames and peers, and no rules.

Nothing here blocks but the wait for the next event. A peer that does not read has its outgoing bytes
buffered; whoever sends to it asks `Peer.congested` and holds back.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from pynenc.exceptions import ProtocolError
from pynenc.protocol.frames import MAX_BODY_BYTES, READ_BYTES, FrameReader
from pynenc.system.spin import Spin

READS_PER_TURN = 16
"""How often one peer is read in a turn before the others have their turn."""

SEND_PARTS = 512
"""How many buffers one system call sends, below every system's limit."""

MAX_DESCRIPTORS = 4
"""How many open files a peer may hand over, which has them open twice until it is closed."""

MAX_WAIT_S = 3600.0
"""The system takes no wait of more than 24 days; timers may lie later."""

CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
"""What clients hand over is for the workers, and for nobody that this process starts."""

LISTEN_AGAIN_S = 0.1
"""How long nobody is accepted when the system gives no connection, and none can be refused either."""

Frames: TypeAlias = "list[tuple[int, bytes]]"


class CarryingFrame(bytes):
    """A frame with open files, which are sent along with its first byte."""

    descriptors: list[int]


class Peer:
    """One connection of the loop.

    Args:
        connection: A connected stream socket; the peer owns it from now on.
        on_frames: Called with the peer and the frames that have come.
        on_end: Called once with the peer and why, when the other side is gone.
    """

    __slots__ = (
        "_carrying",
        "_outgoing",
        "buffered",
        "connection",
        "descriptors",
        "full",
        "held",
        "loop",
        "on_drained",
        "on_end",
        "on_frames",
        "open",
        "reader",
        "role",
        "takes_descriptors",
    )

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        on_frames: Callable[[Peer, Frames], None],
        on_end: Callable[[Peer, str], None],
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self.loop = loop
        self._outgoing: deque[bytes | memoryview] = deque()
        self._carrying = 0
        self.connection = connection
        self.reader = FrameReader(max_body_bytes)
        self.on_frames = on_frames
        self.on_end = on_end
        self.on_drained: Callable[[Peer], None] | None = None
        self.buffered = 0
        self.open = True
        self.full = False
        self.held = False
        self.role: Any = None
        self.takes_descriptors = False
        self.descriptors: list[int] = []

    def send(self, frame: bytes) -> None:
        """Put a frame into the outgoing bytes; the loop sends them before it waits."""
        if self.open:
            if not self._outgoing:
                self.loop.to_flush.append(self)
            self._outgoing.append(frame)
            self.buffered += len(frame)

    def send_descriptors(self, frame: bytes, descriptors: list[int]) -> None:
        """Send a frame that carries open files. They are duplicated, so the caller may close its own at once.

        Raises:
            OSError: There are no descriptors left for that.
        """
        if self.open:
            carrying = CarryingFrame(frame)
            carrying.descriptors = []
            try:
                for descriptor in descriptors:
                    carrying.descriptors.append(os.dup(descriptor))
            except OSError:
                close_all(carrying.descriptors)
                raise
            self._carrying += 1
            self.send(carrying)

    def close(self) -> None:
        """Close the connection and what was to be sent over it."""
        self.open = False
        self.connection.close()
        close_all(self.descriptors)
        for part in self._outgoing:
            if isinstance(part, CarryingFrame):
                close_all(part.descriptors)
        self._outgoing.clear()

    def _send_some(self) -> tuple[list[bytes | memoryview], int]:
        """Make one system call: send up to the next frame that carries open files, or that frame alone."""
        if not self._carrying:
            parts = list(itertools.islice(self._outgoing, SEND_PARTS))
            return parts, self.connection.sendmsg(parts)
        first = self._outgoing[0]
        if isinstance(first, CarryingFrame):
            sent = socket.send_fds(self.connection, [first], first.descriptors)
            self._carrying -= 1
            close_all(first.descriptors)
            return [first], sent
        parts = list(itertools.takewhile(lambda part: not isinstance(part, CarryingFrame), self._outgoing))
        return parts, self.connection.sendmsg(parts[:SEND_PARTS])

    def flush(self) -> None:
        """Send as much as the other side takes without waiting."""
        outgoing = self._outgoing
        while outgoing and self.open:
            try:
                parts, sent = self._send_some()
            except BlockingIOError:
                self.loop.wait_for_room(self)
                return
            except OSError as error:
                self.loop.end(self, str(error))
                return
            self.buffered -= sent
            for part in parts:
                if sent < len(part):
                    outgoing[0] = memoryview(part)[sent:]
                    break
                sent -= len(part)
                outgoing.popleft()


class Loop:
    """Waits for sockets and timers, and tells whoever asked.

    Args:
        on_turn: Called after the callbacks of each turn, before anything is sent.
        on_idle: Called when there is nothing to read, before the loop sleeps.
        on_refused: Told of each peer that is about to be closed because of what it sent, and why.
        refusal: What a connection is told for which there is no descriptor left.
    """

    def __init__(
        self,
        on_turn: Callable[[], None],
        on_idle: Callable[[], None],
        on_refused: Callable[[Peer, str], None],
        refusal: bytes = b"",
    ) -> None:
        self.refusal = refusal
        self.to_flush: list[Peer] = []
        self._on_turn = on_turn
        self._on_idle = on_idle
        self._on_refused = on_refused
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._ticket = itertools.count()
        self._stopped = False
        self._spin = Spin()
        # One buffer for all: a fresh one for each read costs more than the read.
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._reserve = _reserve()

    def add(self, peer: Peer) -> None:
        """Begin to read from a peer."""
        peer.connection.setblocking(False)
        self._selector.register(peer.connection, selectors.EVENT_READ, peer)

    def listen(self, listener: socket.socket, on_connection: Callable[[socket.socket], None]) -> None:
        """Accept connections."""
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, (listener, on_connection))

    def forget(self, listener: socket.socket) -> None:
        """Accept no more."""
        self._selector.unregister(listener)

    def call_in(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back once, after some seconds."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._ticket), callback))

    def run(self) -> None:
        """Turn until `stop`."""
        while not self._stopped:
            self.turn()

    def stop(self) -> None:
        """Let `run` end after this turn."""
        self._stopped = True

    def turn(self) -> None:
        """Wait for something, take it in, act on it, send."""
        for key, events in self._wait():
            peer = key.data
            if isinstance(peer, Peer):
                if events & selectors.EVENT_READ:
                    self.receive(peer)
                if events & selectors.EVENT_WRITE and peer.open:
                    peer.full = False
                    self._watch(peer)
                    self.to_flush.append(peer)
            else:
                self._accept(*peer)
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
        self._on_turn()
        self.flush()

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        found = self._spin.look(lambda: self._selector.select(0))
        if found:
            return found
        self._on_idle()
        self.flush()
        timeout = None
        if self._stopped:
            timeout = 0.0
        elif self._timers:
            timeout = min(max(0.0, self._timers[0][0] - time.monotonic()), MAX_WAIT_S)
        return self._selector.select(timeout)

    def flush(self) -> None:
        """Send what waits; a peer that has caught up is told so."""
        while self.to_flush:
            peers, self.to_flush = self.to_flush, []
            for peer in peers:
                peer.flush()
                if peer.open and peer.on_drained is not None and not peer.buffered:
                    peer.on_drained(peer)

    def receive(self, peer: Peer) -> None:
        """Read what a peer has sent and hand its frames on."""
        for _ in range(READS_PER_TURN):
            try:
                received = self._read(peer)
            except BlockingIOError:
                return
            except OSError as error:
                self.end(peer, str(error))
                return
            if not received:
                self.end(peer, "it closed the connection")
                return
            try:
                if len(peer.descriptors) > MAX_DESCRIPTORS:
                    raise ProtocolError(f"it handed over more than {MAX_DESCRIPTORS} open files")
                peer.on_frames(peer, peer.reader.feed(received))
            except ProtocolError as error:
                self.refuse(peer, str(error))
                return
            if len(received) < READ_BYTES:
                return

    def _read(self, peer: Peer) -> bytes:
        if peer.takes_descriptors:
            received, descriptors, _, _ = socket.recv_fds(peer.connection, READ_BYTES, MAX_DESCRIPTORS, CLOSE_ON_EXEC)
            peer.descriptors += descriptors
            return received
        return bytes(self._buffer[: peer.connection.recv_into(self._buffer)])

    def wait_for_room(self, peer: Peer) -> None:
        """Go on sending when the peer takes bytes again."""
        peer.full = True
        self._watch(peer)

    def hold(self, peer: Peer, held: bool) -> None:
        """Read from a peer, or leave what it sends where it is, so that it has to wait."""
        if peer.open and peer.held is not held:
            peer.held = held
            self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        wanted = (0 if peer.held else selectors.EVENT_READ) | (selectors.EVENT_WRITE if peer.full else 0)
        is_watched = peer.connection in self._selector.get_map()
        if wanted and is_watched:
            self._selector.modify(peer.connection, wanted, peer)
        elif wanted:
            self._selector.register(peer.connection, wanted, peer)
        elif is_watched:
            self._selector.unregister(peer.connection)

    def refuse(self, peer: Peer, why: str) -> None:
        """Close a connection because of what came over it."""
        self._on_refused(peer, why)
        self.end(peer, why)

    def end(self, peer: Peer, why: str) -> None:
        """Close a connection and tell its owner, once."""
        if not peer.open:
            return
        if peer.connection in self._selector.get_map():
            self._selector.unregister(peer.connection)
        peer.close()
        peer.on_end(peer, why)

    def close(self) -> None:
        """Close every connection that is still open; nobody is told."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, Peer):
                key.data.close()
            else:
                key.data[0].close()
        self._selector.close()
        with contextlib.suppress(OSError):
            os.close(self._reserve)

    def _accept(self, listener: socket.socket, on_connection: Callable[[socket.socket], None]) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            is_refused = error.errno in (errno.EMFILE, errno.ENFILE) and self._refuse(listener)
            if not is_refused:
                # The whole system has none left, or no memory. Whoever has come waits; looking again at once would take all
                # the time.
                self.forget(listener)
                self.call_in(LISTEN_AGAIN_S, lambda: self._listen_again(listener, on_connection))
            return
        on_connection(connection)

    def _listen_again(self, listener: socket.socket, on_connection: Callable[[socket.socket], None]) -> None:
        if listener.fileno() != -1:
            self.listen(listener, on_connection)

    def _refuse(self, listener: socket.socket) -> bool:
        """No descriptor is left for whoever has come. The one kept for this is lent for as long as it takes to say so."""
        with contextlib.suppress(OSError):
            os.close(self._reserve)
        try:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.setblocking(False)
                connection.send(self.refusal)
        except OSError:
            return False
        finally:
            self._reserve = _reserve()
        return True


def _reserve() -> int:
    """A descriptor that is kept to be given up; -1 when there is none."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def close_all(descriptors: list[int]) -> None:
    """Close open files, and forget them."""
    while descriptors:
        os.close(descriptors.pop())
