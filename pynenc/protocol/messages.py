"""Messages: what a frame's body means.

Messages that travel often (batches, leases, results) are packed structs; those that travel once per connection are
JSON. Argument, result and exception bytes are opaque here: whoever packs them also unpacks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from math import isfinite
from struct import Struct
from typing import Any

from pynenc.exceptions import ProtocolError
from pynenc.named_tuples import NamedTuple
from pynenc.protocol.frames import frame

VERSION = 2
"""Processes of different protocol versions refuse each other."""

INDEX_BITS = 10
MAX_BATCH_CALLS = 1024
MAX_BATCH_BYTES = 256 * 1024
BATCH_NUMBER_BITS = 29
MAX_BATCH = (1 << (63 - INDEX_BITS)) - 1
"""The largest number of a batch: with an index it still fits into an integer of SQLite."""
MAX_INVOCATION = (1 << 63) - 1
MAX_JSON_BYTES = 64 << 20
NO_INVOCATION = 0
"""Stands where a batch has no parent; client numbers begin at 1, so no invocation has this number."""


def first_batch_of(client: int) -> int:
    """The first batch id of a client number; batch ids of one client count up from here."""
    return client << BATCH_NUMBER_BITS


def invocation_number(batch: int, index: int) -> int:
    """The number of an invocation: its batch and its index in one integer of 63 bits."""
    return batch << INDEX_BITS | index


def split_number(number: int) -> tuple[int, int]:
    """The batch and the index of an invocation number."""
    return number >> INDEX_BITS, number & ((1 << INDEX_BITS) - 1)


def format_invocation_id(number: int) -> str:
    """An invocation number as users see it.

    >>> format_invocation_id(invocation_number(first_batch_of(3) + 7, 511))
    '3-7-511'
    """
    batch, index = split_number(number)
    return f"{batch >> BATCH_NUMBER_BITS}-{batch & ((1 << BATCH_NUMBER_BITS) - 1)}-{index}"


def parse_invocation_id(text: str) -> int | None:
    """The number behind an id that a user gives; None when it is not an id of a distributed invocation.

    >>> parse_invocation_id('3-7-511') == invocation_number(first_batch_of(3) + 7, 511)
    True
    """
    parts = text.split("-")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    client, batch, index = map(int, parts)
    if client >> (63 - INDEX_BITS - BATCH_NUMBER_BITS) or batch >> BATCH_NUMBER_BITS or index >> INDEX_BITS:
        return None
    return invocation_number(first_batch_of(client) + batch, index)


class Kind(IntEnum):
    """The kinds of frames."""

    CHALLENGE = 1
    PROOF = 2
    WELCOME = 3
    REFUSED = 4
    TASK = 5
    BATCH = 6
    KILL = 7
    SYNC = 8
    SYNCED = 9
    RESULTS = 10
    FAILURE = 11
    WATCH = 12
    QUERY = 13
    REPORT = 14
    GOODBYE = 15
    LEASE = 16
    CUT = 17
    UNFIT = 18
    SPAWN = 19
    SPAWNED = 20
    EXITED = 21
    OUTPUT = 22
    CANCEL = 23
    PAUSE = 24
    PAUSED = 25
    RESUME = 26
    RESUMED = 27
    WAITS = 28
    COMMON = 29
    ADOPT = 30
    COMMITTED = 31
    NOTICE = 32
    HOLD = 40
    RELEASE = 41
    DROP = 42


class Ending(IntEnum):
    """What a failure means for its calls. All but the first are final."""

    RETRY = 0
    FAILED = 1
    CANCELLED = 2
    KILLED = 3
    CONTROLLED = 4


NOT_RETRIABLE = -2.0
DEFAULT_DELAY = -1.0
"""In place of a delay in seconds, what a worker says of an exception: no retry, or a retry after the task's own delay."""


class Packing(IntEnum):
    """How the values of several calls lie in one payload; the serializer's business."""

    COLUMN = 0
    """One pickle: the list of all values."""
    COLUMNS = 1
    """One pickle: a list per position; values are tuples of the same length."""
    ROWS = 2
    """A pickle per value, with a table of offsets before them, so that a range can be cut out."""


