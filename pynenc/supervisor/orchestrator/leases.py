"""What is in the hands of one worker: its leases in the order in which it runs them.

A worker runs its leases first come, first served, so its outcomes come in the same order, and one number, the
position, says how far it is. One that runs many calls at once begins them in that order, and they end in any.
"""

from __future__ import annotations

from collections import deque

from pynenc.named_tuples import NamedTuple
from pynenc.supervisor.broker import Range
from pynenc.supervisor.events import Ended


class Leased(NamedTuple):
    """A range of calls in a worker's hands; `position` is that of its first call, `call_s` what a call was expected to take."""

    position: int
    calls: Range
    call_s: float

    @property
    def end(self) -> int:
        return self.position + self.calls.stop - self.calls.first

    def before(self, position: int) -> Leased:
        """The part that lies before a position inside."""
        stop = self.calls.first + position - self.position
        return self._replace(calls=self.calls._replace(stop=stop))

    def since(self, position: int) -> Leased:
        """The part that begins at a position inside."""
        first = self.calls.first + position - self.position
        return self._replace(position=position, calls=self.calls._replace(first=first))


class Wear:
    """What a worker has been through, which says whether it is to be replaced by a fresh one.

    Attributes:
        calls: How many calls it was given that were not taken back.
        used: Bytes that it took for itself when that was read last.
        read_at: When that was; monotonic seconds.
        position: Where it was then.
        is_full: Whether that is so much that it is to be replaced unless it gives some back.
        is_old: Whether it is older than workers may be.
        is_unfit: Whether it has imported other modules than calls meant that it was given.
    """

    __slots__ = ("calls", "is_full", "is_old", "is_unfit", "position", "read_at", "used")

    def __init__(self) -> None:
        self.calls = 0
        self.used = 0
        self.read_at = 0.0
        self.position = 0
        self.is_full = self.is_old = self.is_unfit = False


