"""What the script itself defines, at the top of the module `__main__`, and what becomes of that in other processes.

A pickle refers to a function or class by its module and name, but in a worker `__main__` is another module. So such things
travel by value (`by_value`), together with their home, the script. What a worker makes of them remembers its home, and when
it comes back there it is what the script has under that name: `isinstance`, `==` and `except` work as if it had never left.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from pynenc.named_tuples import NamedTuple

MAIN = "__main__"

_NO_FILE = f"no file: {os.urandom(16).hex()}"
"""In the place of the script's path; no other program has the same."""


class Home(NamedTuple):
    """A script.

    Attributes:
        path: Its file; something that no other process has when there is none (a prompt, `python -c`).
        version: A digest of what is in the file.
    """

    path: str
    version: str


_from_elsewhere: WeakKeyDictionary[Any, Home] = WeakKeyDictionary()
"""Functions and classes that came from other processes by value."""


@cache
def home() -> Home:
    """The script of this process."""
    path = getattr(sys.modules.get(MAIN), "__file__", None)
    if path is None:
        return Home(_NO_FILE, "")
    from hashlib import sha256

    try:
        with open(path, "rb") as file:
            return Home(os.path.abspath(path), sha256(file.read()).hexdigest())
    except OSError:  # It is gone, or lies in an archive.
        return Home(os.path.abspath(path), "")


def home_of(definition: Any) -> Home | None:
    """The script at whose top level a function or class is defined; None when it is not defined in a script."""
    if getattr(definition, "__module__", None) != MAIN:
        return None
    with contextlib.suppress(TypeError):  # A metaclass may forbid hashing.
        if (elsewhere := _from_elsewhere.get(definition)) is not None:
            return elsewhere
    return home() if _named(definition.__qualname__) is definition else None


def received(at: Home, name: str, make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """A function or class that has come by value: at home what has its name, elsewhere a new one, which `complete` fills."""
    if at.path == home().path and (own := _named(name)) is not None:
        return own
    made = make(*arguments)
    with contextlib.suppress(TypeError):
        _from_elsewhere[made] = at
    return made


def complete(made: Any, state: tuple[Callable[[Any, Any], Any], Any]) -> None:
    """Give what `received` has returned its attributes; the script's own has them, perhaps newer ones."""
    if home_of(made) != home():
        set_state, attributes = state
        set_state(made, attributes)


def _named(name: str) -> Any:
    """What the script has under a qualified name; None when there is nothing."""
    found: Any = sys.modules.get(MAIN)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