REFERRING = 0x80
"""Set in the packing of results on their way to the supervisor: the payload begins with the blobs that they refer to."""

_U64 = Struct("<Q")
_BATCH = Struct("<QIIQQdBI")
_RESULTS = Struct("<QIIIBddI")
_FAILURE = Struct("<QIIIIBddd4I")
_LEASE = Struct("<QQIIIIQBII")
_ROWS_COUNT = Struct("<I")


class Batch(NamedTuple):
    """Calls of one task that travel, are stored and are recovered as one unit."""

    id: int
    task: int
    count: int  # type: ignore[assignment]
    group: int
    parent: int
    registered: float
    packing: int
    payload: bytes
    extras: bytes = b""
    """See `extras`."""

    def to_frame(self) -> bytes:
        return frame(Kind.BATCH, _BATCH.pack(*self[:7], len(self.extras)), self.extras, self.payload)

    @classmethod
    def from_body(cls, body: bytes) -> Batch:
        _check(body, _BATCH)
        *head, extras = _BATCH.unpack_from(body)
        split = _BATCH.size + extras
        made = cls._make((*head, body[split:], body[_BATCH.size : split]))
        if split > len(body):
            raise ProtocolError(f"batch {made.id} is too short")
        if not 1 <= made.count <= MAX_BATCH_CALLS or not is_payload(made.packing, made.payload, made.count):
            raise ProtocolError(f"batch {made.id}: {made.count} calls in packing {made.packing}")
        if (
            made.id > MAX_BATCH
            or made.group > MAX_BATCH
            or made.parent > MAX_INVOCATION
            or not isfinite(made.registered)
        ):
            raise ProtocolError(f"batch {made.id} of group {made.group}: there are no such numbers")
        return made


_PACKINGS = frozenset(map(int, Packing))
MAX_SECONDS = 1e12
"""Nothing takes that long."""
_ENDINGS = frozenset(map(int, Ending))


class Results(NamedTuple):
    """The results of the calls `[first, stop)` of one batch, all run by one worker.

    `ends` holds a double per call: when it ended, on the worker's monotonic clock, whose last value is `started + took`.
    Each call began when the one before it ended. Calls of a few microseconds have none and count as evenly spread. They
    are left out on the way to clients.
    """

    batch: int
    first: int
    stop: int
    worker: int
    packing: int
    started: float
    """When the first call started; seconds since the epoch."""
    took: float
    """What all calls took together; seconds."""
    ends: bytes
    payload: bytes

    def times_of(self, index: int) -> tuple[float, float]:
        """When a call began and ended; seconds since the epoch."""
        if not self.ends:
            share = self.took / (self.stop - self.first)
            began = self.started + share * (index - self.first)
            return began, began + share
        ends = [self.started, *Struct(f"<{self.stop - self.first}d").unpack(self.ends)]
        shift = self.started + self.took - ends[-1]
        at = index - self.first + 1
        return (ends[at - 1] + shift if at > 1 else self.started), ends[at] + shift

    def to_frame(self) -> bytes:
        return frame(Kind.RESULTS, _RESULTS.pack(*self[:7], len(self.ends)), self.ends, self.payload)

    @classmethod
    def from_body(cls, body: bytes) -> Results:
        _check(body, _RESULTS)
        *head, ends = _RESULTS.unpack_from(body)
        batch, first, stop = head[:3]
        split = _RESULTS.size + ends
        made = cls._make((*head, body[_RESULTS.size : split], body[split:]))
        if (
            not first < stop <= MAX_BATCH_CALLS
            or batch > MAX_BATCH
            or ends not in (0, 8 * (stop - first))
            or split > len(body)
            or not (made.packing & REFERRING or is_payload(made.packing, made.payload, stop - first))
            or not (isfinite(made.started) and 0 <= made.took < MAX_SECONDS)
        ):
            raise ProtocolError(f"results of batch {batch} for [{first}, {stop}) do not fit together")
        return made


