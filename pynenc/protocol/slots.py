"""Slots: one line of shared memory per worker, which says what it runs and where it must stop.

The worker writes the position of each call before it starts it; the supervisor writes a cut. Nobody sends a message
and nobody calls the kernel for it. A cut is safe without a lock because each side writes before it reads: the
worker writes its position and then reads the cut; the supervisor writes the cut, waits `SETTLE_S` until every
store buffer has long been drained, and then reads the position.
"""

from __future__ import annotations

import mmap

SLOT_BYTES = 64
"""A cache line, so that workers do not slow each other."""

MAX_SLOTS = 1024
POSITION, CUT_FROM, CUT_TO, STARTED, OVERDUE, DEADLINE = range(6)
"""Fields of a slot, eight bytes each: unsigned integers, and two times in monotonic seconds.

STARTED is when the call started or a little earlier: a worker notes it when a lease begins and when it ships, so at
least about every 10 ms between calls, and not for each call that is over in a microsecond. While a module is imported
for a call it lies ahead, so that the call has not run for any time yet.

A worker that runs many calls at once begins them in the order of their positions, so POSITION is that of the last it has begun.
Its other fields are about one of them: the call at position OVERDUE, begun at STARTED, has to be over at DEADLINE.
"""

NO_CUT = 0
"""Positions begin at 1."""

NO_DEADLINE = 0.0
"""No time is that early."""

SETTLE_S = 0.001


class Slot:
    """One worker's line.

    Args:
        memory: The shared memory of all slots.
        number: Which slot.
    """

    __slots__ = ("numbers", "times")

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        line = memoryview(memory)[number * SLOT_BYTES : (number + 1) * SLOT_BYTES]
        self.numbers = line.cast("Q")
        self.times = line.cast("d")

    def clear(self) -> None:
        """Make the slot fresh for the next worker that gets it."""
        self.numbers[POSITION] = 0
        self.numbers[CUT_TO] = 0
        self.numbers[CUT_FROM] = NO_CUT
        self.times[STARTED] = 0.0
        self.times[DEADLINE] = NO_DEADLINE

    def cut(self, start: int, stop: int) -> None:
        """Tell the worker to leave out the calls at positions `[start, stop)`."""
        self.numbers[CUT_TO] = stop
        self.numbers[CUT_FROM] = start

    def uncut(self) -> None:
        """Take the cut away."""
        self.numbers[CUT_FROM] = NO_CUT

    def must_end(self, position: int, started: float, deadline: float) -> None:
        """Tell the supervisor which of the calls that run at once has to be over first, and when."""
        self.times[DEADLINE] = NO_DEADLINE  # Whoever reads meanwhile sees nothing rather than half of it.
        self.numbers[OVERDUE] = position
        self.times[STARTED] = started
        self.times[DEADLINE] = deadline

    def overdue(self, now: float) -> int:
        """The position of the call that should have been over by now; 0 when there is none."""
        deadline = self.times[DEADLINE]
        position = int(self.numbers[OVERDUE])
        return position if NO_DEADLINE < deadline <= now and deadline == self.times[DEADLINE] else 0

    def leave(self) -> None:
        """Go on with a private copy; whoever holds the views of the shared one finds them released."""
        numbers, times = self.numbers, self.times
        line = memoryview(bytearray(numbers))
        self.numbers, self.times = line.cast("Q"), line.cast("d")
        numbers.release()
        times.release()

    def release(self) -> None:
        """Let go of the shared memory, so that it can be closed."""
        self.numbers.release()
        self.times.release()
