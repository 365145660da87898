"""The bound arguments of one call, by name, with defaults filled in."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from pynenc.types import Args


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
        if not isinstance(other, Arguments):
            return NotImplemented
        return self.args_id == other.args_id

    def __hash__(self) -> int:
        return hash(self.args_id)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.kwargs.items())
        return f"Arguments({shown})"

    __str__ = __repr__


def digest(value: Any) -> bytes:
    """A digest of a value, 32 bytes. The order of dictionaries and sets does not count, nor which parts are the same object."""
    from hashlib import sha256

    from pynenc.serializer import dumps

    kind = type(value)
    if kind in (list, tuple):
        parts = [digest(one) for one in value]
    elif kind is dict:
        parts = sorted(digest(key) + digest(one) for key, one in value.items())
    elif kind in (set, frozenset):
        parts = sorted(digest(one) for one in value)
    else:
        parts = [dumps(value)]
    return sha256(b"".join((kind.__qualname__.encode(), b"\0", *parts))).digest()
