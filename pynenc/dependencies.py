"""Results as arguments: what an invocation that is passed to a call becomes on its way.

Pickled as an argument, an invocation leaves its number, and a group those of its calls. Where the call runs, the result
stands in its place, read from the state backend by the worker itself: it passes neither through the client nor through
the supervisor. Where the arguments are only looked at, the invocation does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pynenc import context
from pynenc.exceptions import DependencyError
from pynenc.protocol.messages import Packing, Results, format_invocation_id, invocation_number, split_number
from pynenc.serializer import frozen_rows, loads, unpack

if TYPE_CHECKING:
    from pynenc.state_backend import StateBackend

KEEP_BATCHES = 64
"""The results of so many batches are kept for calls to come."""

_kept: dict[int, list[tuple[Results, list[Any]]]] = {}
_backends: dict[str, StateBackend] = {}


def result_of(number: int) -> Any:
    """The result of an invocation, or the invocation where arguments are only looked at."""
    batch, index = split_number(number)
    if context.collector.comparing:
        return [number]
    if (app := context.collector.reading) is not None:
        return app.get_invocation(format_invocation_id(number))
    return _values(batch, index, index + 1)[0]


def results_of(task: Any, parts: list[tuple[int, int, int]]) -> Any:
    """The results of the calls `[first, stop)` of each batch, in one list, or their group where arguments are looked at."""
    if context.collector.comparing:
        return parts
    if (app := context.collector.reading) is not None:
        return app.runner.group_of(task, parts)
    return [value for part in parts for value in _values(*part)]


def _values(batch: int, first: int, stop: int) -> list[Any]:
    values: list[Any] = []
    at = first
    while at < stop:
        found = _stretch_at(batch, at)
        if found is None:
            raise DependencyError(
                format_invocation_id(invocation_number(batch, at)), "its result is not in the state backend any more"
            )
        results, rows = found
        end = min(stop, results.stop)
        taken = rows[at - results.first : end - results.first]
        # What can be changed is unpickled for each call anew.
        values += map(loads, taken) if results.packing == Packing.ROWS else taken
        at = end
    return values


def _stretch_at(batch: int, index: int) -> tuple[Results, list[Any]] | None:
    for known in (True, False):
        if not known:
            _read(batch)
        for found in _kept.get(batch, ()):
            if found[0].first <= index < found[0].stop:
                return found
    return None


def _read(batch: int) -> None:
    assert context.worker_of is not None, "dependencies are resolved where calls run"
    from pynenc.state_backend import StateBackend  # Brings SQLite, which most processes that import this never need.

    path = context.worker_of.database
    backend = _backends.get(path) or _backends.setdefault(path, StateBackend(path))
    results, _ = backend.outcomes_of(batch)
    while len(_kept) >= KEEP_BATCHES:
        del _kept[next(iter(_kept))]
    _kept[batch] = [
        (one, frozen_rows(one.payload) if one.packing == Packing.ROWS else unpack(one.packing, one.payload))
        for one in results
    ]
