"""Freezing values whose large buffers go to blobs: what is left is a small pickle that refers to them.

Arrays, data frames and tables give their buffers out of band (pickle protocol 5). Bytes do not, but a pickle has large ones in
one piece, outside of its frames, so they are found there: at the top of the arguments before anything is pickled, and further
down in a pickle that came out large. What unpickles such a value needs to know nothing of it: its pickle calls `reading.thaw`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, islice
from struct import Struct
from typing import Any

from pynenc.blobs.references import Reference, to_column
from pynenc.blobs.writing import Writer
from pynenc.serializer import MAX_PLAIN_TEXT, PROTOCOL, SCALARS, TEXTS, Frozen, Referring, dump, dumps

_BYTES = frozenset({bytes, bytearray, memoryview})
_LOOKED_AT = 64
"""So many items of a container are looked at for large bytes."""

_LENGTH = Struct("<Q")
_LENGTH_32 = Struct("<I")
_PROTO_BYTES = 2
_FRAME = 0x95
_FRAMES_BELOW = 1 << 18
"""A pickler ends a frame at 64 KiB, and puts into it what is shorter than that."""
_LARGE_64 = frozenset(b"\x8e\x96\x8d")
"""The opcodes of bytes, bytearrays and texts with a length of eight bytes."""
_LARGE_32 = frozenset(b"BX")
"""The same with four."""


class Freezer:
    """Freezes values, and writes their large buffers to blobs.

    Args:
        writer: Writes them.
        threshold_bytes: Buffers of this size and more.
    """

    def __init__(self, writer: Writer, threshold_bytes: int) -> None:
        self.writer = writer
        self.threshold_bytes = threshold_bytes

    def freeze(self, value: Any) -> Any:
        """A value as it can wait for `pack`: itself when it is plain, else `Frozen` or `Referring`."""  # per call
        kind = type(value)
        if kind in SCALARS or (kind in TEXTS and len(value) <= MAX_PLAIN_TEXT):
            return value
        return self.frozen(value)

    def frozen(self, value: Any) -> Frozen:
        """A frozen value.

        Raises:
            SerializationError: It cannot be pickled.
            OSError: There is no room for its buffers.
        """
        taken = _Taken(self.threshold_bytes)  # per call
        if not _has_large_bytes(value, self.threshold_bytes):
            pickled = dumps(value, taken)
            if len(pickled) < self.threshold_bytes or not holds_large_bytes(pickled, self.threshold_bytes):
                return self.referring(taken.buffers, pickled) if taken.buffers else Frozen(pickled)
        dump(value, taken)
        count, pieces = len(taken.buffers), list(taken.joined())
        large = [piece for piece in pieces if isinstance(piece, memoryview)]
        numbers = iter(range(count, count + len(large)))
        stream = [next(numbers) if isinstance(piece, memoryview) else piece for piece in pieces]
        return self.referring(taken.buffers + large, (count, stream))

    def referring(self, buffers: Sequence[memoryview], parts: Any) -> Referring:
        """A frozen value of these buffers; `parts` are what `reading.thaw` makes it of."""
        written: list[Reference] = []
        try:
            for buffer in buffers:
                written.append(self.write(buffer))
        except BaseException:
            self.writer.discard(written)
            raise
        made = Referring(pickle.dumps(_Thawed(to_column(written), parts), PROTOCOL))
        made.references = tuple(dict.fromkeys(written))
        return made

    def sent(self) -> None:
        """What was frozen before has been sent; nothing is kept here."""

    def write(self, buffer: memoryview) -> Reference:
        """Have a blob hold these bytes."""
        return self.writer.write(buffer)


class _Thawed:
    """Pickles as a call of `reading.thaw`."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        from pynenc.blobs import reading  # Brings ctypes, which most processes never need.

        return reading.thaw, self._arguments


class _Taken:
    """Takes large buffers out of a pickle, and large pieces of the pickle itself where they are."""

    __slots__ = ("_pieces", "_threshold_bytes", "buffers")

    buffers: list[memoryview]
    _pieces: list[bytes | memoryview]

    def __init__(self, threshold_bytes: int) -> None:
        self._threshold_bytes = threshold_bytes

    def begin(self) -> Callable[[pickle.PickleBuffer], bool]:
        """A pickle begins."""
        self.buffers, self._pieces = [], []
        return self._stays

    def write(self, piece: Any) -> int:
        """Take in the next bytes of the pickle."""
        view = memoryview(piece)
        self._pieces.append(view.cast("B") if view.nbytes >= self._threshold_bytes else bytes(view))
        return view.nbytes

    def mentions(self, name: bytes) -> bool:
        """Whether the pickle may refer to a module of this name. Names lie in its frames, so large pieces are not looked at."""
        return any(name in bytes(piece) for piece in self._pieces if len(piece) < _FRAMES_BELOW)

    def joined(self) -> Iterable[bytes | memoryview]:
        """The pieces of the pickle, small ones together."""
        for is_large, pieces in groupby(self._pieces, lambda piece: isinstance(piece, memoryview)):
            if is_large:
                yield from pieces
            else:
                yield b"".join(pieces)

    def _stays(self, buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:
            return True  # It does not lie in one piece.
        if view.nbytes < self._threshold_bytes:
            return True
        self.buffers.append(view)
        return False


def holds_large_bytes(pickled: bytes, threshold_bytes: int) -> bool:
    """Whether there are large bytes in a pickle, in one piece. It walks from frame to frame, between which they lie."""
    at, end = _PROTO_BYTES, len(pickled)
    while at < end:
        opcode = pickled[at]
        if opcode == _FRAME:
            at += 1 + _LENGTH.size + _LENGTH.unpack_from(pickled, at + 1)[0]
            continue
        if opcode in _LARGE_64:
            size, head = _LENGTH.unpack_from(pickled, at + 1)[0], 1 + _LENGTH.size
        elif opcode in _LARGE_32:
            size, head = _LENGTH_32.unpack_from(pickled, at + 1)[0], 1 + _LENGTH_32.size
        else:
            return False
        if size >= threshold_bytes:
            return True
        at += head + size
    return False


def _has_large_bytes(value: Any, threshold_bytes: int) -> bool:
    """Whether a value is large bytes, or a container that has some among its first items."""  # per call
    kind = type(value)
    if kind is tuple or kind is list:
        items = value if len(value) <= _LOOKED_AT else value[:_LOOKED_AT]
    elif kind is dict:
        items = list(islice(value.values(), _LOOKED_AT))
    elif kind in _BYTES:
        items = (value,)
    else:
        return False
    if _BYTES.isdisjoint(map(type, items)):
        return False
    return any(type(one) in _BYTES and memoryview(one).nbytes >= threshold_bytes for one in items)
