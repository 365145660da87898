"""Values to bytes and back: pickle protocol 5, cloudpickle where plain pickle fails or refers to the script, and columns.

The values of many calls become one payload (see `Packing`). Plain values (numbers, None, short texts) cannot change
and share nothing, so they are pickled together, a column at a time; that is many times faster than one by one. All
others are frozen (pickled) alone as soon as they are seen: a later mutation by the caller is not seen, one call's
value is never the same object as another's, and one that cannot be unpickled spoils no other.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import islice, pairwise
from operator import itemgetter
from typing import Any, Protocol

from pynenc.exceptions import SerializationError
from pynenc.protocol.messages import Packing, row_bounds, rows_payload

PROTOCOL = 5
SCALARS = frozenset({int, float, bool, type(None), complex})
TEXTS = frozenset({str, bytes})
MAX_PLAIN_TEXT = 256
"""Texts up to this length count as plain; a longer one is worth a pickle of its own."""


MAX_VALUE_BYTES = 800_000_000
"""The largest pickle that travels. A batch or a stretch of results holds one so large and some smaller ones beside it, and must
fit into a frame (`protocol.frames.MAX_BODY_BYTES`)."""


SCRIPT = b"\x8c\x08__main__"
"""The script's name as a pickle refers to it: a short text of eight bytes. What is pickled by its name there, a worker would look
for in a module of its own. A value that happens to hold the same only costs time."""


class Frozen(bytes):
    """A value that is pickled already."""

    __slots__ = ()


class Referring(Frozen):
    """A frozen value whose large buffers are blobs, to which it refers (`blobs.references.Reference`)."""

    references: tuple[Any, ...]


class Freezes(Protocol):
    """Freezes values, and puts their large buffers elsewhere."""

    def frozen(self, value: Any) -> Frozen:
        """A frozen value."""

    def sent(self) -> None:
        """The calls of the batches that were packed before have been sent."""


class LazyFreezer:
    """One that is made when there is something to freeze that is not plain; its end is the end of this."""

    def __init__(self, make: Callable[[], AbstractContextManager[Freezes]]) -> None:
        self._make = make
        self._made: Freezes | None = None
        self._stack = ExitStack()

    def frozen(self, value: Any) -> Frozen:
        """A frozen value."""
        if self._made is None:
            self._made = self._stack.enter_context(self._make())
        return self._made.frozen(value)

    def sent(self) -> None:
        """The calls of the batches that were packed before have been sent."""
        if self._made is not None:
            self._made.sent()

    def __enter__(self) -> LazyFreezer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class OutOfBand(Protocol):
    """Takes buffers that are not to lie in a pickle, and with `dump` the pickle itself, as a file."""

    def begin(self) -> Callable[[pickle.PickleBuffer], bool]:
        """A pickle begins, perhaps anew after plain pickle has failed; what is asked of each buffer whether it stays in it."""

    def write(self, piece: Any) -> int:
        """Take in the next bytes of the pickle."""

    def mentions(self, name: bytes) -> bool:
        """Whether the pickle that was taken in may refer to a module of this name."""


def dumps(value: Any, buffers: OutOfBand | None = None) -> bytes:
    """Pickle a value, with cloudpickle what no other process can import: lambdas, local classes, what the script defines.

    Args:
        value: Anything.
        buffers: Takes buffers out of the pickle.

    Raises:
        SerializationError: Neither of them can, or it is too large.

    >>> loads(dumps(lambda x: x + 1))(2)
    3
    """
    pickled = _dumps(value, buffers)
    if len(pickled) > MAX_VALUE_BYTES:
        raise SerializationError(
            f"{type(value).__qualname__} is {len(pickled):,} bytes when pickled, and at most {MAX_VALUE_BYTES:,} travel: pass it "
            "in smaller pieces, or as a path to a file"
        )
    return pickled


def _dumps(value: Any, buffers: OutOfBand | None) -> bytes:
    try:
        pickled = pickle.dumps(value, PROTOCOL, buffer_callback=None if buffers is None else buffers.begin())
    except Exception as error:  # pickling runs the user's own code: anything can be raised
        plain_error: Exception | None = error
    else:
        if SCRIPT not in pickled:
            return pickled
        plain_error = None
    target = io.BytesIO()
    _dump_by_value(value, target, None if buffers is None else buffers.begin(), plain_error)
    return target.getvalue()


def dump(value: Any, target: OutOfBand) -> None:
    """The same, piece by piece: large bytes come in one piece, and are not copied.

    Raises:
        SerializationError: Neither of them can.
    """
    try:
        pickle.dump(value, target, PROTOCOL, buffer_callback=target.begin())
    except Exception as error:  # see above
        plain_error: Exception | None = error
    else:
        if not target.mentions(SCRIPT):
            return
        plain_error = None
    _dump_by_value(value, target, target.begin(), plain_error)


def _dump_by_value(
    value: Any, target: Any, buffers: Callable[[pickle.PickleBuffer], bool] | None, plain_error: Exception | None
) -> None:
    """Pickle a value of which a worker cannot import a part.

    Args:
        value: The value.
        target: A file.
        buffers: Asked of each buffer whether it stays in the pickle.
        plain_error: Why plain pickle could not.
    """
    from pynenc.by_value import Pickler

    try:
        Pickler(target, PROTOCOL, buffer_callback=buffers).dump(value)
    except Exception as error:
        raise _unpicklable(value, error, plain_error) from error


def _unpicklable(value: Any, error: Exception, plain_error: Exception | None) -> SerializationError:
    reason = error if str(error) or plain_error is None else plain_error
    return SerializationError(f"{type(value).__qualname__} cannot be pickled: {type(reason).__name__}: {reason}")


loads = pickle.loads


def freeze(value: Any) -> Any:
    """A value as it can wait for `pack`: itself when it is plain, else `Frozen`."""  # per call
    kind = type(value)
    if kind in SCALARS or (kind in TEXTS and len(value) <= MAX_PLAIN_TEXT):
        return value
    return Frozen(dumps(value))


def all_plain(arguments: tuple[Any, ...]) -> bool:
    """Whether positional arguments can wait for `pack` as they are."""
    for value in arguments:  # per call
        kind = type(value)
        if kind not in SCALARS and not (kind in TEXTS and len(value) <= MAX_PLAIN_TEXT):
            return False
    return True


def plain_column(column: Sequence[Any]) -> bool:
    """Whether all values of a column are plain; the cost is a few nanoseconds a value."""
    types = list(map(type, column))
    if types[0] in SCALARS and types.count(types[0]) == len(types):
        return True
    kinds = set(types)
    if kinds <= SCALARS:
        return True
    if kinds <= TEXTS:
        return max(map(len, column)) <= MAX_PLAIN_TEXT
    if kinds <= SCALARS | TEXTS:
        return all(type(value) in SCALARS or len(value) <= MAX_PLAIN_TEXT for value in column)
    return False


def pack(values: Sequence[Any]) -> tuple[int, bytes]:
    """The payload of values that are plain or `Frozen`, each alone.

    >>> packing, payload = pack([1, None, freeze([2, 3])])
    >>> list(unpack(packing, payload))
    [1, None, [2, 3]]
    """
    kinds = set(map(type, values))
    if Frozen not in kinds and Referring not in kinds:
        return Packing.COLUMN, pickle.dumps(values, PROTOCOL)
    return Packing.ROWS, rows_payload([v if isinstance(v, Frozen) else pickle.dumps(v, PROTOCOL) for v in values])


def pack_arguments(entries: Sequence[Any]) -> tuple[int, bytes]:
    """The payload of the arguments of several calls: tuples of plain values, or `Frozen` ones."""
    if set(map(type, entries)) == {tuple} and len(widths := set(map(len, entries))) == 1:
        if widths == {0}:
            return Packing.COLUMN, pickle.dumps([()] * len(entries), PROTOCOL)
        return Packing.COLUMNS, pickle.dumps(columns_of(entries, len(entries[0])), PROTOCOL)
    return Packing.ROWS, rows_payload([e if type(e) is Frozen else pickle.dumps(e, PROTOCOL) for e in entries])


def columns_of(entries: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Tuples of one length as a list per position.

    `zip(*entries)` makes an iterator per tuple, and so many objects at once set off garbage collections that walk
    through everything the caller holds: for a million calls they took longer than all the rest.

    >>> columns_of([(1, "a"), (2, "b")], 2)
    [[1, 2], ['a', 'b']]
    """
    return [list(map(itemgetter(position), entries)) for position in range(width)]


