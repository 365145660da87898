"""The runner: the narrow seam behind which calls are run. Tasks and invocations know nothing else.

The local cluster (`client.runner`) and the synchronous mode (`synchronous`) implement it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pynenc.execution import restore
from pynenc.protocol.messages import Ending, Failure, Results, format_invocation_id, invocation_number
from pynenc.serializer import unpack
from pynenc.status import InvocationStatus

if TYPE_CHECKING:
    from asyncio import Future

    from pynenc.arguments import Arguments
    from pynenc.blobs.ref import BlobRef
    from pynenc.invocation.base_invocation import BaseInvocation, BaseInvocationGroup
    from pynenc.state_backend.reader import Attempts
    from pynenc.task import Task

STATUS_OF_ENDING = {
    Ending.RETRY: InvocationStatus.RETRY,
    Ending.FAILED: InvocationStatus.FAILED,
    Ending.CANCELLED: InvocationStatus.CANCELLED,
    Ending.KILLED: InvocationStatus.KILLED,
    Ending.CONTROLLED: InvocationStatus.CONCURRENCY_CONTROLLED_FINAL,
}

MISSING: Any = object()
"""Stands where a call has no result (yet)."""


class Submission:
    """A batch as its client sees it: what has come back of it so far.

    Results stay pickled, a stretch at a time, until somebody looks at one of them.

    Attributes:
        number: The batch id.
        count: How many calls it has.
        unfinished: How many of them have no outcome yet.
        stretches: Results by the index of their first call.
        failures: Failures by index.
        running: The index of the call that runs in this process, and how many attempts it had before.
        behind: For a batch that a running call has made: that call's number, and which of its calls wait for its result.
    """

    __slots__ = (
        "__weakref__",
        "_values",
        "behind",
        "callbacks",
        "count",
        "failures",
        "number",
        "runner",
        "running",
        "stretches",
        "unfinished",
    )

    def __init__(self, runner: RemoteRunner, number: int, count: int) -> None:
        self.runner = runner
        self.number = number
        self.count = count
        self.unfinished = count
        self.stretches: dict[int, Results] = {}
        self.failures: dict[int, Failure] = {}
        self.callbacks: list[tuple[int, Callable[[], object]]] | None = None
        self.running: tuple[int, int] | None = None
        self.behind: tuple[int, frozenset[int]] | None = None
        self._values: list[Any] | None = None

    def add_results(self, results: Results) -> None:
        """Take in results that were delivered; what is here already changes nothing."""
        # Here nothing is called, so no signal handler sees one without the other.
        if results.first not in self.stretches:
            self.stretches[results.first] = results
            self.unfinished -= results.stop - results.first

    def add_failure(self, failure: Failure) -> None:
        """Take in a failure that was delivered."""
        for index in range(failure.first, failure.stop):
            if index not in self.failures:
                self.failures[index] = failure
                self.unfinished -= 1

    def take_callbacks(self, everything: bool = False) -> list[Callable[[], object]]:
        """Take out the callbacks of calls that have their outcome, or all of them; one thread at a time."""
        ready, left = [], []
        for index, callback in self.callbacks or []:
            if everything or self.has_outcome(index):
                ready.append(callback)
            else:
                left.append((index, callback))
        self.callbacks = left or None
        return ready

    def invocation_id(self, index: int) -> str:
        """The id of one of the calls."""
        return format_invocation_id(invocation_number(self.number, index))

    def has_outcome(self, index: int) -> bool:
        """Whether a call has its result or its failure."""
        return not self.unfinished or self.stretch_of(index) is not None or index in self.failures

    def final_status(self, index: int) -> InvocationStatus:
        """The status of a call that has its outcome."""
        failure = self.failures.get(index)
        return InvocationStatus.SUCCESS if failure is None else STATUS_OF_ENDING[Ending(failure.ending)]

    def stretch_of(self, index: int) -> Results | None:
        """The results among which that of this call is."""
        stretch = self.stretches.get(index)
        if stretch is not None:
            return stretch
        return next((one for one in list(self.stretches.values()) if one.first <= index < one.stop), None)

    def value(self, index: int) -> Any:
        """The result of a call; `MISSING` when there is none."""  # per call
        values = self._values
        if values is not None and values[index] is not MISSING:
            return values[index]
        stretch = self.stretch_of(index)
        if stretch is None:
            return MISSING
        if values is None:
            values = self._values = [MISSING] * self.count
        values[stretch.first : stretch.stop] = unpack(stretch.packing, stretch.payload)
        return values[index]

    def error(self, index: int) -> BaseException | None:
        """The exception of a call that failed, freshly made."""
        failure = self.failures.get(index)
        if failure is None:
            return None
        alone = failure.stop == failure.first + 1  # Of many that ended together nobody wants to read each.
        shown = (lambda: self.runner.arguments_in_short(self, index)) if alone else None
        return restore(failure, self.invocation_id(index), shown)


class Runner(Protocol):
    """Runs calls somewhere."""

    def submit(self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> BaseInvocation[Any, Any]:
        """Run one call. The arguments fit the task's function."""

    def submit_group(
        self, task: Task[Any, Any], items: Iterable[Any], common: dict[str, Any], name: str | None
    ) -> BaseInvocationGroup[Any, Any]:
        """Run a call for each item: a tuple, a dictionary, or `Arguments`; see `Task.parallelize`."""

    def stream(self, task: Task[Any, Any], items: Iterable[Any], ordered: bool, in_flight: int | None) -> Iterable[Any]:
        """Run a call for each item as results are taken."""

    def put(self, value: Any) -> BlobRef[Any]:
        """Keep a value for many calls; see `Pynenc.put`."""

    def close(self) -> None:
        """Let go of processes and connections; what was submitted goes on."""


class RemoteRunner(Protocol):
    """What submissions need of a runner whose calls run in other processes, so that one waits and asks."""

    runs_calls: bool
    """Whether calls without outcome will have one."""

    def wait_until(
        self, done: Callable[[], bool], timeout: float | None = None, awaited: Sequence[Submission] = ()
    ) -> bool:
        """Wait until something is so that the outcomes of the awaited submissions bring about; whether it is so."""

    async def until(self, outcome: Future[None], submission: Submission) -> None:
        """Await a future that is told of an outcome of the submission."""

    def status_of(self, submission: Submission, index: int) -> InvocationStatus:
        """Where a call without outcome stands."""

    def counts_of(self, submissions: list[Submission], unfinished: int) -> dict[InvocationStatus, int]:
        """Where those calls stand that have no outcome, of which there are so many."""

    def arguments_of(self, task: Task[Any, Any], submission: Submission, index: int) -> Arguments:
        """The arguments of a call, as they were when it was made."""

    def arguments_in_short(self, submission: Submission, index: int) -> str:
        """The arguments of a call in few words; none when they cannot be shown, or not without much ado."""

    def parent_of(self, submission: Submission) -> str | None:
        """The id of the invocation that made the calls, if one did."""

    def cancel(self, calls: list[tuple[Submission, int, int]], force: bool) -> None:
        """End the calls `[first, stop)` of each submission that have not begun; with force also those that run."""

    def attempts_of(self, submission: Submission, index: int) -> Attempts:
        """What became of a call up to now."""

    def registered_at(self, submission: Submission) -> float:
        """When the calls were made; seconds since the epoch."""

    def retries_of(self, submission: Submission, index: int) -> int:
        """How often a call was tried again."""

    def on_outcome(self, submission: Submission, index: int, callback: Callable[[], object]) -> None:
        """Call back once, in some thread, when a call has its outcome."""
