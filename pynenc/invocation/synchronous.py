"""Invocations whose calls run in this process, at the call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pynenc import context, execution
from pynenc.exceptions import CycleDetectedError
from pynenc.invocation.base_invocation import (
    BaseInvocation,
    BaseInvocationGroup,
    Outcome,
    ReusedInvocation,
    StatusChange,
    by_id,
)
from pynenc.lineage import call_in_words
from pynenc.status import InvocationStatus, check_change
from pynenc.types import Params, Result

if TYPE_CHECKING:
    from pynenc.arguments import Arguments
    from pynenc.task import Task


SYNCHRONOUS = "sync-"
"""What the ids of invocations begin with that this process runs itself."""


class SynchronousInvocation(BaseInvocation[Params, Result]):
    """One call that this process ran when it was made; its outcome waits to be looked at."""

    __slots__ = (
        "_arguments",
        "_error",
        "_history",
        "_id",
        "_parent",
        "_retries",
        "_status",
        "_task",
        "_traceback",
        "_value",
    )

    def __init__(
        self,
        task: Task[Params, Result],
        arguments: Callable[[], Arguments],
        parent: BaseInvocation[Any, Any] | None = None,
    ) -> None:
        self._task = task
        self._arguments = arguments
        self._parent = parent
        self._id = f"{SYNCHRONOUS}{os.urandom(8).hex()}"
        self._retries = 0
        self._history: list[StatusChange] = []
        self._status = InvocationStatus.REGISTERED
        self._become(InvocationStatus.REGISTERED)
        self._value: Any = None
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None

    def begin(self) -> None:
        """Say that the call runs now."""
        self._become(InvocationStatus.RUNNING)

    def retry(self, error: BaseException) -> None:
        """Say that an attempt failed and another follows."""
        self._retries += 1
        self._become(InvocationStatus.RETRY, error)

    def succeed(self, value: Any) -> None:
        """Give the invocation its result."""
        self._value = value
        self._become(InvocationStatus.SUCCESS)

    def fail(self, error: BaseException) -> None:
        """Give the invocation its exception."""
        self._error, self._traceback = error, error.__traceback__
        self._become(InvocationStatus.FAILED, error)

    def _become(self, status: InvocationStatus, error: BaseException | None = None) -> None:
        if self._history:
            check_change(self._id, self._status, status)
        self._status = status
        traceback = execution.describe(error).traceback if error is not None else ""
        self._history.append(StatusChange(status, time.time(), 0, traceback))

    @property
    def task(self) -> Task[Params, Result]:
        return self._task

    @property
    def invocation_id(self) -> str:
        return self._id

    @property
    def arguments(self) -> Arguments:
        return self._arguments()

    @property
    def status(self) -> InvocationStatus:
        return self._status

    @property
    def num_retries(self) -> int:
        return self._retries

    @property
    def history(self) -> list[StatusChange]:
        return list(self._history)

    def cancel(self, force: bool = False) -> None:
        """It has ended already."""

    @property
    def parent_invocation(self) -> BaseInvocation[Any, Any] | None:
        return self._parent

    def wait(self, timeout: float | None = None) -> bool:
        return self._status.is_final

    @property
    def exception(self) -> BaseException | None:
        return self._error

    def get(self, timeout: float | None = None) -> Result:
        if not self._status.is_final:  # It runs: the one who asks is inside of it.
            raise CycleDetectedError([call_in_words(self)] * 2)
        if self._error is not None:
            raise self._error.with_traceback(self._traceback)  # Each time it is raised adds to what it has.
        return self._value  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[Any, ...]:
        found = context.collector.found
        if found is None:
            return by_id, (self._task.app, self._id)
        found.append(self)
        return _given, (self._value,)

    def add_done_callback(self, callback: Callable[[Self], object]) -> None:
        execution.call_back(partial(callback, self))


class ReusedSynchronousInvocation(SynchronousInvocation[Params, Result], ReusedInvocation[Params, Result]):
    """One that answers a later call from the cache: the same in all, but its result is no object that the first one gave.

    Args:
        first: The invocation that ran.
        value: The result.
    """

    __slots__ = ("diff_arg",)

    def __init__(self, first: SynchronousInvocation[Params, Result], value: Any) -> None:
        self._task, self._arguments, self._parent = first._task, first._arguments, first._parent
        self._id, self._retries = first._id, first._retries
        self._history, self._status = first._history, first._status
        self._value, self._error, self._traceback = value, None, None
        self.diff_arg = None


def _given(value: Any) -> Any:
    """What stands in an argument for the result of an invocation."""
    return value


class SynchronousInvocationGroup(BaseInvocationGroup[Params, Result]):
    """The calls of one `parallelize` that this process ran."""

    __slots__ = ("_invocations", "_task")

    def __init__(self, task: Task[Params, Result], invocations: list[SynchronousInvocation[Params, Result]]) -> None:
        self._task = task
        self._invocations = invocations

    @property
    def task(self) -> Task[Params, Result]:
        return self._task

    @property
    def results(self) -> Iterator[Result]:
        return (invocation.result for invocation in self._invocations)

    @property
    def outcomes(self) -> Iterator[Outcome[Result]]:
        for invocation in self._invocations:
            error = invocation.exception
            yield Outcome(invocation.result if error is None else None, error)

    def cancel(self, force: bool = False) -> None:
        """All have ended already."""

    def as_completed(self) -> Iterator[BaseInvocation[Params, Result]]:
        return iter(self._invocations)

    def wait(self, timeout: float | None = None) -> bool:
        return True

    @property
    def counts(self) -> dict[InvocationStatus, int]:
        statuses = [invocation.status for invocation in self._invocations]
        return {status: statuses.count(status) for status in InvocationStatus if status in statuses}

    def __reduce__(self) -> tuple[Any, ...]:
        if context.collector.found is None:
            return SynchronousInvocationGroup, (self._task, self._invocations)
        return _given, (list(self._invocations),)

    def __len__(self) -> int:
        return len(self._invocations)

    def _at(self, index: int) -> SynchronousInvocation[Params, Result]:
        return self._invocations[index]
