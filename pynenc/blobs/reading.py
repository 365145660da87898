"""Reading blobs: they are mapped read-only, and what is made of them keeps its mapping alive. Runs in clients and workers."""

from __future__ import annotations

import ctypes
import os
import pickle
import weakref
from functools import lru_cache
from typing import Any

from pynenc import context
from pynenc.blobs.directory import BlobDirectory
from pynenc.blobs.mapping import map_file, unmap
from pynenc.blobs.references import Reference, from_column
from pynenc.exceptions import BlobLostError

_directories: dict[str, BlobDirectory] = {}
_mapped: weakref.WeakValueDictionary[bytes, Any] = weakref.WeakValueDictionary()


class Recent:
    """Mappings that a worker keeps from one lease to the next, for calls that get the same array one after the other."""

    def __init__(self) -> None:
        self.used: list[Any] = []
        self._before: list[Any] = []

    def turn(self) -> None:
        """A lease begins: what the last one did not use is let go."""
        if self.used or self._before:
            self._before, self.used = self.used, []

    def clear(self) -> None:
        """Let go of everything."""
        self.used, self._before = [], []

    def __bool__(self) -> bool:
        return bool(self.used or self._before)


recent: Recent | None = None
"""Set in workers that run one call at a time."""


def thaw(column: bytes, parts: bytes | tuple[int, list[bytes | int]]) -> Any:
    """The value of a frozen one that refers to blobs; what its pickle calls.

    Args:
        column: The blobs.
        parts: The value's pickle, whose buffers they are. Or how many of them are its buffers, and the pieces of its pickle, in
            which a number stands for a blob.

    Raises:
        BlobLostError: A blob is not there any more.
    """
    views: list[Any] = [view_of(reference) for reference in from_column(column)]
    if context.collector.copying:
        views = list(map(bytearray, views))
    if isinstance(parts, bytes):
        return pickle.loads(parts, buffers=views)
    buffers, pieces = parts
    stream = PiecedStream([views[one] if isinstance(one, int) else one for one in pieces])
    return pickle.Unpickler(stream, buffers=views[:buffers]).load()


class PiecedStream:
    """A pickle whose large pieces lie elsewhere, as a file to read."""

    def __init__(self, pieces: list[Any]) -> None:
        self._pieces = [memoryview(piece).cast("B") for piece in reversed(pieces)]

    def read(self, count: int) -> bytes:
        """The next bytes."""
        read = bytearray(count)
        return bytes(memoryview(read)[: self.readinto(read)])

    def readinto(self, target: bytearray | memoryview) -> int:
        """Fill a buffer with the next bytes; how many there were."""
        view, at = memoryview(target).cast("B"), 0
        while at < len(view) and self._pieces:
            piece = self._pieces.pop()
            count = min(len(piece), len(view) - at)
            view[at : at + count] = piece[:count]
            at += count
            if count < len(piece):
                self._pieces.append(piece[count:])
        return at

    def readline(self) -> bytes:
        """The bytes up to the next end of a line."""
        line = bytearray()
        while not line.endswith(b"\n") and (byte := self.read(1)):
            line += byte
        return bytes(line)


def view_of(reference: Reference) -> memoryview:
    """The bytes of a blob, read-only.

    Raises:
        BlobLostError: It is not there any more.
    """
    context.uses_blobs = True
    mapped = _mapped.get(reference.name)
    if mapped is None:
        mapped = _map(reference)
        _mapped[reference.name] = mapped
    if recent is not None:
        recent.used.append(mapped)
    return pickle.PickleBuffer(mapped).raw().toreadonly()


def address_of(view: memoryview) -> int:
    """Where the bytes of a mapped blob lie."""
    return ctypes.addressof(view.obj)  # type: ignore[arg-type]


def _map(reference: Reference) -> Any:
    for database in list(context.databases):
        directory = _directories.get(database) or _directories.setdefault(database, BlobDirectory(database))
        fd = directory.open(reference.name)
        if fd is None:
            continue
        try:
            if os.fstat(fd).st_size < reference.size:
                break  # Cut off by somebody else; touching what is missing would end this process.
            address = map_file(fd, reference.size)
        finally:
            os.close(fd)
        mapped = _kind_of(reference.size).from_address(address)
        weakref.finalize(mapped, unmap, address, reference.size).atexit = False
        return mapped
    raise BlobLostError(reference.name.hex(), reference.size)


@lru_cache(64)
def _kind_of(size: int) -> Any:
    # A class of its own, since arrays of ctypes themselves have no weak references.
    return type("Mapped", (ctypes.c_ubyte * size,), {})
