"""Run leases and ship their results."""

from __future__ import annotations

import contextlib
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

from pynenc import context, execution
from pynenc.blobs.references import with_references
from pynenc.lineage import Caller, identity_of
from pynenc.protocol.messages import (
    MAX_BATCH_CALLS,
    NOT_RETRIABLE,
    Ending,
    Failure,
    Kind,
    Lease,
    Packing,
    Results,
    format_invocation_id,
    invocation_number,
    number_frame,
)
from pynenc.protocol.slots import CUT_FROM, CUT_TO, POSITION, Slot
from pynenc.serializer import Referring, freeze, leased_arguments, pack
from pynenc.worker.base import DeclaredTask, let_collected_calls_leave
from pynenc.worker.forks import end_child, end_child_in_lease

SHIP_S = 0.02
"""Results are shipped about so often while more calls run, and at once when none are left."""


class Shipper:
    """Collects the outcomes of calls and sends them together.

    The main thread runs calls and adds; it sends when results are due. While one call runs for long, a helper thread sends what
    came before it. The lock covers everything but the appends to `values` and `ends`, which a lease's loop makes in
    this order: whatever has an end has its value. Quick calls have no ends: they count as evenly spread over the time
    until they are shipped.
    """

    def __init__(self, send: Callable[[bytes], None], worker: int, freeze: Callable[[Any], Any] = freeze) -> None:
        self.freeze = freeze
        self.values: list[Any] = []
        self.ends: list[float] = []
        self._send = send
        self._worker = worker
        self._lock = threading.Lock()
        self._frames: list[bytes] = []
        self._batch = 0
        self._first = 0
        self._attempt = 0
        self._retriable: tuple[type[BaseException], ...] = ()
        self._started = 0.0
        self._is_timed = True
        self.due = 0.0
        self._thread: threading.Thread | None = None
        self._watched = threading.Semaphore(0)
        self._watching = False

    def begin(self, lease: Lease, retriable: tuple[type[BaseException], ...], is_timed: bool = True) -> None:
        """The calls that follow are those of this lease.

        Args:
            lease: The lease.
            retriable: The exceptions after which a call may be tried again.
            is_timed: Whether each call's end is noted.
        """
        end_child()
        with self._lock:
            self._close_stretch()
            self._batch = lease.batch
            self._first = lease.first
            self._attempt = lease.attempt
            self._retriable = retriable
            self._is_timed = is_timed
            self._started = time.monotonic()
            if not self._frames:
                self.due = self._started + SHIP_S

    def failed(self, error: BaseException, now: float) -> None:
        """Add the exception of the call that just ended."""
        end_child_in_lease(error)
        self.failed_with(execution.describe(error), now, execution.retry_delay(error, self._retriable))

    def failed_with(self, raised: execution.Raised, now: float, retry_s: float) -> None:
        """Add an exception that is ready to travel."""
        with self._lock:
            self._close_stretch()
            call = (self._batch, self._first, self._worker, self._attempt)
            self._frames.append(failure_frame(call, raised, self._started, now, retry_s))
            self._first += 1
            self._started = now

    def take_times(self, now: float) -> None:
        """From now on each call's end is noted."""
        with self._lock:
            self._close_stretch()
            self._is_timed = True
            self._started = now

    def cut(self, position: int) -> None:
        """Say that nothing was run from this position on."""
        with self._lock:
            self._close_stretch()
            self._frames.append(number_frame(Kind.CUT, position))
        self.ship()

    def ship(self) -> None:
        """Send everything that has an outcome, behind the calls that were made on the way to it."""
        end_child()
        let_collected_calls_leave()
        with self._lock:
            self._close_stretch()
            if self._frames:
                message = b"".join(self._frames)
                self._frames.clear()
                self._send(message)
            self.due = time.monotonic() + SHIP_S

    def suspend(self) -> tuple[Any, ...]:
        """What `resume` takes when the call that waits now goes on. Everything before it is shipped."""
        return self._batch, self._first, self._attempt, self._retriable, self._is_timed, self._started

    def resume(self, suspended: tuple[Any, ...]) -> None:
        """Go on with the call that waited."""
        with self._lock:
            self._close_stretch()
            self._batch, self._first, self._attempt, self._retriable, self._is_timed, self._started = suspended

    def watch(self) -> None:
        """From now on a call may keep earlier results waiting: have the helper thread look after them."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._ship_in_time, name="pynenc-shipper", daemon=True)
            self._thread.start()
        if not self._watching:
            self._watching = True
            self._watched.release()

    def unwatch(self) -> None:
        """Nothing runs, everything is shipped."""
        self._watching = False

    def _close_stretch(self) -> None:
        """Make a frame of the results that lie side by side."""
        count = len(self.ends if self._is_timed else self.values)
        if not count:
            return
        values, ends = self.values[:count], self.ends[:count]
        del self.values[:count], self.ends[:count]
        ended = ends[-1] if ends else time.monotonic()
        self._frames.append(results_frame(self._batch, self._first, self._worker, values, self._started, ended, ends))
        self._first += count
        self._started = ended

    def _ship_in_time(self) -> None:
        while True:
            self._watched.acquire()
            while self._watching:
                time.sleep(max(SHIP_S, self.due + SHIP_S - time.monotonic()))
                if (self._frames or self.values) and time.monotonic() >= self.due + SHIP_S:
                    with contextlib.suppress(OSError):  # The main thread will find the same and end.
                        self.ship()


def results_frame(
    batch: int, first: int, worker: int, values: list[Any], started: float, ended: float, ends: list[float]
) -> bytes:
    """The results of calls that lie side by side, as they travel.

    Args:
        batch: Their batch.
        first: The index of the first of them.
        worker: The number of the worker that ran them.
        values: The frozen results.
        started: When the first call began; monotonic seconds, as are all times here.
        ended: When the last call ended.
        ends: When each of them ended; empty when they are evenly spread.
    """
    packing, payload = pack(values)
    if packing == Packing.ROWS:
        references = [blob for value in values if type(value) is Referring for blob in value.references]
        if references:
            packing, payload = with_references(packing, payload, references)
    began, times = started + time.time() - time.monotonic(), array("d", ends).tobytes()
    last = first + len(values)
    return Results(batch, first, last, worker, packing, began, ended - started, times, payload).to_frame()


def failure_frame(
    call: tuple[int, int, int, int],
    raised: execution.Raised,
    started: float,
    ended: float,
    retry_s: float,
    ending: Ending = Ending.FAILED,
) -> bytes:
    """An exception as it travels.

    Args:
        call: The batch, the index, the worker that ran it, and how many attempts there were before.
        raised: The exception in words, and pickled.
        started: When the call began; monotonic seconds.
        ended: When it ended.
        retry_s: After how many seconds it asks for another attempt, or `DEFAULT_DELAY`, or `NOT_RETRIABLE`.
        ending: What became of the call.
    """
    batch, index, worker, attempt = call
    offset = time.time() - time.monotonic()
    began = started + offset
    return Failure(batch, index, index + 1, worker, attempt, ending, retry_s, began, ended + offset, *raised).to_frame()


class RunningLease:
    """The lease that runs; makes the invocation objects when user code asks for them."""

    __slots__ = ("_caller", "_entries", "lease", "slot", "task")

    def __init__(self, task: Any, lease: Lease, slot: Slot) -> None:
        self.task = task
        self.lease = lease
        self.slot = slot
        self._caller: Caller | None = None
        self._entries: list[Any] | None = None

    @property
    def index(self) -> int:
        """The index in its batch of the call that runs now."""
        return self.lease.first + self.slot.numbers[POSITION] - self.lease.position

    def end(self) -> int:
        """The position behind the last call."""
        return self.lease.position + self.lease.stop - self.lease.first

    def task_id(self) -> str:
        return str(self.task.task_id)

    def invocation_id(self) -> str:
        return format_invocation_id(invocation_number(self.lease.batch, self.index))

    def caller(self) -> Caller:
        """The call that runs now, as those see it that it makes."""
        lease, index = self.lease, self.index
        number = invocation_number(lease.batch, index)
        if self._caller is None or self._caller.number != number:
            # Those that share arguments are not told apart from each other.
            own = b"" if lease.common else identity_of(self.task, self.entry())
            self._caller = Caller(number, lease.lineage, own)
        return self._caller

    def entry(self) -> Any:
        """The arguments of the call that runs now: a tuple, or frozen ones."""
        lease = self.lease
        if self._entries is None:
            self._entries = list(leased_arguments(lease.packing, lease.payload, lease.first, lease.stop))
        return self._entries[self.index - lease.first]

    def invocation(self) -> Any:
        return self.task.app.runner.view(self.task, self.lease.batch, self.index, MAX_BATCH_CALLS, self.lease.attempt)


def run(lease: Lease, declared: DeclaredTask, func: Callable[..., Any], slot: Slot, shipper: Shipper) -> int | None:
    """Run the calls of a lease.

    Returns:
        Up to which position leases are to be left out because of a cut, or None when all has run.
    """
    task = declared.task
    context.worker_running = RunningLease(task, lease, slot)
    shipper.begin(lease, task.retriable_exceptions, is_timed=declared.stride == 1)
    began = time.monotonic()
    try:
        try:
            entries = leased_arguments(lease.packing, lease.payload, lease.first, lease.stop)
        except Exception as error:  # whatever unpickling raises
            return fail(lease, error, slot, shipper)
        if declared.copies:
            entries = ((entry,) for entry in entries)
        positions = range(lease.position, lease.position + lease.stop - lease.first)
        stopped_at = execution.run_lease(func, entries, positions, slot, shipper, declared.stride)
        end_child()  # The last call may have forked.
    finally:
        context.worker_running = None
    if stopped_at is None:
        took = (now := time.monotonic()) - began
        declared.learn(len(positions), took)
        if now + 0.5 * took >= shipper.due:
            # In the middle of the next lease they would be due: that would have two frames, and two rows, for one.
            shipper.ship()
        return None
    return _leave_out(stopped_at, slot, shipper)


def fail(lease: Lease, error: BaseException, slot: Slot, shipper: Shipper) -> int | None:
    """Fail every call of a lease whose task cannot be imported, or whose arguments cannot be read; returns what `run` does."""
    end_child(error)
    raised = execution.describe(error)
    shipper.begin(lease, ())
    for position in range(lease.position, lease.position + lease.stop - lease.first):
        slot.numbers[POSITION] = position
        if (cut := slot.numbers[CUT_FROM]) and cut <= position < slot.numbers[CUT_TO]:
            # Others have these calls by now, and the supervisor waits for a word.
            return _leave_out(position, slot, shipper)
        shipper.failed_with(raised, time.monotonic(), NOT_RETRIABLE)
    return None


def _leave_out(position: int, slot: Slot, shipper: Shipper) -> int:
    """A cut keeps the calls from this position on from running; up to which position."""
    dropped_to: int = slot.numbers[CUT_TO]
    shipper.cut(position)
    return dropped_to