def leased_arguments(packing: int, payload: bytes, first: int, stop: int) -> Iterable[Any]:
    """The arguments of the calls `[first, stop)` from a lease's payload: tuples from columns, `Frozen` from rows.

    Rows stay frozen, so that whoever runs them unpickles one at a time and pays for its failure alone.
    """
    if packing == Packing.ROWS:
        return frozen_rows(payload)
    if packing == Packing.COLUMN:
        return islice(loads(payload), first, stop)
    return zip(*(column[first:stop] for column in loads(payload)), strict=True)


def stored_arguments(packing: int, payload: bytes, index: int) -> Any:
    """The arguments of one call from the payload of its whole batch: a tuple, or `Frozen`."""
    if packing == Packing.ROWS:
        return frozen_rows(payload)[index]
    return next(iter(leased_arguments(packing, payload, index, index + 1)))


def argument_bytes(packing: int, payload: bytes, index: int) -> int:
    """How many bytes would be unpickled for the arguments of one call, beside what all calls of its batch are made of."""
    if packing != Packing.ROWS:
        return 0
    bounds = row_bounds(payload)
    return bounds[index + 1] - bounds[index]


def frozen_rows(payload: bytes) -> list[Frozen]:
    """The rows of a payload, still pickled."""
    bounds = row_bounds(payload)
    return [Frozen(payload[start:stop]) for start, stop in pairwise(bounds)]


def unpack(packing: int, payload: bytes) -> list[Any]:
    """All values of a payload."""
    if packing == Packing.COLUMN:
        values: list[Any] = loads(payload)
        return values
    if packing == Packing.COLUMNS:
        return list(zip(*loads(payload), strict=True))
    return [loads(row) for row in frozen_rows(payload)]
