"""The blobs as the supervisor keeps them: freed when nobody refers to them, recycled, moved to files, found after a death.

A blob belongs to its writer until somebody refers to it: a batch or results that came, or a client that says so. What neither
has a living writer nor is referred to is left over by somebody who died, and freed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pynenc.blobs.directory import TOKEN_BYTES, BlobDirectory
from pynenc.blobs.references import Reference, from_column, split_results
from pynenc.protocol.messages import Results, invocation_number
from pynenc.state_backend.store import Store
from pynenc.supervisor.references import Holder, Kind, References
from pynenc.supervisor.segments import WarmSegments

if TYPE_CHECKING:
    from pynenc.supervisor.loop import Loop

KEPT_PARTS = 2
"""When results that nobody uses take more than this part of the budget, the oldest are moved to files."""

TIDY_S = 0.05
"""How often mapped segments that were freed are looked at, at first."""

MOST_TIDY_S = 1.0
"""How often they are looked at in the long run; and after how long warm segments that nobody takes are given back."""

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
        self._segments = WarmSegments(directory, memory_bytes)
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
            self._segments.result_came(size)

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
                self._segments.freed(name)
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
        if self._segments.make_ready():
            self._is_quiet = False
            self._tidy_in(TIDY_S)

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
        self._segments.close()
        if self._mover is not None:
            self._mover.join()
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
        self._segments.trim()

    def _tidy_in(self, seconds: float) -> None:
        if not self._tidy_s:
            self._tidy_s = seconds
            self.loop.call_in(seconds, self._tidy)

    def _tidy(self) -> None:
        """Look after what is mapped still, and give warm segments back that nobody takes."""
        before, self._tidy_s = self._tidy_s, 0.0
        self._recycle()
        if self._is_quiet and before >= MOST_TIDY_S:
            self._segments.give_back()
        self._is_quiet = True
        if self._gone or self._directory.segments():
            self._tidy_in(min(2 * before, MOST_TIDY_S))

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
                "a large value is lost, since it could not be moved to a file: %s", error
            )
