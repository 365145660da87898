"""The blobs as the supervisor keeps them: freed when nobody refers to them, recycled, moved to files, found after a death.

A blob belongs to its writer until somebody refers to it: a batch or results that came, or a client that says so. What neither
has a living writer nor is referred to is left over by somebody who died, and freed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pynenc.blobs.budget import Budget
from pynenc.blobs.directory import MAX_EXCESS, MIN_HUGE_BYTES, TOKEN_BYTES, BlobDirectory, Segment
from pynenc.blobs.references import Reference, from_column, split_results
from pynenc.protocol.messages import Results, invocation_number
from pynenc.state_backend.store import Store
from pynenc.supervisor.references import Holder, Kind, References

if TYPE_CHECKING:
    from pynenc.supervisor.loop import Loop

WARM_PARTS = 4
"""Warm segments take at most this part of the budget."""

KEPT_PARTS = 2
"""When results that nobody uses take more than this part of the budget, the oldest are moved to files."""

READY_BYTES = 1 << 22
"""When results of the same size of at least so many bytes come, a segment for the next one is made ready."""

TIDY_S = 0.05
"""How often mapped segments that were freed are looked at, at first."""

MOST_TIDY_S = 1.0
"""How often they are looked at in the long run; and after how long warm segments that nobody takes are given back."""

USES_BEFORE_HUGE = 2
"""A segment that was freed so often is moved into huge pages: it will be used again."""

MOST_COUNTED = 4096
"""Of so many segments it is known how often they were freed."""

MOVING_S = 0.02
"""How often it is looked at how far moving to files has come."""

DYING_S = 0.5
"""How long the system may take to let go of what a process held whose connection has ended."""


class Blobs:
    """All blobs of one supervisor.

    Args:
        directory: Where they lie.
        store: Tells who referred to them when another supervisor died, and is told who does.
        memory_bytes: How much shared memory they may take.

    Attributes:
        result_bytes: How large all are together that results in the state backend refer to.
    """

    def __init__(self, directory: BlobDirectory, store: Store, memory_bytes: int) -> None:
        self.loop: Loop
        self._directory = directory
        self._store = store
        self._memory_bytes = memory_bytes
        self._budget = Budget(directory, memory_bytes)
        self._references = References()
        self._arriving: dict[tuple[int, int], list[Reference]] = {}
        self._freed: list[bytes] = []
        self._gone: dict[bytes, None] = {}
        self._is_sweeping = False
        self._sweeps_again = False
        self._tidy_s = 0.0
        self._is_quiet = True
        self._kept_in_memory: dict[bytes, int] = {}
        self._kept_bytes = 0
        self._bytes_of_results: dict[int, int] = {}
        self.result_bytes = 0
        self._mover: threading.Thread | None = None
        self._moved: list[bytes] = []
        self._helpers: list[threading.Thread] = []
        self._uses: dict[int, int] = {}
        self._has_huge_pages = sys.platform == "linux"
        self._last_size = 0
        self._wanted = 0
        self._take_over()

    def _take_over(self) -> None:
        """Free what another supervisor left that nobody refers to."""
        for kind, number, name, size in self._store.blobs():
            self._references.hold(Holder(Kind(kind), number), [Reference(name, size)])
            if kind == Kind.RESULTS:
                self._count_result(number, size)
        self._directory.remove_leftovers()
        self._sweep()

    # What comes.

    def batch_came(self, batch: int, column: bytes) -> None:
        """The calls of a new batch refer to blobs."""
        references = from_column(column)
        self._references.hold(Holder(Kind.ARGUMENTS, batch), references)
        self._store.add_blobs(Kind.ARGUMENTS, batch, references)

    def batch_finished(self, batch: int) -> None:
        """All calls of a batch have ended."""
        if not self._references:
            return  # As it mostly is.
        holder = Holder(Kind.ARGUMENTS, batch)
        if self._references.holds(holder):
            self._freed += self._references.release(holder)
            self._store.forget_blobs(*holder)

    def results_came(self, results: Results) -> Results:
        """Results that refer to blobs, as they are kept if the calls are still the worker's."""
        results, references = split_results(results)
        self._arriving[results.worker, invocation_number(results.batch, results.first)] = references
        return results

    def results_kept(self, results: Results) -> None:
        """They are kept."""
        if not self._arriving:
            return  # As it mostly is.
        number = invocation_number(results.batch, results.first)
        references = self._arriving.pop((results.worker, number), [])
        if not references:
            return
        self._references.hold(Holder(Kind.RESULTS, number), references)
        self._store.add_blobs(Kind.RESULTS, number, references)
        for name, size in references:
            self._count_result(number, size)
            if self._directory.is_in_memory(name):
                self._kept_in_memory[name] = size
                self._kept_bytes += size
            if size == self._last_size >= READY_BYTES:
                self._wanted = size
            self._last_size = size

    def results_dropped(self, numbers: Iterable[int]) -> None:
        """Results are not needed any more: those of these invocations, each the first of a stretch."""
        for number in numbers:
            holder = Holder(Kind.RESULTS, number)
            self._free_kept(self._references.release(holder))
            self._store.forget_blobs(*holder)
            self.result_bytes -= self._bytes_of_results.pop(number, 0)

    def client_holds(self, client: int, column: bytes) -> None:
        """A client refers to blobs."""
        self._references.hold(Holder(Kind.CLIENT, client), from_column(column))

    def client_releases(self, client: int, column: bytes) -> None:
        """A client refers to these no longer."""
        names = [reference.name for reference in from_column(column)]
        self._references.release(Holder(Kind.CLIENT, client), names)
        # Also those that it held under another supervisor and has not told this one of.
        self._freed += [name for name in names if name not in self._references]

    def client_left(self, numbers: Iterable[int]) -> None:
        """A client is gone that had these numbers."""
        for number in numbers:
            self._freed += self._references.release(Holder(Kind.CLIENT, number))
        self.somebody_died()

    def somebody_died(self) -> None:
        """A process is gone that may have written blobs which nobody was told of."""
        self._is_sweeping = self._sweeps_again = True

    def _look_again(self) -> None:
        # Not at once: results of a worker that has just died may have come that are not counted yet.
        self._is_sweeping = True

    def purge(self) -> None:
        """The state backend was purged: nothing there refers to blobs."""
        self._free_kept(self._references.release_all(Kind.RESULTS))
        self._freed += self._references.release_all(Kind.ARGUMENTS)
        self._bytes_of_results.clear()
        self.result_bytes = 0

    def _count_result(self, number: int, size: int) -> None:
        self._bytes_of_results[number] = self._bytes_of_results.get(number, 0) + size
        self.result_bytes += size

    # What becomes of them.

    @property
    def is_due(self) -> bool:
        """Whether there is something for `turn_over` to do."""
        return bool(self._freed or self._arriving or self._is_sweeping or self._kept_bytes)

    def turn_over(self) -> None:
        """What this turn brought is committed, and the rules know all of it: free what nobody refers to."""
        for references in self._arriving.values():  # The calls were taken from their worker in the meantime.
            self._freed += [name for name, _ in references if name not in self._references]
        self._arriving.clear()
        freed, self._freed = self._freed, []
        for name in freed:
            if name not in self._references and self._directory.free(name):
                self._gone[name] = None
                if self._has_huge_pages:
                    self._count_use(name)
        if freed:
            self._is_quiet = False
            self._recycle()
            self._tidy_in(TIDY_S)
        if self._is_sweeping:
            self._sweep()
            if self._sweeps_again:  # A process that is killed loses its connection before its locks.
                self.loop.call_in(DYING_S, self._look_again)
            self._is_sweeping = self._sweeps_again = False
        if self._kept_bytes > self._memory_bytes // KEPT_PARTS:
            self._move_oldest()
        if self._wanted:
            self._make_ready(self._wanted)
            self._wanted = 0

    def report(self) -> dict[str, Any]:
        """How many there are, how large, and who refers to them."""
        counts = self._references.counts()
        in_memory, in_files = self._directory.sizes()
        return {
            "blobs": len(self._references),
            "memory_bytes": in_memory,
            "file_bytes": in_files,
            "budget_bytes": self._memory_bytes,
            **{kind.name.lower(): list(counts[kind]) for kind in Kind},
        }

    def close(self) -> None:
        """Keep what calls and results refer to in files, and take away all else but what clients have that live."""
        for thread in [*self._helpers, *([self._mover] if self._mover is not None else [])]:
            thread.join()
        for name in list(self._references.sizes):
            if self._references.are_kept(name):
                self._move(name)
        living = self._directory.living_writers(workers=False)  # They may be about to start another supervisor.
        for name in list(self._directory.blobs()):
            if not self._references.are_kept(name) and name[:TOKEN_BYTES] not in living:
                self._directory.free(name)
        self._directory.remove_all(living)

    def _free_kept(self, names: Sequence[bytes]) -> None:
        self._freed += names
        for name in names:
            self._kept_bytes -= self._kept_in_memory.pop(name, 0)

    def _sweep(self) -> None:
        """Free what those wrote who died before they told anybody of it."""
        living: set[bytes] | None = None
        for name in self._directory.blobs():
            if name in self._references or name in self._gone:
                continue
            if living is None:
                living = self._directory.living_writers()
            if name[:TOKEN_BYTES] not in living and self._directory.free(name):
                self._gone[name] = None
        if living is not None:
            self._recycle()

    def _recycle(self) -> None:
        """Make warm segments of what was freed and is not mapped any more."""
        for name in list(self._gone):
            if self._directory.recycle(name):
                del self._gone[name]
        segments = self._directory.segments()
        excess, surplus = sum(one.size for one in segments) - self._memory_bytes // WARM_PARTS, []
        while excess > 0 and segments:
            surplus.append(segments.pop())
            excess -= surplus[-1].size
        self._remove(surplus)

    def _count_use(self, name: bytes) -> None:
        """A blob was freed: have its segment moved into huge pages if it has come back already."""
        try:
            fd = self._directory.open_freed(name)
        except OSError:
            return  # A writer has taken it already, or no descriptors are left.
        found, uses = os.fstat(fd), 0
        if found.st_size >= MIN_HUGE_BYTES:
            uses = self._uses.get(found.st_ino, 0) + 1
            if len(self._uses) > MOST_COUNTED:
                self._uses.clear()
            self._uses[found.st_ino] = uses
        if uses == USES_BEFORE_HUGE:
            self._help(self._make_huge, fd)  # As long as it is open nobody writes it over.
        else:
            os.close(fd)

    def _make_huge(self, fd: int) -> None:
        from pynenc.blobs.mapping import make_huge  # Brings ctypes, which most supervisors never need.

        try:
            self._has_huge_pages = make_huge(fd)
        except OSError:
            self._has_huge_pages = False
        finally:
            os.close(fd)

    def _tidy_in(self, seconds: float) -> None:
        if not self._tidy_s:
            self._tidy_s = seconds
            self.loop.call_in(seconds, self._tidy)

    def _tidy(self) -> None:
        """Look after what is mapped still, and give warm segments back that nobody takes."""
        before, self._tidy_s = self._tidy_s, 0.0
        self._recycle()
        if self._is_quiet and before >= MOST_TIDY_S:
            self._remove(self._directory.segments())
        self._is_quiet = True
        if self._gone or self._directory.segments():
            self._tidy_in(min(2 * before, MOST_TIDY_S))

    def _remove(self, segments: Sequence[Segment]) -> None:
        """Give memory back."""
        if segments:
            self._help(_remove_files, [one.path for one in segments])

    def _make_ready(self, size: int) -> None:
        """Have a segment for the next result of a size, now that results of this size come one after the other.

        Results stay, so there is none to be written over, and to take fresh memory from the system costs as much as to write
        to it. Workers need not wait for that.
        """
        if any(size <= one.size <= MAX_EXCESS * size for one in self._directory.segments()):
            return
        if self._budget.free_bytes() > size * WARM_PARTS and not any(one.is_alive() for one in self._helpers):
            self._help(self._directory.make_segment, size)
            self._is_quiet = False
            self._tidy_in(TIDY_S)

    def _help(self, work: Callable[..., None], *args: Any) -> None:
        """Do something beside the loop: with gigabytes it takes a while."""
        self._helpers = [one for one in self._helpers if one.is_alive()]
        thread = threading.Thread(target=work, args=args, name="pynenc-blobs")
        thread.start()
        self._helpers.append(thread)

    # Moving to files.

    def _move_oldest(self) -> None:
        """Move results to files, the oldest first, until they take half of what they may."""
        if self._mover is not None:
            return
        chosen: list[bytes] = []
        for name, size in list(self._kept_in_memory.items()):
            if self._kept_bytes <= self._memory_bytes // KEPT_PARTS // 2:
                break
            if self._references.are_results(name):
                del self._kept_in_memory[name]
                self._kept_bytes -= size
                chosen.append(name)
        if chosen:
            self._mover = threading.Thread(target=self._move_all, args=(chosen,), name="pynenc-mover")
            self._mover.start()
            self.loop.call_in(MOVING_S, self._take_moved)

    def _move_all(self, names: list[bytes]) -> None:
        for name in names:
            with contextlib.suppress(OSError):  # No room there either: it stays where it is.
                if self._directory.copy_to_files(name):
                    self._moved.append(name)

    def _take_moved(self) -> None:
        """Free the memory of what is in files now."""
        has_ended = self._mover is None or not self._mover.is_alive()
        moved = [self._moved.pop() for _ in range(len(self._moved))]  # The thread appends to it meanwhile.
        for name in moved:
            if self._directory.leave_memory(name):
                self._gone[name] = None
            if name not in self._references:  # It was freed while it was copied.
                self._directory.free(name)
        if moved:
            self._recycle()
            self._tidy_in(TIDY_S)
        if has_ended:
            self._mover = None
        else:
            self.loop.call_in(MOVING_S, self._take_moved)

    def _move(self, name: bytes) -> None:
        try:
            if self._directory.copy_to_files(name):
                self._directory.leave_memory(name)
        except OSError as error:
            import logging

            logging.getLogger("pynenc.blobs").error(
                "a large result is lost, since it finds no room in files: %s", error
            )


def _remove_files(paths: list[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
