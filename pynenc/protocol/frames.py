"""Frames: how messages lie in the bytes of a connection.

A frame is a header of five bytes (length of the body, kind) and the body. This module is pure: bytes in,
frames out, no I/O. Every process uses it; nothing in it knows what a body means.
"""

from __future__ import annotations

from struct import Struct

from pynenc.exceptions import ProtocolError

HEADER = Struct("<IB")
HEADER_BYTES = HEADER.size

MAX_BODY_BYTES = 960_000_000
"""The largest body of a frame between processes that know each other. SQLite takes rows of up to 1,000,000,000 bytes."""

MAX_UNPROVEN_BODY_BYTES = 4096
"""The largest body before the other side has proven that it knows the key."""

READ_BYTES = 1 << 18


def frame(kind: int, *parts: bytes | memoryview) -> bytes:
    """One frame of the given kind, its body joined from the parts.

    >>> frame(7, b"ab", b"c")
    b'\\x03\\x00\\x00\\x00\\x07abc'
    """
    length = sum(map(len, parts))
    if length > MAX_BODY_BYTES:
        raise ProtocolError(
            f"a message of {length:,} bytes is larger than a connection carries ({MAX_BODY_BYTES:,}): "
            "pass large values in smaller pieces, or as a path to a file"
        )
    return b"".join((HEADER.pack(length, kind), *parts))


class FrameReader:
    """Cuts the bytes of one connection into frames.

    >>> reader = FrameReader()
    >>> reader.feed(frame(7, b"abc") + frame(8))
    [(7, b'abc'), (8, b'')]
    """

    __slots__ = ("_buffer", "max_body_bytes")

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._buffer = bytearray()
        self.max_body_bytes = max_body_bytes

    def feed(self, received: bytes) -> list[tuple[int, bytes]]:
        """All frames that are whole now that these bytes have come; the rest is kept for the next call.

        Raises:
            ProtocolError: A frame announces more bytes than are allowed.
        """
        buffer = self._buffer
        if buffer:
            buffer += received
            if len(buffer) < HEADER_BYTES or len(buffer) < HEADER_BYTES + self._announced(buffer, 0):
                return []
            received = bytes(buffer)
            buffer.clear()
        frames: list[tuple[int, bytes]] = []
        at, end = 0, len(received)
        while end - at >= HEADER_BYTES:
            start = at + HEADER_BYTES
            stop = start + self._announced(received, at)
            if stop > end:
                break
            frames.append((received[start - 1], received[start:stop]))
            at = stop
        if at < end:
            buffer += memoryview(received)[at:]
        return frames

    def _announced(self, received: bytes | bytearray, at: int) -> int:
        length: int = HEADER.unpack_from(received, at)[0]
        if length > self.max_body_bytes:
            raise ProtocolError(f"a frame announces {length:,} bytes; at most {self.max_body_bytes:,} are allowed here")
        return length
