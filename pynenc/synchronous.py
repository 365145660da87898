"""The runner in this process: each call runs when it is made, in the caller's thread.

Arguments and results go through the serializer as they would on their way to a worker, so that what runs here also runs
there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from pynenc import context, execution
from pynenc.exceptions import CycleDetectedError, DependencyError, InvocationNotFoundError
from pynenc.invocation.synchronous import (
    ReusedSynchronousInvocation,
    SynchronousInvocation,
    SynchronousInvocationGroup,
)
from pynenc.lineage import call_in_words, circle
from pynenc.prepared import CallKeys, PreparedCall, args_from, call_of, prepare
from pynenc.protocol.messages import DEFAULT_DELAY, NOT_RETRIABLE
from pynenc.serializer import Frozen, dumps, freeze, loads

if TYPE_CHECKING:
    from pynenc.blobs.ref import BlobRef
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
    """Runs calls in this process. What `call_result_cache` keeps is gone with the process."""

    def __init__(self) -> None:
        self._cached: dict[bytes, tuple[SynchronousInvocation[Any, Any], bytes]] = {}
        self._alive: WeakValueDictionary[str, SynchronousInvocation[Any, Any]] = WeakValueDictionary()

    def submit(
        self, task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> SynchronousInvocation[Any, Any]:
        """Run one call."""
        call = prepare(task, args, kwargs)
        entry, keys, depended_on = call[:3] if isinstance(call, PreparedCall) else (call, CallKeys(), ())
        parent = context.current()
        invocation: SynchronousInvocation[Any, Any] = SynchronousInvocation(
            task, lambda: args_from(task, entry), parent.invocation() if parent else None
        )
        self._alive[invocation.invocation_id] = invocation
        if parent is not None and task.conf.cycle_control:
            found = circle(task, lambda: invocation.arguments, invocation.parent_invocation)
            if found:
                raise CycleDetectedError(found)
        for one in depended_on:
            if not one.status.is_final:
                raise CycleDetectedError([call_in_words(one), call_in_words(invocation), call_in_words(one)])
        failed = next((one for one in depended_on if one.exception is not None), None)
        if failed is not None:
            invocation.fail(_dependency_error(invocation, failed))
        elif keys.cache in self._cached:
            first, frozen = self._cached[keys.cache]
            return ReusedSynchronousInvocation(first, loads(frozen))
        else:
            _run(invocation, task, entry)
            if keys.cache and invocation.exception is None:
                self._cached[keys.cache] = invocation, dumps(invocation.result)
        return invocation

    def submit_group(
        self, task: Task[Any, Any], items: Iterable[Any], common: dict[str, Any], name: str | None
    ) -> SynchronousInvocationGroup[Any, Any]:
        """Run a call for each item. A name means nothing here: nothing is stored."""
        invocations = []
        for item in items:
            args, kwargs = call_of(task, item, common)
            invocations.append(self.submit(task, args, {**kwargs, **common}))
        return SynchronousInvocationGroup(task, invocations)

    def stream(self, task: Task[Any, Any], items: Iterable[Any], ordered: bool, in_flight: int | None) -> Iterator[Any]:
        """Run a call for each item as its result is taken."""
        return (self.submit(task, *call_of(task, item)).result for item in items)

    def put(self, value: Any) -> BlobRef[Any]:
        """Keep a value, as it is now, for many calls."""
        from pynenc.blobs.ref import BlobRef

        return BlobRef(Frozen(dumps(value)), ())

    def find(self, invocation_id: str) -> SynchronousInvocation[Any, Any]:
        """The invocation with this id.

        Raises:
            InvocationNotFoundError: It is gone: nothing is stored, so that it is there only while somebody holds it.
        """
        found = self._alive.get(invocation_id)
        if found is None:
            why = "it was made in synchronous mode, which stores nothing, and nobody in this process holds it any more"
            raise InvocationNotFoundError(invocation_id, why)
        return found

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
    except KeyboardInterrupt as error:  # The script's own: here, whoever interrupts the call means the script.
        invocation.fail(error)
        raise
    except BaseException as error:  # user code: the same as in a worker
        asked_s = execution.retry_delay(error, task.retriable_exceptions)
        retries = invocation.num_retries
        if asked_s != NOT_RETRIABLE and retries < task.conf.max_retries:
            invocation.retry(error)
            return task.conf.delay_before_retry(retries) if asked_s == DEFAULT_DELAY else asked_s
        invocation.fail(execution.sent_back(error))
    return None


def _dependency_error(
    invocation: SynchronousInvocation[Any, Any], failed: SynchronousInvocation[Any, Any]
) -> DependencyError:
    error = failed.exception
    if isinstance(error, DependencyError):
        return DependencyError(invocation.invocation_id, error.message)  # It names the invocation with which it began.
    return DependencyError(
        invocation.invocation_id,
        f"it was not run: invocation {failed.invocation_id}, whose result it takes, ended with {type(error).__name__}: {error}",
    )