class WorkerLeases:
    """The leases of one worker.

    Attributes:
        wear: What it has been through.
        next_position: The position that the next call will have.
        load_s: Seconds of work that the leases were expected to be.
        reached: The position behind the last call that has its outcome.
        cut: The positions that the worker was told to leave out; while there is a cut it gets nothing new.
        serial: Which cut it is, counted from the worker's start.
        settled: Whether the worker is known to have seen the cut.
        wanted: Where to cut as soon as the cut has settled, when that is earlier.
        paused: The calls that wait for others, the innermost last, each with whether calls behind it in its lease were cut.
        awaited: The batches that each of them waits for.
        began: When each of them began; monotonic seconds.
        resumed: The position of the call that went on last.
        resuming: Whether the innermost of them could go on, but for calls that run beside which it may not run.
        seen: The position where it was when it was last looked whether it is stopped.
        threads: How many other threads of the call that runs wait.
        doomed: The position of the call because of which the worker is to be ended, and why.
        is_dying: Whether it is being ended.
    """

    __slots__ = (
        "awaited",
        "began",
        "cut",
        "doomed",
        "is_dying",
        "load_s",
        "next_position",
        "outstanding",
        "paused",
        "reached",
        "resumed",
        "resuming",
        "seen",
        "serial",
        "settled",
        "threads",
        "wanted",
        "wear",
    )

    def __init__(self) -> None:
        self.outstanding: deque[Leased] = deque()
        self.next_position = 1
        self.reached = 1
        self.load_s = 0.0
        self.cut: tuple[int, int] | None = None
        self.paused: list[tuple[Leased, bool]] = []
        self.awaited: list[tuple[int, ...]] = []
        self.began: list[float] = []
        self.threads = 0
        self.resumed = 0
        self.resuming = False
        self.seen = 0
        self.serial = 0
        self.settled = False
        self.wanted: int | None = None
        self.doomed: tuple[int, Ended] | None = None
        self.is_dying = False
        self.wear = Wear()

    def add(self, calls: Range, call_s: float) -> int:
        """Put calls into the worker's hands; the position of the first of them."""
        position = self.next_position
        count = calls.stop - calls.first
        self.outstanding.append(Leased(position, calls, call_s))
        self.next_position += count
        self.wear.calls += count
        self.load_s += count * call_s
        return position

    def done(self, batch: int, first: int, stop: int) -> bool:
        """Strike off calls that have their outcome; False when the worker does not hold them."""
        if not self.outstanding:
            return False
        head = self.outstanding[0]
        calls = head.calls
        if calls.batch != batch or calls.first != first or stop > calls.stop:
            return False
        self.reached = head.position + stop - first
        if stop == calls.stop:
            self.outstanding.popleft()
        else:
            self.outstanding[0] = head.since(self.reached)
        self._unload(stop - first, head.call_s)
        return True

    def take_since(self, position: int) -> list[Leased]:
        """Take all calls from a position on out of the worker's hands, the last lease first."""
        taken = []
        while self.outstanding and self.outstanding[-1].end > position:
            last = self.outstanding.pop()
            if last.position < position:
                self.outstanding.append(last.before(position))
                last = last.since(position)
            count = last.calls.stop - last.calls.first
            self.wear.calls -= count
            self._unload(count, last.call_s)
            taken.append(last)
        return taken

    def unstarted(self, position: int) -> tuple[int, int]:
        """The positions `[start, stop)` that a worker at `position` has not begun and was not told to leave out."""
        if not self.outstanding:
            return 0, 0
        start = max(position + 1, self.outstanding[0].position)
        stop = self.cut[0] if self.cut else self.outstanding[-1].end
        return start, max(start, stop)

    def has_unstarted(self, position: int) -> bool:
        """Whether there are such calls."""
        start, stop = self.unstarted(position)
        return start < stop

    def cut_at(self, start: int) -> bool:
        """Cut from this position on; False when that has to wait until the cut there is has settled."""
        if self.cut is not None and self.cut[0] <= start:
            return False
        if self.cut is not None and not self.settled:
            self.wanted = start if self.wanted is None else min(start, self.wanted)
            return False
        self.cut = (start, self.next_position)
        self.serial += 1
        self.settled = False
        self.wanted = None
        return True

    def pause(self, behind: bool, awaited: tuple[int, ...], began: float) -> None:
        """Set the one call in hand aside, which waits.

        One cut serves all calls that wait in this worker: it begins behind the outermost that needs it and ends before
        what is leased from now on.

        Args:
            behind: Whether the worker holds calls behind it in the same lease, to which it will come.
            awaited: The batches that it waits for.
            began: When it began; monotonic seconds.
        """
        waiting = self.outstanding.pop()
        if behind:
            start = self.cut[0] if self.cut is not None and self.paused else waiting.end
            self.cut = (start, self.next_position)
        elif not self.paused:
            self.cut = None  # The worker drops what it held, so it will not come to it.
        self.serial += 1
        self.settled = True
        self.wanted = None
        self.paused.append((waiting, behind))
        self.awaited.append(awaited)
        self.began.append(began)
        self.load_s = 0.0

    def resume(self) -> bool:
        """Take the innermost call that waited into hand again; False when nothing needs the cut any more."""
        self.resuming = False
        self.resumed = self.paused[-1][0].position
        waiting, behind = self.paused.pop()
        self.awaited.pop()
        self.began.pop()
        self.outstanding.append(waiting)
        self.load_s = waiting.call_s
        return behind or bool(self.paused)

    def take_all(self) -> list[Leased]:
        """Take everything out of the hands of a worker that is gone, the last first."""
        taken = self.take_since(0)
        taken += [waiting for waiting, _ in reversed(self.paused)]
        self.paused.clear()
        return taken

    @property
    def is_idle(self) -> bool:
        """Whether it could run something but holds nothing."""
        return not self.outstanding and not self.paused

    @property
    def is_waiting(self) -> bool:
        """Whether it only waits for calls that others run, so that its processor is free."""
        return bool(self.paused and not self.outstanding) or self.threads > 0

    def cut_again(self) -> None:
        """Have the same cut looked at once more."""
        self.serial += 1
        self.settled = False

    def uncut(self) -> None:
        """The cut is reached, or never will be."""
        self.cut = self.wanted = None
        if not self.is_dying:
            self.doomed = None

    def leased_at(self, position: int) -> Leased | None:
        """The lease to which a position belongs, when its call has no outcome yet."""
        return next((one for one in self.outstanding if one.position <= position < one.end), None)

    @property
    def may_hold_unbegun(self) -> bool:
        """Whether it may hold calls that it has not begun, as far as it was looked at."""
        return bool(self.outstanding) and self.cut is None and self.outstanding[-1].end - 1 > self.seen

    @property
    def several(self) -> bool:
        """Whether the worker holds more calls than the one it may be running."""
        held = self.outstanding
        return bool(held) and held[-1].end - held[0].position > 1

    def _unload(self, count: int, call_s: float) -> None:
        # Sums of floats drift; nothing in hand is no load at all.
        self.load_s = self.load_s - count * call_s if self.outstanding else 0.0


