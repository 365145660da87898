"""Calls as they wait for their batch: their arguments frozen, with keys, and with what results of other calls they take.

A program that calls nothing imports none of this.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from pynenc import context
from pynenc.arguments import Arguments
from pynenc.exceptions import SerializationError
from pynenc.named_tuples import NamedTuple
from pynenc.protocol.extras import Dependency, Extras, dependencies_column
from pynenc.serializer import Freezes, Frozen, Referring, all_plain, dumps, loads

if TYPE_CHECKING:
    from pynenc.task import Task


class CallKeys(NamedTuple):
    """The keys of one call; empty where its task has no such rule."""

    running: bytes = b""
    registration: bytes = b""
    arguments: bytes = b""
    cache: bytes = b""


class PreparedCall(NamedTuple):
    """A call with keys or dependencies.

    Attributes:
        entry: Its arguments: a tuple of plain values, or frozen.
        dependencies: Batches, and the calls `[first, stop)` of them, whose results it takes; in synchronous mode their
            invocations.
        blobs: To which blobs its arguments refer.
    """

    entry: tuple[Any, ...] | Frozen
    keys: CallKeys = CallKeys()
    dependencies: tuple[Any, ...] = ()
    blobs: tuple[Any, ...] = ()

    def weight(self, others: Container[Any]) -> int:
        """The bytes that it adds to a batch whose other calls refer to these blobs."""
        return len(self.entry) + self.blob_bytes(others) if type(self.entry) is Frozen else 0

    def blob_bytes(self, others: Container[Any] = ()) -> int:
        """The bytes of its blobs to which the others do not refer."""
        return sum(blob.size for blob in self.blobs if blob not in others)


def extras_of(count: int, prepared: Mapping[int, PreparedCall], constant: Extras) -> Extras:
    """The extras of a batch.

    Args:
        count: How many calls it has.
        prepared: Those of them that are prepared, by index.
        constant: What holds for all of them alike; it depends on what each of them does.
    """
    if not prepared and not constant.dependencies:
        return constant
    shared = [one._replace(index=index) for one in constant.depended_on() for index in range(count)]
    if not prepared:
        return constant._replace(dependencies=dependencies_column(shared))
    columns = []
    for column in range(4):
        keys = [prepared[index].keys[column] for index in range(count) if index in prepared]
        # All calls of a task have a key, or none has; a single key for `running` holds for all.
        columns.append(keys[0] if column == 0 and len(set(keys)) == 1 else b"".join(keys))
    found = [Dependency(index, *one) for index, call in sorted(prepared.items()) for one in call.dependencies]
    running = columns[0] or constant.running
    blobs = {blob: None for call in prepared.values() for blob in call.blobs}
    return constant._replace(
        running=running,
        registration=columns[1],
        arguments=columns[2],
        cache=columns[3],
        dependencies=dependencies_column(shared + found),
        blobs=constant.blobs + b"".join(blob.to_bytes() for blob in blobs),
    )


def call_of(
    task: Task[Any, Any], item: tuple[Any, ...] | dict[str, Any] | Arguments, common: Mapping[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that an item of `parallelize` stands for, without those that all items share.

    Raises:
        TypeError: It stands for none, or they do not fit the function.
    """
    if isinstance(item, tuple):
        if common or not task.takes_positional(len(item)):
            Arguments.from_call(task.func, *item, **(common or {}))
        return tuple(item), {}  # Also of a subclass: it stands for the values in it.
    if isinstance(item, dict):
        if common and (twice := sorted(common.keys() & item.keys())):
            raise TypeError(f"{task.task_id}: {', '.join(twice)} is in an item and in common_args")
        Arguments.from_call(task.func, **item, **(common or {}))
        return (), dict(item)
    if isinstance(item, Arguments) and common:
        raise TypeError(
            f"{task.task_id}: task.args(...) binds all arguments; with common_args use tuples or dictionaries"
        )
    if isinstance(item, Arguments):
        return item.to_call(task.func)
    raise TypeError(
        f"{task.task_id}: parallelize takes tuples (positional arguments), dictionaries (keyword arguments) and "
        f"task.args(...), not {type(item).__name__}: for one argument write (value,)"
    )


