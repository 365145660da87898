"""The runner in this process: each call runs when it is made, in the caller's thread.

Arguments and results go through the serializer as they would on their way to a worker, so that what runs here also runs
there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pynenc import context, execution
from pynenc.arguments import Arguments
from pynenc.invocation.synchronous import SynchronousInvocation, SynchronousInvocationGroup
from pynenc.protocol.messages import DEFAULT_DELAY, NOT_RETRIABLE
from pynenc.serializer import Frozen, freeze, loads

if TYPE_CHECKING:
    from pynenc.task import Task


class _RunningInvocation:
    """What `context` says while a call runs here."""

    __slots__ = ("_invocation",)

    def __init__(self, invocation: SynchronousInvocation[Any, Any]) -> None:
        self._invocation = invocation

    def task_id(self) -> str:
        return self._invocation.task.task_id

    def invocation_id(self) -> str:
        return self._invocation.invocation_id

    def invocation(self) -> Any:
        return self._invocation


class SynchronousRunner:
    """Runs calls in this process."""

    def submit(
        self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> SynchronousInvocation[Any, Any]:
        """Run one call."""
        entry = task.freeze_call(args, kwargs)
        parent = context.current()
        invocation: SynchronousInvocation[Any, Any] = SynchronousInvocation(
            task, lambda: _arguments_of(task, entry), parent.invocation() if parent else None
        )
        _run(invocation, task, entry)
        return invocation

    def submit_group(self, task: Task[Any, Any], items: Iterable[Any]) -> SynchronousInvocationGroup[Any, Any]:
        """Run a call for each item."""
        return SynchronousInvocationGroup(task, [self.submit(task, *task.call_of(item)) for item in items])

    def stream(self, task: Task[Any, Any], items: Iterable[Any], ordered: bool, in_flight: int | None) -> Iterator[Any]:
        """Run a call for each item as its result is taken."""
        return (self.submit(task, *task.call_of(item)).result for item in items)

    def close(self) -> None:
        """There is nothing to let go of."""


def _run(invocation: SynchronousInvocation[Any, Any], task: Task[Any, Any], entry: Any) -> None:
    token = context.running.set(_RunningInvocation(invocation))
    try:
        while (delay_s := _attempt(invocation, task, entry)) is not None:
            time.sleep(delay_s)
    finally:
        context.running.reset(token)


def _attempt(invocation: SynchronousInvocation[Any, Any], task: Task[Any, Any], entry: Any) -> float | None:
    """Run the call once; after how many seconds to run it again, or None."""
    func = task.runnable
    invocation.begin()
    try:
        value = func(*entry) if type(entry) is tuple else execution.call_frozen(func, entry)
        frozen = freeze(value)
        invocation.succeed(loads(frozen) if type(frozen) is Frozen else frozen)
    except BaseException as error:  # user code: the same as in a worker
        asked_s = execution.retry_delay(error, task.retriable_exceptions)
        retries = invocation.num_retries
        if asked_s != NOT_RETRIABLE and retries < task.conf.max_retries:
            invocation.retry(error)
            return task.conf.delay_before_retry(retries) if asked_s == DEFAULT_DELAY else asked_s
        invocation.fail(execution.sent_back(error))
    return None


def _arguments_of(task: Task[Any, Any], entry: Any) -> Arguments:
    return task.args_from(entry)