class ConcurrentLeases:
    """The calls of one worker that runs many at once.

    Attributes:
        held: Each of its calls, by position.
        running: How many of them do not wait for others, by task.
        waiting: The positions of those that do, and the batches that they wait for.
        doomed: The position of the call because of which the worker is to be ended, and why.
        is_dying: Whether it is being ended because of all that it holds.
        alone: The position of the call that is to have no company; 0 when none is.
        wear: What it has been through.
    """

    __slots__ = ("_positions", "alone", "doomed", "held", "is_dying", "next_position", "running", "waiting", "wear")

    cut = None
    """It is given nothing that it might have to leave out."""

    def __init__(self) -> None:
        self.held: dict[int, Leased] = {}
        self.running: dict[int, int] = {}
        self.waiting: dict[int, tuple[int, ...]] = {}
        self.doomed: tuple[int, Ended] | None = None
        self.is_dying = False
        self.alone = 0
        self.wear = Wear()
        self.next_position = 1
        self._positions: dict[tuple[int, int], int] = {}

    def add(self, calls: Range) -> int:
        """Put calls into the worker's hands; the position of the first of them."""
        position = self.next_position
        for index in range(calls.first, calls.stop):
            self.held[self.next_position] = Leased(self.next_position, calls.part(index, index + 1), 0.0)
            self._positions[calls.batch, index] = self.next_position
            self.next_position += 1
        self.wear.calls += calls.stop - calls.first
        self._count(calls.task, calls.stop - calls.first)
        return position

    def done(self, batch: int, first: int, stop: int) -> bool:
        """Strike off calls that have their outcome; False when the worker does not hold them."""
        indices = range(first, stop)
        if any((batch, index) not in self._positions for index in indices):
            return False
        for index in indices:
            leased = self.held.pop(self._positions.pop((batch, index)))
            if self.waiting.pop(leased.position, None) is None:
                self._count(leased.calls.task, -1)
            if leased.position == self.alone:
                self.alone = 0
        return True

    def wait(self, leased: Leased, awaited: tuple[int, ...]) -> None:
        """One of the calls waits for calls of these batches."""
        if leased.position not in self.waiting:
            self._count(leased.calls.task, -1)
        self.waiting[leased.position] = awaited

    def go_on(self, position: int) -> None:
        """One of the calls does not wait any more."""
        del self.waiting[position]
        self._count(self.held[position].calls.task, 1)

    def position_of(self, batch: int, index: int) -> int | None:
        """The position of a call; None when the worker does not hold it."""
        return self._positions.get((batch, index))

    def take_all(self) -> list[Leased]:
        """Take everything out of the hands of a worker that is gone, the last first."""
        return [self.held[position] for position in sorted(self.held, reverse=True)]

    def take_since(self, position: int) -> list[Leased]:
        """Take the calls from a position on, which it has not begun, out of the worker's hands, the last first."""
        taken = [self.held[one] for one in sorted(self.held, reverse=True) if one >= position]
        for leased in taken:
            self.done(leased.calls.batch, leased.calls.first, leased.calls.stop)
        self.wear.calls -= len(taken)
        return taken

    @property
    def takes_more(self) -> bool:
        """Whether it may be given calls beside those that it has. A call that waits has company: what it waits for."""
        return self.doomed is None and not self.is_dying and (not self.alone or self.alone in self.waiting)

    @property
    def only_waits(self) -> bool:
        """Whether none of its calls runs."""
        return self.doomed is None and not self.is_dying and len(self.held) == len(self.waiting)

    def _count(self, task: int, change: int) -> None:
        self.running[task] = self.running.get(task, 0) + change