class Failure(NamedTuple):
    """An attempt that raised, or calls that the supervisor ended: the exception in words, its traceback, and its pickle.

    The pickle is empty when the supervisor says so, which pickles nothing; then `type_name` is one of pynenc's errors.
    """

    batch: int
    first: int
    stop: int
    worker: int
    attempt: int
    """How many attempts there were before."""
    ending: int
    retry_s: float
    """From a worker: after how many seconds to try again, or `NOT_RETRIABLE` or `DEFAULT_DELAY`."""
    started: float
    """Seconds since the epoch."""
    ended: float
    type_name: str
    message: str
    traceback: str
    pickled: bytes

    def to_frame(self) -> bytes:
        # A file's name in an exception may hold what is no text; SQLite takes none of that.
        texts = [text.encode("utf-8", "backslashreplace") for text in self[9:12]]
        parts = [*texts, self.pickled]
        head = _FAILURE.pack(*self[:9], *map(len, parts))
        return frame(Kind.FAILURE, head, *parts)

    @classmethod
    def from_body(cls, body: bytes) -> Failure:
        _check(body, _FAILURE)
        unpacked = _FAILURE.unpack_from(body)
        head, lengths = unpacked[:9], unpacked[9:]
        batch, first, stop, _, _, ending, *times = head
        if (
            _FAILURE.size + sum(lengths) != len(body)
            or not first < stop <= MAX_BATCH_CALLS
            or batch > MAX_BATCH
            or ending not in _ENDINGS
            or not all(map(isfinite, times))
        ):
            raise ProtocolError(f"failure of batch {batch} for [{first}, {stop}) does not fit together")
        parts, at = [], _FAILURE.size
        for length in lengths:
            parts.append(body[at : at + length])
            at += length
        try:
            texts = [part.decode() for part in parts[:3]]
        except UnicodeDecodeError as error:
            raise ProtocolError(f"failure of batch {batch} for [{first}, {stop}): {error.reason}") from None
        return cls._make((*head, *texts, parts[3]))


class Lease(NamedTuple):
    """A range of one batch handed to one worker.

    Positions count every call that was ever leased to that worker; the first call of this lease has `position`.
    Rows are cut to the lease, columns are not.
    """

    position: int
    batch: int
    task: int
    first: int
    stop: int
    attempt: int
    """How many attempts there were before; all calls of a lease have the same."""
    common: int
    """The number of the arguments that all its calls share, 0 for none."""
    packing: int
    payload: bytes
    lineage: bytes = b""
    """Which calls are above the one that made them; see `pynenc.lineage`."""
    directory: bytes = b""
    """Where they begin, if that is not where their task was declared."""

    def to_frame(self) -> bytes:
        head = _LEASE.pack(*self[:8], len(self.lineage), len(self.directory))
        return frame(Kind.LEASE, head, self.lineage, self.directory, self.payload)

    @classmethod
    def from_body(cls, body: bytes) -> Lease:
        _check(body, _LEASE)
        *head, lineage, directory = _LEASE.unpack_from(body)
        behind = _LEASE.size + lineage
        split = behind + directory
        if split > len(body):
            raise ProtocolError(f"a lease of batch {head[1]} is too short")
        return cls._make((*head, body[split:], body[_LEASE.size : behind], body[behind:split]))


class Pause(NamedTuple):
    """A worker's call, at this position, waits for others: for calls of these batches.

    `end` is the position behind the last call of its lease as the worker has it, `began` when the call began (monotonic seconds).
    """

    position: int
    end: int
    began: float
    awaited: tuple[int, ...]

    def to_frame(self) -> bytes:
        layout = Struct(f"<2Qd{len(self.awaited)}Q")
        return frame(Kind.PAUSE, layout.pack(self.position, self.end, self.began, *self.awaited))

    @classmethod
    def from_body(cls, body: bytes) -> Pause:
        count, rest = divmod(len(body), _U64.size)
        if rest or count < 3:
            raise ProtocolError(f"a pause of {len(body)} bytes does not fit together")
        position, end, began, *awaited = Struct(f"<2Qd{count - 3}Q").unpack(body)
        if not isfinite(began):
            raise ProtocolError(f"a pause at position {position} began at no time")
        return cls(position, end, began, tuple(awaited))


def is_of_worker(failure: Failure) -> bool:
    """Whether a worker may say so: a call is over, or asks for another attempt with a delay that makes sense."""
    return failure.ending != Ending.RETRY and (
        failure.retry_s in (NOT_RETRIABLE, DEFAULT_DELAY) or 0 <= failure.retry_s < MAX_SECONDS
    )


