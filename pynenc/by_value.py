"""Pickles by value what other processes cannot import: with cloudpickle, which is slow to import and so has this module."""

from __future__ import annotations

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
        at = script.home_of(value)
        if at is None:
            return reduced
        make, arguments, state, _, _, set_state = reduced
        parts = (at, value.__qualname__, make, arguments)
        return script.received, parts, (set_state, state), None, None, script.complete
