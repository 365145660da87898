"""How blobs are named, and how a message says which ones it refers to. Pure: bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from pynenc.blobs.directory import NAME_BYTES
from pynenc.exceptions import ProtocolError
from pynenc.named_tuples import NamedTuple
from pynenc.protocol.extras import BLOB_BYTES
from pynenc.protocol.messages import REFERRING, Results, is_payload

MAX_SIZE = 1 << 60
_MARK = b"pynenc.blobs.reading\x94\x8c\x04thaw"

_REFERENCE = Struct(f"<{NAME_BYTES}sQ")
_COUNT = Struct("<I")
_COUNTER = Struct(">Q")

assert _REFERENCE.size == BLOB_BYTES


class Reference(NamedTuple):
    """A blob: its name, which nothing else ever has, and its size in bytes."""

    name: bytes
    size: int

    def to_bytes(self) -> bytes:
        """As it travels."""
        return _REFERENCE.pack(*self)


def name_of(token: bytes, number: int) -> bytes:
    """The name of a blob: who wrote it, and how many that one had written before."""
    return token + _COUNTER.pack(number)


def to_column(references: Iterable[Reference]) -> bytes:
    """References side by side.

    >>> from_column(to_column([Reference(bytes(16), 5)]))[0].size
    5
    """
    return b"".join(map(Reference.to_bytes, references))


def size_of_column(column: bytes) -> int:
    """The bytes of all blobs of a column."""
    return sum(reference.size for reference in from_column(column))


def refers(payload: bytes) -> bool:
    """Whether a frozen value, or one of those in a payload of rows, refers to blobs (see `freezing`)."""
    return _MARK in payload


def from_column(column: bytes) -> list[Reference]:
    """The references of a column.

    Raises:
        ProtocolError: It is none.
    """
    if len(column) % BLOB_BYTES:
        raise ProtocolError(f"references to blobs do not take {len(column)} bytes")
    references = [Reference(*one) for one in _REFERENCE.iter_unpack(column)]
    if any(reference.size > MAX_SIZE for reference in references):
        raise ProtocolError("no blob is as large as that")
    return references


def with_references(packing: int, payload: bytes, references: list[Reference]) -> tuple[int, bytes]:
    """The packing and the payload of results that refer to blobs, as a worker sends them."""
    return packing | REFERRING, b"".join((_COUNT.pack(len(references)), to_column(references), payload))


def split_results(results: Results) -> tuple[Results, list[Reference]]:
    """Results as they are kept and delivered, and the blobs that they refer to.

    Raises:
        ProtocolError: They do not fit together.
    """
    payload = results.payload
    if len(payload) < _COUNT.size:
        raise ProtocolError(f"results of batch {results.batch} are too short for their blobs")
    end = _COUNT.size + _COUNT.unpack_from(payload)[0] * BLOB_BYTES
    packing = results.packing & ~REFERRING
    if end > len(payload) or not is_payload(packing, payload[end:], results.stop - results.first):
        raise ProtocolError(f"results of batch {results.batch} do not fit their blobs")
    references = from_column(payload[_COUNT.size : end])
    return results._replace(packing=packing, payload=payload[end:]), references
