"""Fields: the one definition of each configuration value, with its type, default and documentation.

A field converts what a source says (text from the environment, values from files and code) or says what it expects.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from pynenc.module_paths import found_by_path

if TYPE_CHECKING:
    from pynenc.conf.sources import Config

Value = TypeVar("Value")

TRUE = frozenset({"true", "1", "yes", "on"})
FALSE = frozenset({"false", "0", "no", "off"})


class Field(Generic[Value]):
    """One configuration value.

    Args:
        default: The value when no source says anything.
        convert: Makes a value of this field from what a source says, or raises `ValueError`.
        expects: The type in words, for errors and for the reference.
        doc: What the value does, with its unit.
        aliases: Other names that are accepted.

    Attributes:
        name: The field's name; its attribute's.
        names: All names that are accepted, this one first.
    """

    def __init__(
        self, default: Value, convert: Callable[[Any], Value], expects: str, doc: str, aliases: tuple[str, ...] = ()
    ) -> None:
        self.default = default
        self.convert = convert
        self.expects = expects
        self.doc = doc
        self.name = ""
        self.names = aliases

    def __set_name__(self, owner: type[Config], name: str) -> None:
        self.name = name
        self.names = (name, *self.names)

    @overload
    def __get__(self, config: None, owner: type[Config]) -> Field[Value]: ...
    @overload
    def __get__(self, config: Config, owner: type[Config]) -> Value: ...
    def __get__(self, config: Config | None, owner: type[Config]) -> Value | Field[Value]:
        if config is None:
            return self
        return config.value_of(self)

    def __set__(self, config: Config, value: Any) -> None:
        config.set_value(self, value)


def boolean(default: bool, doc: str) -> Field[bool]:
    """A field that is true or false."""

    def convert(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, int) and value in (0, 1):
            return bool(value)
        text = value.strip().lower() if isinstance(value, str) else ""
        if text in TRUE or text in FALSE:
            return text in TRUE
        raise ValueError

    return Field(default, convert, "a boolean (true, yes, on, 1, false, no, off, 0)", doc)


def integer(default: int, doc: str, least: int = 0, aliases: tuple[str, ...] = (), most: int = 1 << 31) -> Field[int]:
    """A whole number of at least `least`."""
    bounds = f"of at least {least}" if most == 1 << 31 else f"from {least} to {most}"

    def convert(value: Any) -> int:
        if (converted := _integer(value, least)) > most:
            raise ValueError
        return converted

    return Field(default, convert, f"an integer {bounds}", doc, aliases)


def optional_integer(doc: str, least: int = 1) -> Field[int | None]:
    """A whole number of at least `least`, or none."""

    def convert(value: Any) -> int | None:
        if value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "auto")):
            return None
        return _integer(value, least)

    return Field(None, convert, f"an integer of at least {least}, or none", doc)


def seconds(default: float, doc: str, least: float = 0.0) -> Field[float]:
    """A duration in seconds."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
        if not least <= number < float("inf"):
            raise ValueError
        return number

    return Field(default, convert, f"a number of seconds of at least {least:g}", doc)


