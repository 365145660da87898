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

from pynenc.invocation.base_invocation import BaseInvocation, BaseInvocationGroup, Outcome, StatusChange
from pynenc.protocol.messages import Ending, Results
from pynenc.runner import MISSING, STATUS_OF_ENDING, RemoteRunner, Submission
from pynenc.serializer import unpack
from pynenc.status import InvocationStatus
from pynenc.types import Params, Result

if TYPE_CHECKING:
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
        failures, results = self._runner.attempts_of(self._submission, self._index)
        history = [StatusChange(InvocationStatus.REGISTERED, self._runner.registered_at(self._submission), 0)]
        for failure in failures:
            if failure.worker:
                history.append(StatusChange(InvocationStatus.RUNNING, failure.started, failure.worker))
            status = STATUS_OF_ENDING[Ending(failure.ending)]
            history.append(StatusChange(status, failure.ended, failure.worker, failure.traceback or failure.message))
        if results is not None:
            started, ended = results.times_of(self._index)
            history.append(StatusChange(InvocationStatus.RUNNING, started, results.worker))
            history.append(StatusChange(InvocationStatus.SUCCESS, ended, results.worker))
        elif (status := self.status) not in (InvocationStatus.REGISTERED, history[-1].status):
            history.append(StatusChange(status, time.time(), 0))
        return history

    def cancel(self, force: bool = False) -> None:
        self._runner.cancel([(self._submission, self._index, self._index + 1)], force)

    @property
    def parent_invocation(self) -> BaseInvocation[Any, Any] | None:
        parent = self._runner.parent_of(self._submission)
        return None if parent is None else self.app.get_invocation(parent)

    def wait(self, timeout: float | None = None) -> bool:
        return self._runner.wait_until(lambda: self._submission.has_outcome(self._index), timeout, [self._submission])

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
    def _runner(self) -> RemoteRunner:
        return self._submission.runner

    def __reduce__(self) -> tuple[Any, ...]:
        return _by_id, (self._task.app, self.invocation_id)


def _by_id(app: Any, invocation_id: str) -> Any:
    return app.get_invocation(invocation_id)


class ReusedInvocation(DistributedInvocation[Params, Result]):
    """An invocation that was there already when a call was registered.

    Attributes:
        diff_arg: The arguments of the new call, when they differ from those of the invocation.
    """

    __slots__ = ("diff_arg",)

    def __init__(
        self, task: Task[Params, Result], submission: Submission, index: int, diff_arg: Arguments | None = None
    ) -> None:
        super().__init__(task, submission, index)
        self.diff_arg = diff_arg


class DistributedInvocationGroup(BaseInvocationGroup[Params, Result]):
    """The calls of one `parallelize`; a few objects per batch, none per call."""

    __slots__ = ("_firsts", "_runner", "_size", "_submissions", "_task")

    def __init__(self, task: Task[Params, Result], runner: RemoteRunner, submissions: list[Submission]) -> None:
        self._task = task
        self._runner = runner
        self._submissions = submissions
        ends = list(accumulate(submission.count for submission in submissions))
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
        for submission in self._submissions:
            yield from _outcomes_of(self._runner, submission)

    def as_completed(self) -> Iterator[BaseInvocation[Params, Result]]:
        seen: dict[int, set[int]] = {}  # Of unfinished batches only.
        left = self._submissions
        while left:
            for submission, index in self._wait_fresh(left, seen):
                yield DistributedInvocation(self._task, submission, index)
            left = [one for one in left if one.unfinished or len(seen.get(one.number, ())) < one.count]

    def _wait_fresh(self, left: list[Submission], seen: dict[int, set[int]]) -> list[tuple[Submission, int]]:
        """The calls that have got their outcome since they were last asked for."""
        fresh: list[tuple[Submission, int]] = []

        def something_came() -> bool:
            fresh.extend(_unseen_outcomes(left, seen))
            return bool(fresh)

        self._runner.wait_until(something_came, None, left)
        return fresh

    def wait(self, timeout: float | None = None) -> bool:
        pending = iter(self._submissions)
        current = next(pending, None)

        def all_done() -> bool:
            nonlocal current
            while current is not None and not current.unfinished:
                current = next(pending, None)
            return current is None

        return self._runner.wait_until(all_done, timeout, self._submissions)

    def cancel(self, force: bool = False) -> None:
        self._runner.cancel([(one, 0, one.count) for one in self._submissions if one.unfinished], force)

    @property
    def counts(self) -> dict[InvocationStatus, int]:
        failed = sum(len(one.failures) for one in self._submissions)
        unfinished = sum(one.unfinished for one in self._submissions)
        counts = Counter(one.final_status(index) for one in self._submissions for index in one.failures)
        if unfinished:
            counts.update(self._runner.counts_of([one for one in self._submissions if one.unfinished]))
        counts[InvocationStatus.SUCCESS] = self._size - failed - unfinished
        return {status: counts[status] for status in InvocationStatus if counts[status]}

    def __len__(self) -> int:
        return self._size

    def _at(self, index: int) -> DistributedInvocation[Params, Result]:
        batch = bisect_right(self._firsts, index) - 1
        return DistributedInvocation(self._task, self._submissions[batch], index - self._firsts[batch])

    def _result_stretches(self) -> Iterator[list[Result]]:
        """The results, unpickled a stretch at a time; nothing is done per call."""
        for submission in self._submissions:
            yield from wait_stretches(self._runner, submission)


def wait_stretches(runner: RemoteRunner, submission: Submission) -> Iterator[list[Any]]:
    """The results of a batch in order, a stretch at a time, each as soon as it is there; raises what a call raised."""
    index = 0
    while index < submission.count:
        stretch = _wait_stretch(runner, submission, index)
        if stretch is None:
            error = submission.error(index)
            assert error is not None
            raise error
        yield unpack(stretch.packing, stretch.payload)
        index = stretch.stop


def _wait_stretch(runner: RemoteRunner, submission: Submission, index: int) -> Results | None:
    """The results that begin with a call; None when it failed."""
    if submission.unfinished:
        runner.wait_until(lambda: index in submission.stretches or index in submission.failures, None, [submission])
    return submission.stretches.get(index)


def _outcomes_of(runner: RemoteRunner, submission: Submission) -> Iterator[Outcome[Any]]:
    index = 0
    while index < submission.count:
        stretch = _wait_stretch(runner, submission, index)
        if stretch is None:
            yield Outcome(None, submission.error(index))
            index += 1
        else:
            for value in unpack(stretch.packing, stretch.payload):
                yield Outcome(value, None)
            index = stretch.stop


def _unseen_outcomes(submissions: list[Submission], seen: dict[int, set[int]]) -> Iterator[tuple[Submission, int]]:
    for submission in submissions:
        before = seen.setdefault(submission.number, set())
        if len(before) == submission.count - submission.unfinished:
            continue
        for stretch in list(submission.stretches.values()):
            for index in range(stretch.first, stretch.stop):
                if index not in before:
                    before.add(index)
                    yield submission, index
        for index in list(submission.failures):
            if index not in before:
                before.add(index)
                yield submission, index
