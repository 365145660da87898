"""What a batch says of its calls beside their arguments: keys, dependencies, common arguments. Most batches say nothing.

The supervisor compares these bytes and never unpickles an argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct, error

from pynenc.exceptions import ProtocolError
from pynenc.named_tuples import NamedTuple
from pynenc.protocol.messages import MAX_BATCH, MAX_BATCH_CALLS, MAX_INVOCATION

KEY_BYTES = 16
"""Keys are digests of this size."""

BLOB_BYTES = 24
"""So long is a reference to a blob."""

_HEAD = Struct("<7IQ")
_DEPENDENCY = Struct("<HHHQ")
_DIRECTORY = Struct("<II")
_HAS_DIRECTORY = (1 << 32) - 1
"""Stands before the length of the directory, if there is one: no column is so long."""

MAX_DIRECTORY_BYTES = 1 << 16
GONE = b"?"
"""In place of a directory: that in which the calls were made is gone. Others begin with a slash."""


class Dependency(NamedTuple):
    """A call of a batch takes the results of the calls `[first, stop)` of another batch."""

    index: int  # type: ignore[assignment]
    batch: int
    first: int
    stop: int


class Extras(NamedTuple):
    """Columns of keys, one for each call.

    Attributes:
        running: For `running_concurrency`; a single key holds for all calls.
        registration: For `registration_concurrency`.
        arguments: Digests of all arguments: whether two calls are the same.
        cache: For `call_result_cache`.
        items: Which items of a named group the calls are; four bytes each.
        dependencies: Whose results the calls take.
        lineage: Which calls are above the one that made them; see `pynenc.lineage`.
        common: The number of the arguments that the calls share, 0 for none.
        blobs: To which blobs the arguments refer; see `pynenc.blobs.references`.
        directory: Where the calls begin, if that is not where their task was declared.
    """

    running: bytes = b""
    registration: bytes = b""
    arguments: bytes = b""
    cache: bytes = b""
    items: bytes = b""
    dependencies: bytes = b""
    lineage: bytes = b""
    common: int = 0
    blobs: bytes = b""
    directory: bytes = b""

    def to_bytes(self) -> bytes:
        """As they travel and are stored; nothing when there are none."""
        if self is NONE or self == NONE:
            return b""
        directory = _DIRECTORY.pack(_HAS_DIRECTORY, len(self.directory)) + self.directory if self.directory else b""
        return b"".join((directory, _HEAD.pack(*map(len, self[:7]), self.common), *self[:7], self.blobs))

    @classmethod
    def from_bytes(cls, body: bytes, count: int) -> Extras:
        """Read them back.

        Args:
            body: What `to_bytes` made.
            count: How many calls the batch has.

        Raises:
            ProtocolError: They do not fit together.
        """
        if not body:
            return NONE
        directory, body = _split_directory(body)
        try:
            *lengths, common = _HEAD.unpack_from(body)
        except error:
            raise ProtocolError(f"extras of {len(body)} bytes are too short") from None
        sizes = ((0, KEY_BYTES, KEY_BYTES * count), *3 * ((0, KEY_BYTES * count),), (0, 4 * count))
        if (
            # What is left are the blobs; older databases have none.
            (len(body) - _HEAD.size - sum(lengths)) % BLOB_BYTES
            or _HEAD.size + sum(lengths) > len(body)
            or any(length not in allowed for length, allowed in zip(lengths, sizes, strict=False))
            or lengths[5] % _DEPENDENCY.size
        ):
            raise ProtocolError(f"extras of {count} calls do not fit together: {lengths}")
        columns, at = [], _HEAD.size
        for length in lengths:
            columns.append(body[at : at + length])
            at += length
        made = cls._make((*columns, common, body[at:], directory))
        if any(
            one.index >= count or not one.first < one.stop <= MAX_BATCH_CALLS or one.batch > MAX_BATCH
            for one in made.depended_on()
        ):
            raise ProtocolError("a dependency does not fit its batch")
        if common > MAX_INVOCATION:
            raise ProtocolError(f"there are no common arguments {common}")
        return made

    def depended_on(self) -> list[Dependency]:
        """Whose results which calls take."""
        return [
            Dependency(index, batch, first, stop)
            for index, first, stop, batch in _DEPENDENCY.iter_unpack(self.dependencies)
        ]


NONE = Extras()


def _split_directory(body: bytes) -> tuple[bytes, bytes]:
    """The directory, and what follows it."""
    if len(body) < _DIRECTORY.size or _DIRECTORY.unpack_from(body)[0] != _HAS_DIRECTORY:
        return b"", body
    stop = _DIRECTORY.size + _DIRECTORY.unpack_from(body)[1]
    if not _DIRECTORY.size < stop <= min(len(body), _DIRECTORY.size + MAX_DIRECTORY_BYTES):
        raise ProtocolError(f"extras of {len(body)} bytes have a directory of {stop - _DIRECTORY.size}")
    return body[_DIRECTORY.size : stop], body[stop:]


def dependencies_column(dependencies: Iterable[Dependency]) -> bytes:
    """The column of these dependencies."""
    return b"".join(_DEPENDENCY.pack(one.index, one.first, one.stop, one.batch) for one in dependencies)


def key_at(column: bytes, index: int) -> bytes:
    """The key of a call; a single key holds for all."""
    if len(column) == KEY_BYTES:
        return column
    return column[KEY_BYTES * index : KEY_BYTES * (index + 1)]
