"""Calls that are more than their frozen arguments: they have keys, or take results of other calls."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from pynenc.named_tuples import NamedTuple
from pynenc.protocol.extras import Dependency, Extras, dependencies_column
from pynenc.serializer import Frozen


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
