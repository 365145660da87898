"""Open batches: calls of one task that have not left yet, and the rules for when they leave.

A call that comes when nothing is under way leaves at once. While calls are under way, further ones are collected
and leave together: when the batch is full, when it is a millisecond old, or when anybody waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from pynenc import context
from pynenc.exceptions import RunnerError, asked_in_handler
from pynenc.named_tuples import NamedTuple
from pynenc.prepared import PreparedCall, call_of, extras_of, freeze_call, prepare
from pynenc.protocol.extras import NONE, Extras
from pynenc.protocol.messages import MAX_BATCH_BYTES, MAX_BATCH_CALLS, Packing
from pynenc.runner import Submission
from pynenc.serializer import PROTOCOL, SCALARS, Freezes, Frozen, columns_of, pack_arguments, plain_column

if TYPE_CHECKING:
    from pynenc.lineage import Caller
    from pynenc.task import Task

BATCH_AGE_S = 0.001
"""An open batch leaves at this age."""

PULL_S = 0.001
"""Items of a generator that take longer to come than this are not waited for: what is there leaves."""

_COLLECTIONS = (list, tuple, range, dict, set, frozenset)
_THEIR_ITERATORS = frozenset(type(iter(kind(()) if kind is not range else range(0))) for kind in _COLLECTIONS)


class Packed(NamedTuple):
    """The arguments of some calls, ready to travel."""

    count: int  # type: ignore[assignment]
    packing: int
    payload: bytes
    extras: Extras = NONE


class OpenBatch:
    """Calls that are being collected."""

    __slots__ = ("caller", "entries", "frozen_bytes", "opened", "prepared", "submission")

    def __init__(self, submission: Submission, opened: float, caller: Caller | None) -> None:
        self.caller = caller
        self.submission = submission
        self.opened = opened
        self.entries: list[Any] = []
        self.prepared: dict[int, PreparedCall] = {}
        self.frozen_bytes = 0


class Batcher:
    """The open batches of one client, by task.

    Args:
        lock: Held by whoever sends, connects or lets go of the connection.
        is_changing: Whether its holder is at the connection itself.
        open_batch: Makes the submission of a new batch.
        send: Sends a batch that leaves.
        is_idle: Whether no call is under way.
        caller: The call that runs here, if one does.
        tell: Told why calls cannot leave that were to leave in time.
    """

    def __init__(
        self,
        lock: threading.RLock,
        is_changing: Callable[[], bool],
        open_batch: Callable[[], Submission],
        send: Callable[[Task[Any, Any], Submission, Packed, int, Caller | None], None],
        is_idle: Callable[[], bool],
        caller: Callable[[], Caller | None],
        tell: Callable[[RunnerError], None],
    ) -> None:
        self._tell = tell
        self._open_batch = open_batch
        self._send = send
        self._is_idle = is_idle
        self._caller = caller
        # It is held again by a signal handler that interrupts its holder, and sees by the second that it must not go on.
        self._lock = lock
        self._is_changing = is_changing
        self._is_in_use = False
        self._open: dict[Task[Any, Any], OpenBatch] = {}
        self._flusher: threading.Thread | None = None
        self._flusher_wanted = threading.Semaphore(0)
        self._flusher_awake = False

    def add(self, task: Task[Any, Any], entry: Any) -> tuple[Submission, int]:
        """Put a call into the open batch of its task.

        Args:
            task: The task that is called.
            entry: A tuple of plain values, frozen arguments, or a prepared call.

        Returns:
            The batch, and the call's index in it.
        """
        with self._lock:  # per call
            if self._is_in_use:
                self.refuse_handler()
            self._is_in_use = True
            try:
                return self._add(task, entry)
            finally:
                self._is_in_use = False

    def _add(self, task: Task[Any, Any], entry: Any) -> tuple[Submission, int]:
        batch = self._open.get(task)
        now = time.monotonic()
        caller = None if context.worker_of is None else self._caller()
        if batch is not None and batch.caller is not caller:
            self._leave(task)
            batch = None
        if batch is None:
            idle = self._is_idle()
            submission = self._open_batch()
            if idle:
                submission.count = submission.unfinished = 1
                self._send(task, submission, pack_call(task, entry), 0, caller)
                return submission, 0
            batch = self._open[task] = OpenBatch(submission, now, caller)
            if context.worker_of is not None:
                context.collecting.add(self.flush)
            self._wake_flusher()
        entries = batch.entries
        index = len(entries)
        if type(entry) is PreparedCall:
            batch.frozen_bytes += entry.blob_bytes()
            batch.prepared[index] = entry
            entry = entry.entry
        entries.append(entry)
        submission = batch.submission
        submission.count = submission.unfinished = index + 1
        if type(entry) is Frozen:
            batch.frozen_bytes += len(entry)
        if index + 1 == MAX_BATCH_CALLS or now - batch.opened >= BATCH_AGE_S or batch.frozen_bytes >= MAX_BATCH_BYTES:
            self._leave(task)
        return submission, index

    def flush(self, older_than_s: float = 0.0) -> None:
        """Let the open batches leave that are at least this old."""
        if not self._open:
            return
        with self._lock:
            self.refuse_handler()
            self._leave_all(older_than_s)

    def settle(self) -> None:
        """Let the open batches leave, and wait for those that another thread is just sending."""
        self.flush()
        if self._is_in_use:
            self.refuse_handler()  # It waits for the lock.

    def refuse_handler(self) -> None:
        """See to it that this is no signal handler that has interrupted its own thread here.

        Raises:
            RunnerError: It is.
        """
        with self._lock:
            if self._is_in_use or self._is_changing():
                raise asked_in_handler("made calls")

    def _leave_all(self, older_than_s: float = 0.0) -> None:
        self._is_in_use = True
        try:
            latest = time.monotonic() - older_than_s
            for task in [task for task, batch in self._open.items() if batch.opened <= latest]:
                self._leave(task)
        finally:
            self._is_in_use = False

    def flush_within(self, seconds: float) -> None:
        """Let all open batches leave, unless another thread is at them for longer than this."""
        if self._lock.acquire(timeout=seconds):
            try:
                if not self._is_in_use:
                    self._leave_all()
            finally:
                self._lock.release()

    def close(self) -> threading.Thread | None:
        """Let everything leave, and the helper thread end, which is returned if there is one; a later call makes another one."""
        with self._lock:
            self.refuse_handler()
            try:
                self._leave_all()
            finally:
                flusher, self._flusher = self._flusher, None
                self._flusher_wanted.release()
                self._flusher_wanted = threading.Semaphore(0)
                self._flusher_awake = False
        return flusher

    def forget(self) -> None:
        """The open batches are lost; whoever waits for one of them is told by its submission."""
        self._open = {}

    def _leave(self, task: Task[Any, Any]) -> None:
        batch = self._open.pop(task, None)
        if batch is None:
            return  # It was forgotten meanwhile.
        packed = _packed(batch.entries, batch.prepared, constant_of(task))
        self._send(task, batch.submission, packed, 0, batch.caller)

    def _wake_flusher(self) -> None:
        """While a batch is open, a helper thread sees to it that it leaves in time."""
        if self._flusher is None:
            self._flusher = threading.Thread(
                target=self._flush_in_time, args=(self._flusher_wanted,), name="pynenc-flusher", daemon=True
            )
            self._flusher.start()
        if not self._flusher_awake:
            self._flusher_awake = True
            self._flusher_wanted.release()

    def _flush_in_time(self, wanted: threading.Semaphore) -> None:
        me = threading.current_thread()
        while True:
            wanted.acquire()
            while self._flusher is me:
                time.sleep(BATCH_AGE_S)
                try:
                    self.flush(BATCH_AGE_S)
                except RunnerError as error:
                    self._tell(error)
                with self._lock:
                    if self._flusher is me and not self._open:
                        self._flusher_awake = False
                        break
            if self._flusher is not me:
                return


class Chunks:
    """Cuts the items of a `parallelize` or a stream into batches.

    A collection, or `zip` over collections, is taken a batch at a time. A generator may take its time for each item, so
    it is asked for one at first, and for more while they come quickly. It may also use an object again for its next
    item, so its items are pickled one by one as they come.

    Attributes:
        error: What kept the items from going on, where it is kept until what came before has been taken.
    """

    def __init__(
        self,
        task: Task[Any, Any],
        items: Iterable[Any],
        common: Mapping[str, Any] | None = None,
        constant: Extras = NONE,
        freezer: Freezes | None = None,
        keeps_error: bool = False,
    ) -> None:
        self._task = task
        self._keeps_error = keeps_error
        self.error: Exception | None = None
        self._freezer = freezer
        self._common = common
        self._constant = constant
        self._has_keys = task.key_rules is not None and task.key_rules.by_arguments
        self._source = iter(items)
        self._rest: Iterator[Packed] = iter(())
        self._is_collection = is_collection(items)
        self._count = MAX_BATCH_CALLS if self._is_collection else 1

    def take(self, size: int) -> list[Packed]:
        """Batches of up to `size` items together; none when there are no more items. What was taken before has been sent.

        Raises:
            TypeError: An item is no valid call; those before it that are not in a batch yet are not sent either.
            Exception: Whatever the source raises, likewise. Where errors are kept, there are no more items instead.
        """
        if self._freezer is not None:
            self._freezer.sent()
        if (packed := next(self._rest, None)) is not None:
            return [packed]
        if self.error is not None:
            return []
        source = islice(self._source, min(size, self._count))
        if self._is_collection:
            chunk = list(source)
            packed = None if self._has_keys or self._common else _pack_columns(self._task, chunk, self._constant)
            if packed is not None and len(packed.payload) <= MAX_BATCH_BYTES:
                return [packed]
            # One at a time: where calls have large arguments, the first begin before the last are written.
            self._rest = pack_entries(self._frozen(chunk), self._constant)
            return list(islice(self._rest, 1))
        began = time.monotonic()
        batches = list(pack_entries(self._frozen(source), self._constant))
        took = time.monotonic() - began
        self._count = min(MAX_BATCH_CALLS, 2 * self._count) if 2 * took <= PULL_S else max(1, self._count // 2)
        return batches

    def _frozen(self, items: Iterable[Any]) -> Iterator[Any]:
        """Items as they can wait, up to one that is none if that is to be told of later."""
        try:
            yield from self._as_they_wait(items)
        except Exception as error:  # the user's own iterator, or pickling
            if not self._keeps_error:
                raise
            self.error = error

    def _as_they_wait(self, items: Iterable[Any]) -> Iterator[Any]:
        """They are as they are when they are tuples of numbers, else as the task says."""
        task, scalars = self._task, SCALARS
        fitting = -1
        if self._has_keys or self._common:
            for item in items:
                yield prepare(task, *call_of(task, item, self._common), self._common, self._freezer)
            return
        for item in items:  # per call
            if type(item) is tuple and (len(item) == fitting or task.takes_positional(len(item))):
                fitting = len(item)
                for value in item:
                    if type(value) not in scalars:
                        break
                else:
                    yield item
                    continue
            yield freeze_call(task, *call_of(task, item), self._freezer)


def is_collection(items: Iterable[Any]) -> bool:
    """Whether all items are there already: those of a collection, or of several as `zip` puts them together."""
    if type(items) is zip:
        return all(type(one) in _THEIR_ITERATORS for one in items.__reduce__()[1])
    return isinstance(items, _COLLECTIONS)


def constant_of(task: Task[Any, Any]) -> Extras:
    """What holds for all calls of a task alike."""
    rules = task.key_rules
    return NONE if rules is None else rules.constant


def pack_call(task: Task[Any, Any], entry: Any) -> Packed:
    """A batch of one call."""
    prepared: dict[int, PreparedCall] = {}
    if type(entry) is PreparedCall:
        prepared[0] = entry
        entry = entry.entry
    return _packed([entry], prepared, constant_of(task))


def pack_items(
    task: Task[Any, Any],
    items: Iterable[Any],
    batch_calls: int,
    common: Mapping[str, Any],
    constant: Extras,
    freezer: Freezes | None = None,
) -> Iterator[Packed]:
    """The batches of a `parallelize`.

    Items are pickled as they are taken: what the caller does to them afterwards is not seen.
    """
    chunks = Chunks(task, items, common, constant, freezer)
    while batches := chunks.take(batch_calls):
        yield from batches


def pack_entries(frozen: Iterable[Any], constant: Extras) -> Iterator[Packed]:
    """Pack calls that are frozen or prepared already, as many together as a batch may hold in bytes."""
    entries: list[Any] = []
    prepared: dict[int, PreparedCall] = {}
    blobs: set[Any] = set()
    held = 0
    for call in frozen:
        is_prepared = type(call) is PreparedCall
        entry = call.entry if is_prepared else call
        if type(entry) is Frozen:
            weight = call.weight(blobs) if is_prepared else len(entry)
            if entries and held + weight > MAX_BATCH_BYTES:
                yield _packed(entries, prepared, constant)
                entries, prepared, blobs, held = [], {}, set(), 0
                weight = call.weight(blobs) if is_prepared else weight
            held += weight
        if is_prepared:
            blobs.update(call.blobs)
            prepared[len(entries)] = call
        entries.append(entry)
    if entries:
        yield _packed(entries, prepared, constant)


def _packed(entries: list[Any], prepared: dict[int, PreparedCall], constant: Extras) -> Packed:
    return Packed(len(entries), *pack_arguments(entries), extras_of(len(entries), prepared, constant))


def _pack_columns(task: Task[Any, Any], chunk: list[Any], extras: Extras) -> Packed | None:
    """Pack tuples of plain values a column at a time: nothing is done per call."""
    import pickle

    count = len(chunk)
    if not count or list(map(type, chunk)).count(tuple) != count:
        return None
    width = len(chunk[0])
    if not width or not task.takes_positional(width) or list(map(len, chunk)).count(width) != count:
        return None
    columns = columns_of(chunk, width)
    if not all(map(plain_column, columns)):
        return None
    return Packed(count, Packing.COLUMNS, pickle.dumps(columns, PROTOCOL), extras)
