"""Invocations whose calls run in this process, at the call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from pynenc import context, execution
from pynenc.exceptions import CycleDetectedError
from pynenc.invocation.base_invocation import BaseInvocation, BaseInvocationGroup, Outcome, StatusChange, by_id
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

    __slots__ = ("_arguments", "_error", "_history", "_id", "_parent", "_retries", "_status", "_task", "_value")

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
        self._error = error
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
            raise self._error
        return self._value  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[Any, ...]:
        found = context.collector.found
        if found is None:
            return by_id, (self._task.app, self._id)
        found.append(self)
        return _given, (self._value,)

    def add_done_callback(self, callback: Callable[[Self], object]) -> None:
        try:
            callback(self)
        except Exception:  # the user's code, as the promise says
            import logging

            logging.getLogger("pynenc").exception("a done callback of %r raised", self)


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
