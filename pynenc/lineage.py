"""Call cycles: a call made from inside of itself, directly or through others, would wait for itself for ever.

Every batch that a running call sends carries the identities of the calls above it, so a cycle is seen where it would be closed,
before anything is sent. Most calls are of a task that is not above them, and compare nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pynenc import context
from pynenc.exceptions import CycleDetectedError, SerializationError
from pynenc.prepared import PreparedCall, args_from, call_of, freeze_call
from pynenc.protocol.messages import split_number
from pynenc.serializer import Frozen

if TYPE_CHECKING:
    from pynenc.arguments import Arguments
    from pynenc.invocation.base_invocation import BaseInvocation
    from pynenc.protocol.extras import Extras
    from pynenc.runner import Submission
    from pynenc.task import Task

TASK_BYTES = 8
IDENTITY_BYTES = 16
"""An identity is a digest of the task and one of the arguments."""

KEPT = 256
"""So many of the calls above are known, the nearest ones: a circle of at most so many calls is found."""

LARGE_BYTES = 1 << 16
"""Larger arguments are compared as they were pickled, not value by value."""


class Caller:
    """The call that runs, as the calls that it makes see it.

    Args:
        number: Its invocation.
        above: The identities of the calls above it.
        own: Its own.
    """

    def __init__(self, number: int, above: bytes, own: bytes) -> None:
        self.number = number
        self.lineage = (above + own)[-KEPT * IDENTITY_BYTES :]

    @cached_property
    def _calls(self) -> set[bytes]:
        return {self.lineage[at : at + IDENTITY_BYTES] for at in range(0, len(self.lineage), IDENTITY_BYTES)}

    @cached_property
    def _tasks(self) -> set[bytes]:
        return {call[:TASK_BYTES] for call in self._calls}

    def is_above(self, task: Task[Any, Any]) -> bool:
        """Whether calls of this task have to be compared with those above."""
        return task.identity in self._tasks and bool(task.conf.cycle_control)

    def check(self, task: Task[Any, Any], call: tuple[Any, ...] | Frozen | PreparedCall) -> None:
        """Refuse a call that is one of those above.

        Raises:
            CycleDetectedError: It is.
        """
        entry = call.entry if isinstance(call, PreparedCall) else call
        if identity_of(task, entry) in self._calls or (
            # As part of a `parallelize` it is looked at before its large buffers are blobs.
            isinstance(entry, Frozen) and len(entry) > LARGE_BYTES and identity_of(task, entry, True) in self._calls
        ):
            arguments = args_from(task, entry)
            running = context.current()
            above = running.invocation() if running is not None else None
            raise CycleDetectedError(circle(task, lambda: arguments, above) or [_in_words(task, arguments)] * 2)

    def checked(self, task: Task[Any, Any], items: Iterable[Any]) -> Iterator[Any]:
        """The items of a `parallelize`, each of them looked at as it is taken."""
        for item in items:
            self.check_item(task, item)
            yield item

    def check_item(self, task: Task[Any, Any], item: Any) -> None:
        """Refuse an item of a `parallelize` that is one of the calls above."""
        self.check(task, freeze_call(task, *call_of(task, item)))


def identity_of(task: Task[Any, Any], entry: tuple[Any, ...] | Frozen, by_value: bool = False) -> bytes:
    """What two calls have in common that are the same; `by_value` also when they are large."""
    from hashlib import sha256

    size = IDENTITY_BYTES - TASK_BYTES
    if not by_value and isinstance(entry, Frozen) and len(entry) > LARGE_BYTES:
        return task.identity + sha256(entry).digest()[:size]
    collector = context.collector
    outer, collector.comparing = collector.comparing, True
    try:
        return task.identity + args_from(task, entry).digest[:size]
    except Exception:  # the user's own pickling: what came once may not go back
        if not isinstance(entry, Frozen):
            raise
        return task.identity + sha256(entry).digest()[:size]
    finally:
        collector.comparing = outer


def behind(caller: Caller, extras: Extras, held: Mapping[int, Submission]) -> tuple[int, frozenset[int]] | None:
    """Which calls of a new batch wait for the result of the call that makes them, directly or through others.

    Args:
        caller: The call that makes them.
        extras: Whose results they take.
        held: The batches that were made here.
    """
    batch, own = split_number(caller.number)
    found = set()
    for on in extras.depended_on():
        there = held.get(on.batch)
        known = there.behind if there is not None else None
        if (on.batch == batch and on.first <= own < on.stop) or (
            known is not None and known[0] == caller.number and not known[1].isdisjoint(range(on.first, on.stop))
        ):
            found.add(on.index)
    return (caller.number, frozenset(found)) if found else None


def unless_stuck(done: Callable[[], bool], awaited: Sequence[Submission], caller: Caller) -> Callable[[], bool]:
    """Something to wait for, which raises as soon as all that is left of it waits for the call that waits.

    Raises:
        CycleDetectedError: It does.
    """

    def checked() -> bool:
        if done():
            return True
        left = [one for one in awaited if one.unfinished]
        if left and all(_all_behind(one, caller.number) for one in left):
            running = context.current()
            own = call_in_words(running.invocation()) if running is not None else ""
            raise CycleDetectedError([own, f"invocation {left[0].invocation_id(0)}, which takes its result", own])
        return False

    return checked if any(one.behind is not None for one in awaited) else done


def _all_behind(submission: Submission, caller: int) -> bool:
    if submission.behind is None or submission.behind[0] != caller:
        return False
    indices = submission.behind[1]
    return all(index in indices or submission.has_outcome(index) for index in range(submission.count))


def circle(
    task: Task[Any, Any], arguments: Callable[[], Arguments], above: BaseInvocation[Any, Any] | None
) -> list[str]:
    """The circle that a call would close, in words, from the one above that is the same to the call; empty when none is.

    Args:
        task: The task that is called.
        arguments: Gives the arguments of the call, when there is something to compare them with.
        above: The invocation that makes the call.
    """
    passed = []
    while above is not None:
        passed.append(above)
        if above.task.task_id == task.task_id and _same(above, arguments()):
            return [*map(call_in_words, reversed(passed)), _in_words(task, arguments())]
        above = above.parent_invocation
    return []


def _same(invocation: BaseInvocation[Any, Any], arguments: Arguments) -> bool:
    try:
        return invocation.arguments == arguments
    except SerializationError:
        return False  # What came once may not be pickled again.


def call_in_words(invocation: Any) -> str:
    """The task and the arguments of an invocation, shortened."""
    return _in_words(invocation.task, invocation.arguments)


def _in_words(task: Task[Any, Any], arguments: Arguments) -> str:
    return f"{task.task_id}({arguments.in_short()})"