def number(default: float, doc: str, least: float, most: float = float("inf")) -> Field[float]:
    """A number between two bounds."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        converted = float(value)
        if not least <= converted <= most or converted == float("inf"):
            raise ValueError
        return converted

    bounds = f"of at least {least:g}" if most == float("inf") else f"from {least:g} to {most:g}"
    return Field(default, convert, f"a number {bounds}", doc)


def optional_seconds(doc: str) -> Field[float | None]:
    """A duration in seconds above 0, or none."""

    def convert(value: Any) -> float | None:
        if value is None or (isinstance(value, str) and value.strip().lower() in ("", "none")):
            return None
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        converted = float(value)
        if not 0 < converted < float("inf"):
            raise ValueError
        return converted

    return Field(None, convert, "a number of seconds above 0, or none", doc)


DURATIONS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_MULTIPLES = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40
}  # fmt: skip
SIZES = {multiple + b: size for multiple, size in _MULTIPLES.items() for b in ("", "b")}
"""Units with or without the B of bytes."""


def optional_duration(doc: str) -> Field[float | None]:
    """A duration above 0, as seconds or with a unit, or none."""

    def convert(value: Any) -> float | None:
        if _is_none(value):
            return None
        converted = _measured(value, DURATIONS)
        if converted <= 0:
            raise ValueError
        return converted

    return Field(None, convert, "seconds above 0, or a duration like 45s, 30m, 12h, 7d, 4w, or none", doc)


def optional_size(default: int | None, doc: str, least: int) -> Field[int | None]:
    """A number of bytes, also with a unit, or none."""

    def convert(value: Any) -> int | None:
        if _is_none(value):
            return None
        converted = _measured(value, SIZES)
        if converted < least:
            raise ValueError
        return int(converted)

    return Field(default, convert, f"bytes, or a size like 500MB or 2GiB, of at least {least >> 20}MiB, or none", doc)


def optional_memory(doc: str, least: int) -> Field[int | float | None]:
    """Bytes as an integer, or a share of the memory there is as a float above 0 and up to 1, or none."""

    def convert(value: Any) -> int | float | None:
        if _is_none(value):
            return None
        size = _measured(value, SIZES)
        if 0 < size <= 1:
            return size
        if size < least:
            raise ValueError
        return int(size)

    expects = (
        f"bytes, at least {least >> 20} MiB (a number, or a text like '2GiB'), a share above 0 and up to 1, or none"
    )
    return Field(None, convert, expects, doc)


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "none"))


def _measured(value: Any, units: dict[str, Any]) -> float:
    """A number, or a text of a number and a unit, in the unit that counts 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    factor = 1.0
    if isinstance(value, str):
        value = value.strip().lower()
        unit = value.lstrip("0123456789.+-e ").strip() if value[-1:].isalpha() else ""
        if unit:
            if unit not in units:
                raise ValueError
            value, factor = value[: -len(unit)], units[unit]
    converted = float(value) * factor
    if not 0 <= converted < float("inf"):
        raise ValueError
    return converted


def text(default: str, doc: str, choices: Iterable[str] = ()) -> Field[str]:
    """A text; with choices, one of them in any case."""
    allowed = {choice.upper(): choice for choice in choices}

    def convert(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError
        if allowed:
            return allowed[value.upper()] if value.upper() in allowed else _refuse()
        return value

    return Field(default, convert, f"one of {', '.join(allowed.values())}" if allowed else "a text", doc)


def optional_path(doc: str) -> Field[str | None]:
    """A path, or none."""

    def convert(value: Any) -> str | None:
        if value is None or value == "":
            return None
        if isinstance(value, str | os.PathLike):
            return os.fsdecode(value)
        raise ValueError

    return Field(None, convert, "a path", doc)


EnumValue = TypeVar("EnumValue", bound=Enum)


def choice(default: EnumValue, doc: str) -> Field[EnumValue]:
    """A member of an enum, also by its name or value in any case."""
    kind = type(default)

    def convert(value: Any) -> EnumValue:
        if isinstance(value, kind):
            return value
        if isinstance(value, str):
            for member in kind:
                if value.upper() == member.name.upper() or value.lower() == str(member.value).lower():
                    return member
        raise ValueError

    return Field(default, convert, f"one of {', '.join(member.name for member in kind)}", doc)


def names(doc: str) -> Field[tuple[str, ...]]:
    """Several names; in the environment they are separated by commas."""

    def convert(value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        if isinstance(value, list | tuple | set | frozenset) and all(isinstance(part, str) for part in value):
            return tuple(sorted(value) if isinstance(value, set | frozenset) else value)
        raise ValueError

    return Field((), convert, "a list of names", doc)


def exception_classes(doc: str) -> Field[tuple[type[BaseException], ...]]:
    """Exception classes, or the dotted names of some (`module.Class`; builtins by their bare name)."""

    def convert(value: Any) -> tuple[type[BaseException], ...]:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, type):
            value = (value,)
        if not isinstance(value, list | tuple | set | frozenset):
            raise ValueError
        return tuple(exception_class(one) for one in value)

    return Field((), convert, "exception classes, or their dotted names", doc)


def anything(doc: str) -> Field[Any]:
    """A value that whoever uses it checks."""
    return Field(None, lambda value: value, "any value", doc)


def exception_class(named: Any) -> type[BaseException]:
    """An exception class, itself or by its dotted name.

    Raises:
        ValueError: It is none, or cannot be imported.
    """
    if isinstance(named, str):
        try:
            named = found_by_path(named)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"there is no exception class {named}: {error}") from None
    if isinstance(named, type) and issubclass(named, BaseException):
        return named
    raise ValueError(f"{named!r} is no exception class")


def _integer(value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError
    number = int(value)
    if number < least:
        raise ValueError
    return number


def _refuse() -> str:
    raise ValueError
