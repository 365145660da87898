"""The one place that runs user code, in workers and in synchronous mode."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from itertools import islice, starmap
from typing import Any, Protocol

from pynenc import context
from pynenc.exceptions import (
    LONGEST_DELAY_S,
    DependencyError,
    InvocationCancelledError,
    InvocationControlledError,
    InvocationExpiredError,
    RetryError,
    SerializationError,
    TaskTimeoutError,
    WorkerLostError,
    WorkerMemoryError,
    WorkerTraceback,
)
from pynenc.named_tuples import NamedTuple
from pynenc.protocol.messages import DEFAULT_DELAY, NOT_RETRIABLE, Failure
from pynenc.protocol.slots import CUT_FROM, CUT_TO, POSITION, STARTED, Slot
from pynenc.serializer import SCALARS, Frozen, Referring, dumps, loads

CO_COROUTINE = 0x80
"""The flag of a coroutine function's code; `inspect` has it too, but is slow to import."""

MAX_TEXT = 1 << 20
"""So much is kept of what an exception says."""

SHIP_BYTES = 256 * 1024
"""A result of this size is shipped at once."""

QUICK_S = 5e-6
"""Calls that take less are not timed one by one: to look at the clock would take a good part of that."""

MAX_STRIDE = 64
"""So many of them lie between two looks at most."""

STOPPED_QUICKLY = "the task raised it; with what, and where, is not known of calls that take less than 5 µs"

SLOW_S = 0.001
"""When that takes longer, these calls are not quick any more."""


READ_ONLY = (
    "a task gets its large arguments read-only, since all calls share them: change a copy, or set the task's option "
    "copy_arguments=True"
)
"""What is added to errors that seem to come from that."""


class Raised(NamedTuple):
    """An exception that user code raised, ready to travel."""

    type_name: str
    message: str
    traceback: str
    pickled: bytes


class Outcomes(Protocol):
    """Where a lease's outcomes are collected.

    Attributes:
        values: The frozen results; one is appended when its call has ended.
        ends: When each of them ended, when `take_times` has been called; what has an end has its value.
        due: When to ship; seconds, monotonic.
        freeze: Makes a result ready to wait.
    """

    values: list[Any]
    ends: list[float]
    due: float
    freeze: Callable[[Any], Any]

    def ship(self) -> None:
        """Send what is there; called when a call ends at or after `due`."""

    def take_times(self, now: float) -> None:
        """The calls that follow have an end each; those before ended by now."""

    def failed(self, error: BaseException, now: float) -> None:
        """Add what a call raised."""


def run_lease(
    func: Callable[..., Any], entries: Iterable[Any], positions: range, slot: Slot, outcomes: Outcomes, stride: int = 1
) -> int | None:
    """Run the calls of a lease one after the other.

    Args:
        func: The task's function.
        entries: The arguments of each call: tuples, or a list of frozen ones.
        positions: The position of each call.
        slot: Where each call is announced before it starts, and where a cut is read.
        outcomes: Takes the frozen results and the exceptions.
        stride: After how many calls the clock is looked at. With 1 each call's end is noted; calls that are over
            sooner than the clock could tell them apart have more.

    In a child that the function has forked the slot's views are released, so that this fails before the next call.

    Returns:
        The position of the call that a cut kept from running, or None when all have run.
    """
    # Each step of this iterator runs one call; after an exception it goes on with the next.
    calls = map(partial(call_frozen, func), entries) if type(entries) is list else starmap(func, entries)
    numbers, times = slot.numbers, slot.times
    add_value, add_end, freeze = outcomes.values.append, outcomes.ends.append, outcomes.freeze
    clock, position_field, cut_field = time.monotonic, POSITION, CUT_FROM
    due = outcomes.due
    began = times[STARTED] = clock()
    position, stop = positions.start, positions.stop
    plain: Any = None
    while position < stop:
        behind = min(position + stride, stop)
        try:
            numbers[position_field] = position
            if (cut := numbers[cut_field]) and cut <= position < numbers[CUT_TO]:
                return position
            # A stretch of one is asked for by `next`, so that a StopIteration of the function comes through as it is.
            for value in islice(calls, behind - position) if stride > 1 else (next(calls),):  # per call
                if type(value) is not plain:
                    plain = type(value)
                    if plain not in SCALARS:
                        plain, value = None, freeze(value)
                        if type(value) is Referring or (type(value) is Frozen and len(value) >= SHIP_BYTES):
                            due = 0.0
                add_value(value)
                position += 1
                if position == behind:
                    break
                numbers[position_field] = position
                if (cut := numbers[cut_field]) and cut <= position < numbers[CUT_TO]:
                    return position
            else:
                stride = 1
                outcomes.take_times(clock())
                # The function has raised it, which ends the loop as if there were no more calls.
                raise StopIteration(STOPPED_QUICKLY)
        except BaseException as error:  # user code: SystemExit ends the call, not the worker
            now = clock()
            outcomes.failed(error, now)
            position += 1
        else:
            now = clock()
            if stride == 1:
                add_end(now)
            elif now - began > SLOW_S:
                stride = 1
                outcomes.take_times(now)
        if now >= due:
            outcomes.ship()
            due = outcomes.due
            now = times[STARTED] = clock()
        began = now
    return None


