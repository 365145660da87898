"""The fields of a JSON message, each read as what it must be: whoever reads a message can rely on every type and bound.

Anybody who knows the key may send anything, by mistake or not. What is not as it should be is refused here, with one error,
so nobody behind this has to expect it.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

from pynenc.exceptions import ProtocolError
from pynenc.protocol.messages import MAX_INVOCATION, json_from


class Fields:
    """Reads fields by name.

    Args:
        what: The message, for errors.
        values: Its fields.

    Each method raises `ProtocolError` for a field that is missing or not of its kind.

    >>> Fields("an example", {"first": 3}).integer("first", most=5)
    3
    """

    def __init__(self, what: str, values: dict[str, Any]) -> None:
        self._what = what
        self._values = values

    @classmethod
    def of(cls, what: str, body: bytes) -> Fields:
        """The fields in the body of a frame."""
        return cls(what, json_from(body))

    def integer(self, name: str, most: int = MAX_INVOCATION, least: int = 0, default: int | None = None) -> int:
        """A whole number."""
        value = self._values.get(name, default)
        if type(value) is not int or not least <= value <= most:
            raise self._refusal(name, f"an integer from {least} to {most}")
        return value

    def number(self, name: str) -> float:
        """A finite number of at least 0."""
        value = self._values.get(name)
        if type(value) is not float and (type(value) is not int or abs(value) > MAX_INVOCATION):
            raise self._refusal(name, "a number")
        if not isfinite(value) or value < 0:
            raise self._refusal(name, "a number of at least 0")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._values.get(name, default)
        if type(value) is not bool:
            raise self._refusal(name, "true or false")
        return value

    def text(self, name: str) -> str:
        """A text that can be stored."""
        value = self._values.get(name)
        if type(value) is not str or not is_unicode(value):
            raise self._refusal(name, "a text")
        return value

    def integers(self, name: str, most: int) -> list[int]:
        """A list of whole numbers of at least 0."""
        value = self._values.get(name)
        if type(value) is not list or not all(type(one) is int and 0 <= one <= most for one in value):
            raise self._refusal(name, f"a list of integers from 0 to {most}")
        return value

    def ranges(self, name: str, most: int, stop: int) -> list[tuple[int, int, int]]:
        """A list of a number up to `most` and a range of numbers below `stop` each."""
        value = self._values.get(name)
        if type(value) is not list:
            raise self._refusal(name, "a list")
        for one in value:
            if type(one) is not list or len(one) != 3 or not all(type(number) is int for number in one):
                raise self._refusal(name, "a list of three integers each")
            if not (0 <= one[0] <= most and 0 <= one[1] < one[2] <= stop):
                raise self._refusal(name, f"a list of an integer up to {most} and a range up to {stop} each")
        return [(number, first, end) for number, first, end in value]

    def path(self, name: str) -> str:
        """A path, which may hold what is no text; it is handed on as JSON."""
        value = self._values.get(name)
        if type(value) is not str:
            raise self._refusal(name, "a path")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts or paths."""
        value = self._values.get(name)
        if type(value) is not list or not all(type(one) is str for one in value):
            raise self._refusal(name, "a list of texts")
        return value

    def inner(self, name: str) -> Fields:
        """An object in the message."""
        value = self._values.get(name)
        if type(value) is not dict:
            raise self._refusal(name, "an object")
        return Fields(f"{self._what}, {name}", value)

    @property
    def names(self) -> list[str]:
        """Which fields there are."""
        return list(self._values)

    @property
    def values(self) -> dict[str, Any]:
        """The fields as they came."""
        return self._values

    def _refusal(self, name: str, expected: str) -> ProtocolError:
        return ProtocolError(f"{self._what}: {name} is not {expected}")


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: one that came from the system, as a path may have, sometimes cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
