"""What a client tells of its tasks, and the numbers by which it calls them. Runs in the caller's process.

Calls begin where the script is when they leave: each batch says so, unless the script is where it was when it declared the task.
When `sys.path` is another one than then, the task is declared once more, under another number.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pynenc.exceptions import SupervisorLostError
from pynenc.protocol.extras import GONE
from pynenc.protocol.messages import Kind, json_frame
from pynenc.system.boot import texts_of_path
from pynenc.system.directory import working_directory
from pynenc.system.origins import origins, to_texts

if TYPE_CHECKING:
    from pynenc.client.connection import Connection
    from pynenc.task import Task


class Declarations:
    """The tasks that a client has declared over its connection, and over those that came before it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[tuple[Task[Any, Any], int], tuple[int, str]] = {}
        self._path: list[str] = []
        self._declared: dict[int, tuple[Task[Any, Any], bytes]] = {}

    def key_of(self, task: Task[Any, Any], connection: Connection) -> tuple[int, bytes]:
        """How a task is called from here.

        Args:
            task: The task.
            connection: Over which it is declared, if it was not yet. When it is lost, whatever is sent next tells.

        Returns:
            Its number, and the working directory if that is another one than when it was declared.
        """
        here = working_directory()  # per batch
        # A module that was imported again has the same task with another function.
        found = self._keys.get((task, id(task.func))) if sys.path == self._path else None
        if found is None:
            with self._lock:
                found = self._declare(task, here, connection)
        key, directory = found
        if here == directory:
            return key, b""
        return key, os.fsencode(here) if here else GONE

    def frames(self) -> Iterable[bytes]:
        """All declarations, for another supervisor."""
        return [frame for _, frame in list(self._declared.values())]

    def frame_of(self, key: int) -> bytes:
        """One of them."""
        return self._declared[key][1]

    def task_of(self, key: int) -> Task[Any, Any]:
        """The task that is called by a number."""
        return self._declared[key][0]

    def _declare(self, task: Task[Any, Any], directory: str, connection: Connection) -> tuple[int, str]:
        if sys.path != self._path:
            self._keys.clear()
            self._path = list(sys.path)
        known = self._keys.get((task, id(task.func)))
        if known is not None:
            return known  # Another thread was faster.
        key = len(self._declared) + 1
        frame = _declaration_frame(task, key, directory)
        self._declared[key] = task, frame
        with contextlib.suppress(SupervisorLostError):
            connection.send(frame)
        # Only now: no other thread calls by this number before it is declared.
        made = self._keys[task, id(task.func)] = key, directory
        return made


def _declaration_frame(task: Task[Any, Any], key: int, directory: str) -> bytes:
    """What the supervisor and its workers have to know of a task, and the number by which this client calls it."""
    modules = origins()
    own = modules.get(task.func.__module__)
    surroundings = {
        "sys_path": _import_path(task, directory),
        "cwd": directory,
        "options": task.conf.worker_options(),
        "file": own.file if own is not None else "",
        "modules": to_texts(modules),
    }
    options = task.conf.rules(task.is_async)
    return json_frame(Kind.TASK, key=key, task_id=task.task_id, options=options, context=surroundings)


def _import_path(task: Task[Any, Any], directory: str) -> list[str]:
    """Where workers look for modules: where this process does.

    An empty entry is the directory in which a process happens to be. The task's module may have been found by it before
    this one went elsewhere, so it stands also for where that module lies.
    """
    path: list[str] = []
    for entry in texts_of_path():
        here = [entry] if entry else [_root_of(task.func.__module__), directory]
        path += [one for one in dict.fromkeys(here) if one]
    return path


def _root_of(module_name: str) -> str:
    """The directory from which a module was imported; empty when it lies in no file."""
    module = sys.modules.get(module_name)
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return ""
    levels = module_name.count(".") + 1 + hasattr(module, "__path__")
    for _ in range(levels):
        file = os.path.dirname(file)
    return file