def call_frozen(func: Callable[..., Any], entry: Frozen) -> Any:
    """Call a function with pickled arguments: a tuple, a dictionary of keywords, or a list of both."""
    arguments = loads(entry)
    kind = type(arguments)
    if kind is tuple:
        return func(*arguments)
    if kind is dict:
        return func(**arguments)
    positional, keywords = arguments
    return func(*positional, **keywords)


def call_copying(func: Callable[..., Any], common: bytes | None, entry: Any) -> Any:
    """The same with copies of large arguments, which the function may change.

    Args:
        func: The function.
        common: Pickled keywords that it gets, too.
        entry: Its arguments: a tuple, or frozen.
    """
    collector = context.collector
    collector.copying = True
    try:
        shared = loads(common) if common is not None else {}
        begin = partial(_begin, func, **shared)
        return call_frozen(begin, entry) if type(entry) is Frozen else begin(*entry)
    finally:
        collector.copying = False


def _begin(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function: what it reads itself is not copied."""
    context.collector.copying = False
    return func(*args, **kwargs)


def runnable(func: Callable[..., Any]) -> Callable[..., Any]:
    """A function that gives the result itself: coroutine functions are run to their end.

    >>> async def double(x): return 2 * x
    >>> runnable(double)(4)
    8
    """
    if not is_coroutine_function(func):
        return func
    return lambda *args, **kwargs: _run_coroutine(func(*args, **kwargs))


def nothing(*_: Any) -> None:
    """In the place of a function that is not called any more."""


def is_coroutine_function(func: Callable[..., Any]) -> bool:
    """Whether a function is an `async def` function."""
    code = getattr(func, "__code__", None)
    return code is not None and bool(code.co_flags & CO_COROUTINE)


def _run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    # In synchronous mode the caller may be inside an event loop, and a thread can run only one.
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, coroutine).result()


def sent_back(error: BaseException) -> BaseException:
    """The exception of a call that ran in this process, as a client would get it: one that cannot be pickled is told of."""
    raised = describe(error)
    restored = restore(raised)
    return error if type(restored) is type(error) else restored


def describe(error: BaseException) -> Raised:
    """An exception as it travels: in words, and pickled when that can be undone.

    Raises nothing, whatever the exception's own code does when it is looked at, except Ctrl-C (`is_ctrl_c`).
    """
    try:
        return _describe(error)
    except BaseException as broken:  # user code that Python itself calls: a property, a metaclass
        if is_ctrl_c(broken):
            raise
        type_name = type(error).__qualname__
        message = f"the task raised {type_name}; it cannot be looked at: {type(broken).__name__}"
        return Raised(type_name, message, f"{message}\n", dumps(SerializationError(message)))


def _describe(error: BaseException) -> Raised:
    import traceback

    if context.uses_blobs and isinstance(error, ValueError | TypeError | BufferError) and "read-only" in str(error):
        error.add_note(READ_ONLY)
    # The first entry is this module's own call of the user's function.
    tail = error.__traceback__.tb_next if error.__traceback__ is not None else None
    try:
        text = "".join(traceback.format_exception(type(error), error, tail))
    except BaseException as broken:  # the user's own __str__ or __repr__
        if is_ctrl_c(broken):
            raise
        text = f"{type(error).__qualname__} (its text cannot be shown: {type(broken).__name__})\n"
    message = _message_of(error) + (f"; {READ_ONLY}" if READ_ONLY in getattr(error, "__notes__", ()) else "")
    type_name = type(error).__qualname__
    return Raised(type_name, message[:MAX_TEXT], text[:MAX_TEXT], _pickle_exception(error, type_name, message))


def call_back(callback: Callable[[], object]) -> None:
    """Call the user's code when there is nobody to raise to: what it raises is logged, except Ctrl-C (`is_ctrl_c`)."""
    try:
        callback()
    except BaseException as error:  # user code
        if is_ctrl_c(error):
            raise
        import logging

        logging.getLogger("pynenc").exception("a done callback raised")


def is_ctrl_c(error: BaseException) -> bool:
    """Whether an exception has to be taken for the user's Ctrl-C, which ends the script whatever code it interrupts.

    That is every `KeyboardInterrupt` in the main thread of a process that is no worker: nothing tells one that code
    has raised. Workers ignore the signal, so there it is the user's code.
    """
    return (
        isinstance(error, KeyboardInterrupt)
        and context.worker_of is None
        and threading.current_thread() is threading.main_thread()
    )


def retry_delay(error: BaseException, retriable: tuple[type[BaseException], ...]) -> float:
    """After how many seconds an exception asks for another attempt, or `DEFAULT_DELAY`, or `NOT_RETRIABLE`.

    Raises nothing but Ctrl-C, as `describe`: an exception that cannot be looked at is not retriable.
    """
    try:
        if not isinstance(error, retriable):
            return NOT_RETRIABLE
        # A subclass may have an `__init__` that knows of no delay, or set one that is none.
        delay = getattr(error, "delay", None) if isinstance(error, RetryError) else None
        return DEFAULT_DELAY if delay is None or not 0 <= delay <= LONGEST_DELAY_S else float(delay)
    except BaseException as broken:  # the exception's own code
        if is_ctrl_c(broken):
            raise
        return NOT_RETRIABLE


SUPERVISORS_ERRORS = {
    error.__name__: error
    for error in (
        WorkerLostError,
        WorkerMemoryError,
        TaskTimeoutError,
        InvocationCancelledError,
        InvocationExpiredError,
        InvocationControlledError,
        DependencyError,
    )
}
"""The errors that the supervisor ends calls with; it pickles nothing, so they travel by name."""


ENDED_WITH_WORKER = frozenset({WorkerLostError.__name__, WorkerMemoryError.__name__, TaskTimeoutError.__name__})
"""Those for which it matters with which arguments the call ran."""


def restore(
    failure: Failure | Raised, invocation_id: str = "", arguments: Callable[[], str] | None = None
) -> BaseException:
    """The exception that a call raised, with the worker's traceback as its cause.

    Args:
        failure: What came of it.
        invocation_id: The call.
        arguments: Its arguments in short; asked for when its worker ended with it.

    Raises nothing but Ctrl-C (`is_ctrl_c`): an exception that cannot be read here comes back as `SerializationError`.
    """
    if not failure.pickled:
        message = failure.message
        if arguments is not None and failure.type_name in ENDED_WITH_WORKER and (shown := arguments()):
            message = f"{message}; its arguments: {shown}"
        return SUPERVISORS_ERRORS[failure.type_name](invocation_id, message)
    try:
        error: BaseException = loads(failure.pickled)
        if not isinstance(error, BaseException):
            raise TypeError(f"{type(error).__name__} is no exception")
    except BaseException as broken:  # unpickling runs the user's own code
        if is_ctrl_c(broken):
            raise
        error = SerializationError(
            f"the task raised {failure.type_name}: {failure.message}; the exception itself "
            f"cannot be unpickled here: {type(broken).__name__}: {_message_of(broken)}"
        )
    # Not `error.__cause__ = …`: an exception may be a dataclass that lets nobody set anything.
    vars(BaseException)["__cause__"].__set__(error, WorkerTraceback(failure.traceback))
    return error


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:  # the user's own __str__
        if is_ctrl_c(broken):
            raise
        return f"(its text cannot be shown: {type(broken).__name__})"


def _pickle_exception(error: BaseException, type_name: str, message: str) -> bytes:
    try:
        pickled = dumps(error)
        loads(pickled)  # Many exception classes can be pickled but not read back.
    except BaseException as broken:  # pickling runs the user's own code, which may also want to leave the program
        if is_ctrl_c(broken):
            raise
        why = f"{type(broken).__name__}: {_message_of(broken)}"
        return dumps(SerializationError(f"the task raised {type_name}: {message}; it cannot be pickled: {why}"))
    return pickled
