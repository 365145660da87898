"""Pickles by value what other processes cannot import: with cloudpickle, which is slow to import and so has this module."""

from __future__ import annotations

from enum import Enum
from typing import Any

import cloudpickle

from pynenc import script

_REDUCED = 6
"""So long is what a function or class is reduced to when it travels by value."""


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is untyped
    """Pickles lambdas, closures and local classes, and what the script defines so that it is the same when it comes back.

    cloudpickle alone would make new functions of the script's own, and overwrite the attributes of its classes with old ones.
    """

    def reducer_override(self, value: Any) -> Any:
        """How a function or class is pickled."""
        reduced = super().reducer_override(value)
        if type(reduced) is not tuple or len(reduced) != _REDUCED:
            return reduced
        make, arguments, state, _, _, set_state = reduced
        if isinstance(value, type):
            _keep_slots(value, arguments)
        at = script.home_of(value)
        if at is None:
            return reduced
        parts = (at, value.__qualname__, make, arguments)
        return script.received, parts, (set_state, state), None, None, script.complete


def _keep_slots(kind: type, arguments: tuple[Any, ...]) -> None:
    """Have a class made with its `__slots__`, which cloudpickle sets too late for them to have an effect.

    Its objects would have a `__dict__` elsewhere, and could not come back to where they have none.
    Tuples have no slots, and the makers of named ones take none.
    """
    slots = vars(kind).get("__slots__")
    if isinstance(slots, str | tuple | list | dict) and not issubclass(kind, Enum | tuple):
        for namespace in arguments:
            if type(namespace) is dict:
                namespace["__slots__"] = slots
