"""The bound arguments of one call, by name, with defaults filled in."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from functools import cached_property
from types import FunctionType
from typing import Any

from pynenc import script
from pynenc.exceptions import SerializationError
from pynenc.serializer import PROTOCOL, dumps
from pynenc.types import Args

_IN_BUFFERS = "biufc"
"""The kinds of NumPy items that the buffer protocol knows."""


class Arguments:
    """The arguments of one call: what each parameter of the function gets.

    Two of them are equal when every parameter gets an equal value, however the calls were written.

    Args:
        kwargs: The value of each parameter by name.

    >>> def add(x, y=2): return x + y
    >>> Arguments.from_call(add, 1) == Arguments.from_call(add, y=2, x=1)
    True
    """

    def __init__(self, kwargs: Args | None = None) -> None:
        self.kwargs: Args = kwargs or {}

    @classmethod
    def from_call(cls, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Arguments:
        """Bind a call's arguments to the function's parameters.

        Raises:
            TypeError: They do not fit; names the function and what is missing or too much.
        """
        import inspect

        try:
            bound = inspect.signature(func).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{func.__name__}(): {error}") from None
        bound.apply_defaults()
        return cls(bound.arguments)

    def to_call(self, func: Callable[..., Any]) -> tuple[tuple[Any, ...], Args]:
        """The positional arguments and keywords with which to call the function.

        Raises:
            TypeError: A name is no parameter of the function, or a parameter has no value.
        """
        import inspect

        signature = inspect.signature(func)
        if unknown := [name for name in self.kwargs if name not in signature.parameters]:
            raise TypeError(f"{func.__name__}() has no parameter {', '.join(map(repr, unknown))}")
        bound = inspect.BoundArguments(signature, {n: self.kwargs[n] for n in signature.parameters if n in self.kwargs})
        signature.bind(*bound.args, **bound.kwargs)
        return bound.args, bound.kwargs

    @cached_property
    def args_id(self) -> str:
        """A digest of the values; the same for equal arguments, however the call was written.

        Raises:
            SerializationError: A value cannot be pickled.
        """
        return self.digest.hex()

    @cached_property
    def digest(self) -> bytes:
        """The digest of `args_id` as bytes."""
        return digest(self.kwargs)

    def in_short(self, most: int = 200) -> str:
        """The arguments in words, of so many characters at most, whatever they are."""
        from reprlib import Repr

        words = Repr()
        words.maxstring = words.maxother = words.maxlong = 40
        text = ", ".join(f"{name}={words.repr(value)}" for name, value in self.kwargs.items())
        return text if len(text) <= most else f"{text[: most - 3]}..."

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Arguments):
            return NotImplemented
        try:
            return self.args_id == other.args_id
        except SerializationError:  # What cannot be pickled equals nothing but itself.
            mine, others = self.kwargs, other.kwargs
            return mine.keys() == others.keys() and all(mine[name] is others[name] for name in mine)

    def __hash__(self) -> int:
        try:
            return hash(self.args_id)
        except SerializationError:
            return hash(frozenset(self.kwargs))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.kwargs.items())
        return f"Arguments({shown})"

    __str__ = __repr__


def digest(value: Any) -> bytes:
    """A digest of a value, 32 bytes, the same in every process.

    Wherever they are in the value, the order of dictionaries and sets does not count, nor which parts are the same object.

    Raises:
        SerializationError: It cannot be pickled.
    """
    return _digest(value, ())


def _digest(value: Any, around: tuple[int, ...]) -> bytes:
    from hashlib import sha256

    pickled = io.BytesIO()
    try:
        _Canonical(pickled, around).dump(value)
    except Exception:  # Functions that have no name, lists that contain themselves, the user's own pickling.
        return sha256(dumps(value)).digest()
    return sha256(pickled.getvalue()).digest()


class _Canonical(pickle.Pickler):
    """Pickles equal values alike.

    Args:
        target: Where the pickle goes, which cannot be read back.
        around: The ids of the dictionaries and sets that the value lies in, the innermost first.
    """

    def __init__(self, target: io.BytesIO, around: tuple[int, ...]) -> None:
        super().__init__(target, PROTOCOL)
        self.fast = True  # Else what comes twice is referred to the second time, and its equal is not.
        self._around = around

    def persistent_id(self, value: Any) -> Any:
        """In the place of a dictionary or set stand the digests of what is in it; None where the value stands for itself."""
        kind = type(value)
        if kind is not dict and kind is not set and kind is not frozenset:
            return self._stand_in(kind, value)
        if id(value) in self._around:
            return self._around.index(id(value))
        around = (id(value), *self._around)
        if kind is dict:
            return "dict", sorted(_digest(key, around) + _digest(one, around) for key, one in value.items())
        return kind.__name__, sorted(_digest(one, around) for one in value)

    def _stand_in(self, kind: type, value: Any) -> Any:
        """What stands in the place of an array, or of a function or class of the script; None where the value stands for itself."""
        if kind.__name__ == "ndarray" and kind.__module__ == "numpy":
            return "ndarray", value.dtype, value.shape, _items_digest(value, self._around)
        if (kind is FunctionType or issubclass(kind, type)) and (at := script.home_of(value)) is not None:
            return "script", *at, value.__qualname__
        return None


def _items_digest(array: Any, around: tuple[int, ...]) -> bytes:
    """A digest of an array's items in C order, however they lie in memory, and whether or not it may be written to."""
    from hashlib import sha256

    if array.dtype.hasobject:
        return _digest(array.tolist(), around)
    if array.flags.c_contiguous and array.dtype.kind in _IN_BUFFERS and array.size:
        return sha256(array.data).digest()
    return sha256(array.tobytes()).digest()