def freeze_call(
    task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any], freezer: Freezes | None = None
) -> tuple[Any, ...] | Frozen | PreparedCall:
    """The arguments of a call, ready to travel; with the invocations among them, whose results it takes.

    Args:
        args: The positional arguments.
        kwargs: The keyword arguments.
        freezer: Writes large buffers to blobs; without one they are pickled.

    Raises:
        TypeError: One of them cannot be pickled; names the parameter.
    """
    if not kwargs and all_plain(args):  # per call
        return args
    arguments = args if not kwargs else [args, kwargs] if args else kwargs
    collector = context.collector
    outer = collector.app, collector.found, collector.blobs
    collector.app, collector.found, collector.blobs = task.app, [], []
    try:
        frozen = Frozen(dumps(arguments)) if freezer is None else freezer.frozen(arguments)
        # What is pickled by value after all has been pickled twice.
        found, blobs = tuple(dict.fromkeys(collector.found)), tuple(dict.fromkeys(collector.blobs))
    except SerializationError as error:
        raise _unpicklable(task, args, kwargs, error) from error
    finally:
        collector.app, collector.found, collector.blobs = outer
    if isinstance(frozen, Referring):
        blobs = (*frozen.references, *blobs)
        frozen = Frozen(frozen)
    return PreparedCall(frozen, dependencies=found, blobs=blobs) if found or blobs else frozen


def prepare(
    task: Task[Any, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    common: Mapping[str, Any] | None = None,
    freezer: Freezes | None = None,
) -> tuple[Any, ...] | Frozen | PreparedCall:
    """The arguments of a call, ready to travel, with its keys if its task has rules about them.

    Args:
        args: The positional arguments.
        kwargs: The keyword arguments.
        common: The keyword arguments that it shares with others, which travel apart.
        freezer: Writes large buffers to blobs.
    """
    entry = freeze_call(task, args, kwargs, freezer)
    rules = task.key_rules
    if rules is None or not rules.by_arguments:
        return entry
    keys = rules.keys_of(Arguments.from_call(task.func, *args, **kwargs, **(common or {})))
    if isinstance(entry, PreparedCall):
        return entry._replace(keys=keys)
    return PreparedCall(entry, keys)


def args_from(
    task: Task[Any, Any], entry: tuple[Any, ...] | Frozen, common: Mapping[str, Any] | None = None
) -> Arguments:
    """The arguments behind a frozen call, those that it shares included; the invocations among them as such."""
    arguments = thaw(task, entry) if isinstance(entry, Frozen) else entry
    shared = dict(common or {})
    if isinstance(arguments, tuple):
        return Arguments.from_call(task.func, *arguments, **shared)
    if isinstance(arguments, dict):
        return Arguments.from_call(task.func, **arguments, **shared)
    return Arguments.from_call(task.func, *arguments[0], **arguments[1], **shared)


def thaw(task: Task[Any, Any], frozen: bytes) -> Any:
    """Frozen arguments as they were; the invocations among them as such."""
    collector = context.collector
    outer, collector.reading = collector.reading, task.app
    try:
        return loads(frozen)
    finally:
        collector.reading = outer


def _unpicklable(task: Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> TypeError:
    import inspect

    # Those that calls share are frozen without the others.
    for name, value in inspect.signature(task.func).bind_partial(*args, **kwargs).arguments.items():
        try:
            dumps(value)
        except SerializationError as found:
            return TypeError(f"{task.task_id}(): argument {name!r}: {found}; it has to travel to another process")
    return TypeError(f"{task.task_id}(): {error}; arguments have to travel to another process")