def batch_number(number: int) -> int:
    """A number that somebody says is that of a batch."""
    if number > MAX_BATCH:
        raise ProtocolError(f"there is no batch {number}")
    return number


def number_frame(kind: Kind, number: int) -> bytes:
    """A frame whose whole body is one unsigned integer."""
    return frame(kind, _U64.pack(number))


def number_from(body: bytes) -> int:
    """The integer of such a frame."""
    if len(body) != _U64.size:
        raise ProtocolError(f"a number of {len(body)} bytes")
    number: int = _U64.unpack(body)[0]
    return number


def numbers_frame(kind: Kind, numbers: Sequence[int]) -> bytes:
    """A frame whose body is unsigned integers."""
    return frame(kind, Struct(f"<{len(numbers)}Q").pack(*numbers))


def numbers_from(body: bytes, most: int) -> list[int]:
    """The integers of such a frame, none above the highest."""
    if len(body) % _U64.size:
        raise ProtocolError(f"a message of {len(body)} bytes does not hold whole numbers")
    numbers = [number for (number,) in _U64.iter_unpack(body)]
    if any(number > most for number in numbers):
        raise ProtocolError(f"a message with numbers above {most}")
    return numbers


def bytes_frame(kind: Kind, number: int, body: bytes) -> bytes:
    """A frame of an unsigned integer and bytes."""
    return frame(kind, _U64.pack(number), body)


def bytes_from(body: bytes) -> tuple[int, bytes]:
    """The integer and the bytes of such a frame."""
    return number_from(body[: _U64.size]), body[_U64.size :]


def json_frame(kind: Kind, **fields: Any) -> bytes:
    """A frame whose body is a JSON object."""
    import json

    return frame(kind, json.dumps(fields).encode())


def json_from(body: bytes) -> dict[str, Any]:
    """The JSON object of such a frame."""
    import json

    if len(body) > MAX_JSON_BYTES:
        raise ProtocolError(f"a message of {len(body):,} bytes of JSON: at most {MAX_JSON_BYTES:,} are allowed")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a message that should be JSON is not: {error}") from None
    if not isinstance(fields, dict):
        raise ProtocolError("a message that should be a JSON object is not one")
    return fields


def rows_payload(rows: list[bytes]) -> bytes:
    """The payload of packing ROWS: how many, where each ends, and the rows."""
    ends, at = [], 0
    for row in rows:
        at += len(row)
        ends.append(at)
    return b"".join((Struct(f"<I{len(rows)}I").pack(len(rows), *ends), *rows))


def row_bounds(payload: bytes | memoryview) -> list[int]:
    """Where rows begin in a ROWS payload, and where the last one ends: one number more than there are rows."""
    (count,) = _ROWS_COUNT.unpack_from(payload)
    head = 4 + 4 * count
    return [head, *(head + end for end in Struct(f"<{count}I").unpack_from(payload, 4))]


def is_payload(packing: int, payload: bytes, count: int) -> bool:
    """Whether these bytes can be the values of so many calls. What columns hold is seen only by whoever unpickles them."""
    if packing != Packing.ROWS:
        return packing in _PACKINGS
    if len(payload) < 4 + 4 * count or _ROWS_COUNT.unpack_from(payload)[0] != count:
        return False
    bounds = row_bounds(payload)
    return bounds[-1] == len(payload) and bounds == sorted(bounds)


def slice_payload(packing: int, payload: bytes, first: int, stop: int) -> bytes:
    """The part of a payload that a lease of `[first, stop)` needs.

    Columns travel whole: cutting them would mean to unpickle them, which the supervisor never does.
    """
    if packing != Packing.ROWS:
        return payload
    bounds = row_bounds(payload)
    if first == 0 and stop == len(bounds) - 1:
        return payload
    return rows_payload([payload[bounds[i] : bounds[i + 1]] for i in range(first, stop)])


def _check(body: bytes, struct: Struct) -> None:
    if len(body) < struct.size:
        raise ProtocolError(f"a message of {len(body)} bytes is too short: at least {struct.size} are needed")
