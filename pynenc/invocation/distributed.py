"""Invocations whose calls run in worker processes.

An invocation object is a view: a batch and an index in it. Its batch holds what has come back.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Self

from pynenc import context
from pynenc.dependencies import result_of, results_of
from pynenc.exceptions import CycleDetectedError
from pynenc.invocation.base_invocation import (
    BaseInvocation,
    BaseInvocationGroup,
    Outcome,
    ReusedInvocation,
    StatusChange,
    by_id,
)
from pynenc.named_tuples import NamedTuple
from pynenc.protocol.messages import Ending, Results, invocation_number
from pynenc.runner import MISSING, STATUS_OF_ENDING, RemoteRunner, Submission
from pynenc.serializer import unpack
from pynenc.status import InvocationStatus
from pynenc.types import Params, Result

if TYPE_CHECKING:
    from asyncio import Future

    from pynenc.arguments import Arguments
    from pynenc.task import Task


class DistributedInvocation(BaseInvocation[Params, Result]):
    """One call that a worker runs."""

    __slots__ = ("_index", "_submission", "_task")

    def __init__(self, task: Task[Params, Result], submission: Submission, index: int) -> None:
        self._task = task
        self._submission = submission
        self._index = index

    @property
    def task(self) -> Task[Params, Result]:
        return self._task

    @property
    def invocation_id(self) -> str:
        return self._submission.invocation_id(self._index)

    @property
    def arguments(self) -> Arguments:
        return self._runner.arguments_of(self._task, self._submission, self._index)

    @property
    def status(self) -> InvocationStatus:
        submission, index = self._submission, self._index
        if submission.has_outcome(index):
            return submission.final_status(index)
        return self._runner.status_of(submission, index)

    @property
    def num_retries(self) -> int:
        running = self._submission.running
        if running is not None and running[0] == self._index and not self._submission.has_outcome(self._index):
            return running[1]
        return self._runner.retries_of(self._submission, self._index)

    @property
    def history(self) -> list[StatusChange]:
        failures, results, transitions = self._runner.attempts_of(self._submission, self._index)
        history = [StatusChange(InvocationStatus.REGISTERED, self._runner.registered_at(self._submission), 0)]
        history += [StatusChange(InvocationStatus(status), at, worker) for status, at, worker in transitions]
        for failure in failures:
            if failure.worker:
                history.append(StatusChange(InvocationStatus.RUNNING, failure.started, failure.worker))
            status = STATUS_OF_ENDING[Ending(failure.ending)]
            history.append(StatusChange(status, failure.ended, failure.worker, failure.traceback or failure.message))
        if results is not None:
            started, ended = results.times_of(self._index)
            history.append(StatusChange(InvocationStatus.RUNNING, started, results.worker))
            history.append(StatusChange(InvocationStatus.SUCCESS, ended, results.worker))
        history.sort(key=lambda change: change.time)
        if results is None and (status := self.status) not in (InvocationStatus.REGISTERED, history[-1].status):
            history.append(StatusChange(status, time.time(), 0))
        return history

    def cancel(self, force: bool = False) -> None:
        self._runner.cancel([(self._submission, self._index, self._index + 1)], force)

    @property
    def parent_invocation(self) -> BaseInvocation[Any, Any] | None:
        parent = self._runner.parent_of(self._submission)
        return None if parent is None else self.app.get_invocation(parent)

    def wait(self, timeout: float | None = None) -> bool:
        running = context.in_worker()
        if running is not None and running.invocation_id() == self.invocation_id:
            from pynenc.lineage import call_in_words

            raise CycleDetectedError([call_in_words(self)] * 2)
        return self._runner.wait_until(lambda: self._submission.has_outcome(self._index), timeout, [self._submission])

    async def _until(self, outcome: Future[None]) -> None:
        await self._runner.until(outcome, self._submission)

    @property
    def exception(self) -> BaseException | None:
        self.wait()
        return self._submission.error(self._index)

    @property
    def result(self) -> Result:
        value = self._submission.value(self._index)  # per call
        if value is not MISSING:
            return value  # type: ignore[no-any-return]
        return self.get()

    def get(self, timeout: float | None = None) -> Result:
        if not self.wait(timeout):
            raise TimeoutError(f"{self!r} has no result after {timeout:g} s; the call goes on")
        error = self._submission.error(self._index)
        if error is not None:
            raise error
        return self._submission.value(self._index)  # type: ignore[no-any-return]

    def add_done_callback(self, callback: Callable[[Self], object]) -> None:
        self._runner.on_outcome(self._submission, self._index, lambda: callback(self))

    @property
    def has_outcome(self) -> bool:
        """Whether its result or its exception is here already."""
        return self._submission.has_outcome(self._index)

    @property
    def submission(self) -> Submission:
        """What it travels in."""
        return self._submission

    @property
    def _runner(self) -> RemoteRunner:
        return self._submission.runner

    def __reduce__(self) -> tuple[Any, ...]:
        found = context.collector.found
        if found is None:
            return by_id, (self._task.app, self.invocation_id)
        _check_same_app(self._task.app)
        number, index = self._submission.number, self._index
        found.append((number, index, index + 1))
        return result_of, (invocation_number(number, index),)


class ReusedDistributedInvocation(DistributedInvocation[Params, Result], ReusedInvocation[Params, Result]):
    """One that the database has, or that waits already."""

    __slots__ = ("diff_arg",)

    def __init__(
        self, task: Task[Params, Result], submission: Submission, index: int, diff_arg: Arguments | None = None
    ) -> None:
        super().__init__(task, submission, index)
        self.diff_arg = diff_arg


class Reuse(NamedTuple):
    """Says of an invocation in a group that it was there before; `diff_arg` as in `ReusedInvocation`."""

    diff_arg: Arguments | None = None


class Part(NamedTuple):
    """The calls `[first, stop)` of a batch, as they lie side by side in a group."""

    submission: Submission
    first: int
    stop: int
    reused: Reuse | None = None

    @property
    def unfinished(self) -> bool:
        """Whether one of them has no outcome yet."""
        submission = self.submission
        return submission.unfinished > 0 and not all(map(submission.has_outcome, range(self.first, self.stop)))


def whole(submission: Submission) -> Part:
    """All calls of a batch."""
    return Part(submission, 0, submission.count)


class DistributedInvocationGroup(BaseInvocationGroup[Params, Result]):
    """The calls of one `parallelize`; a few objects per batch, none per call."""

    __slots__ = ("_firsts", "_parts", "_runner", "_size", "_task")

    def __init__(self, task: Task[Params, Result], runner: RemoteRunner, parts: list[Part]) -> None:
        self._task = task
        self._runner = runner
        self._parts = parts
        ends = list(accumulate(part.stop - part.first for part in parts))
        self._firsts = [0, *ends[:-1]]
        self._size = ends[-1] if ends else 0

    @property
    def task(self) -> Task[Params, Result]:
        return self._task

    @property
    def results(self) -> Iterator[Result]:
        return chain.from_iterable(self._result_stretches())

    @property
    def outcomes(self) -> Iterator[Outcome[Result]]:
        for part in self._parts:
            yield from _outcomes_of(part)

    def as_completed(self) -> Iterator[BaseInvocation[Params, Result]]:
        seen: dict[int, set[int]] = {}  # Of unfinished parts only.
        left = list(enumerate(self._parts))
        while left:
            for at, index in self._wait_fresh(left, seen):
                yield self._in_part(self._parts[at], index)
            left = [(at, part) for at, part in left if len(seen.get(at, ())) < part.stop - part.first]

    def _wait_fresh(self, left: list[tuple[int, Part]], seen: dict[int, set[int]]) -> list[tuple[int, int]]:
        """The calls that have got their outcome since they were last asked for."""
        fresh: list[tuple[int, int]] = []

        def something_came() -> bool:
            fresh.extend(_unseen_outcomes(left, seen))
            return bool(fresh)

        self._runner.wait_until(something_came, None, [part.submission for _, part in left])
        return fresh

    def wait(self, timeout: float | None = None) -> bool:
        pending = iter(self._parts)
        current = next(pending, None)

        def all_done() -> bool:
            nonlocal current
            while current is not None and not current.unfinished:
                current = next(pending, None)
            return current is None

        return self._runner.wait_until(all_done, timeout, [part.submission for part in self._parts])

    def cancel(self, force: bool = False) -> None:
        self._runner.cancel([part[:3] for part in self._parts if part.unfinished], force)

    @property
    def counts(self) -> dict[InvocationStatus, int]:
        counts: Counter[InvocationStatus] = Counter()
        unfinished = 0
        for submission, first, stop, _ in self._parts:
            failed = [index for index in list(submission.failures) if first <= index < stop]
            counts.update(submission.final_status(index) for index in failed)
            left = sum(not submission.has_outcome(i) for i in range(first, stop)) if submission.unfinished else 0
            unfinished += left
            counts[InvocationStatus.SUCCESS] += stop - first - len(failed) - left
        if unfinished:
            live = {part.submission.number: part.submission for part in self._parts if part.submission.unfinished}
            counts.update(self._runner.counts_of(list(live.values()), unfinished))
        return {status: counts[status] for status in InvocationStatus if counts[status]}

    def __len__(self) -> int:
        return self._size

    def _at(self, index: int) -> DistributedInvocation[Params, Result]:
        at = bisect_right(self._firsts, index) - 1
        part = self._parts[at]
        return self._in_part(part, part.first + index - self._firsts[at])

    def _in_part(self, part: Part, index: int) -> DistributedInvocation[Params, Result]:
        if part.reused is not None:
            return ReusedDistributedInvocation(self._task, part.submission, index, part.reused.diff_arg)
        return DistributedInvocation(self._task, part.submission, index)

    def _result_stretches(self) -> Iterator[list[Result]]:
        """The results, unpickled a stretch at a time; nothing is done per call."""
        for part in self._parts:
            yield from (values for _, values in wait_stretches(part))

    def __reduce__(self) -> tuple[Any, ...]:
        ranges = [(part.submission.number, part.first, part.stop) for part in self._parts]
        collector = context.collector
        if collector.found is None:
            return _group_by_ids, (self._task, ranges)
        _check_same_app(self._task.app)
        collector.found += ranges
        return results_of, (self._task, ranges)


def _group_by_ids(task: Any, ranges: list[tuple[int, int, int]]) -> Any:
    return task.app.runner.group_of(task, ranges)


def wait_stretches(part: Part) -> Iterator[tuple[Results, list[Any]]]:
    """The results of some calls in order, a stretch at a time with their values, each as soon as it is there.

    Raises:
        BaseException: What a call raised.
    """
    submission, index, stop, _ = part
    while index < stop:
        stretch = _wait_stretch(submission, index)
        if stretch is None:
            error = submission.error(index)
            assert error is not None
            raise error
        yield stretch, _values_in(stretch, index, stop)
        index = min(stop, stretch.stop)


def _wait_stretch(submission: Submission, index: int) -> Results | None:
    """The results among which that of a call is; None when it failed."""
    if submission.unfinished:
        submission.runner.wait_until(lambda: submission.has_outcome(index), None, [submission])
    return submission.stretch_of(index)


def _values_in(stretch: Results, first: int, stop: int) -> list[Any]:
    values = unpack(stretch.packing, stretch.payload)
    if first == stretch.first and stretch.stop <= stop:
        return values
    return values[first - stretch.first : stop - stretch.first]


def _outcomes_of(part: Part) -> Iterator[Outcome[Any]]:
    submission, index, stop, _ = part
    while index < stop:
        stretch = _wait_stretch(submission, index)
        if stretch is None:
            yield Outcome(None, submission.error(index))
            index += 1
        else:
            for value in _values_in(stretch, index, stop):
                yield Outcome(value, None)
            index = min(stop, stretch.stop)


def _unseen_outcomes(parts: list[tuple[int, Part]], seen: dict[int, set[int]]) -> Iterator[tuple[int, int]]:
    for at, (submission, first, stop, _) in parts:
        before = seen.setdefault(at, set())
        if submission.count == stop - first and len(before) == submission.count - submission.unfinished:
            continue
        for stretch in list(submission.stretches.values()):
            for index in range(max(first, stretch.first), min(stop, stretch.stop)):
                if index not in before:
                    before.add(index)
                    yield at, index
        for index in list(submission.failures):
            if index not in before and first <= index < stop:
                before.add(index)
                yield at, index


def _check_same_app(app: Any) -> None:
    called = context.collector.app
    if app is not called:
        raise TypeError(f"an invocation of app {app.app_id!r} cannot be an argument in app {called.app_id!r}")
