"""Which files the modules of this process came from, and in which state those were: a client tells, a worker compares.

Only the user's own modules are looked at: those of the standard library, installed packages and pynenc do not change
between two calls, and there are many of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from pynenc.named_tuples import NamedTuple

_STANDARD = os.path.dirname(os.__file__) + os.sep
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_MAIN = ("__main__", "__mp_main__")


class Origin(NamedTuple):
    """A file, and the state that it was in; two states are the same only if nothing was written between them."""

    state: str
    file: str


_seen: dict[str, tuple[Any, Origin | None]] = {}
"""What was found for the modules so far, with the spec of each, which is another one when it is imported again."""


def origins() -> dict[str, Origin]:
    """The user's modules that are imported here, each with its file as that was when it was seen here first."""
    found: dict[str, Origin] = {}
    for name, module in list(sys.modules.items()):
        if type(module) is not ModuleType:
            continue  # It may do anything when it is asked for something.
        spec = module.__spec__ if "__spec__" in module.__dict__ else None
        known = _seen.get(name)
        if known is None or known[0] is not spec:
            known = _seen[name] = spec, _origin(name, spec)
        if known[1] is not None:
            found[name] = known[1]
    return found


def state_of(file: str) -> str:
    """The state in which a file is now; empty when it is not there."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return ""
    return f"{found.st_dev:x}-{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"


def to_texts(modules: dict[str, Origin]) -> list[str]:
    """Modules as they travel."""
    return [f"{name} {origin.state} {origin.file}" for name, origin in modules.items()]


def from_texts(texts: Iterable[str]) -> dict[str, Origin]:
    """The modules that another process has told; what is no such text is passed over.

    >>> from_texts(to_texts({"tasks": Origin("1-2-3-4", "/a place/tasks.py")}))
    {'tasks': Origin(state='1-2-3-4', file='/a place/tasks.py')}
    """
    split = [text.split(" ", 2) for text in texts]
    return {parts[0]: Origin(parts[1], parts[2]) for parts in split if len(parts) == 3}


def _origin(name: str, spec: Any) -> Origin | None:
    file = getattr(spec, "origin", None)
    if name in _MAIN or " " in name or type(file) is not str or not os.path.isabs(file):
        return None
    if file.startswith((_STANDARD, _OWN)) or any(part in file for part in _INSTALLED):
        return None
    state = state_of(file)
    return Origin(state, file) if state else None
