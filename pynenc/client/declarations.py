"""What a client tells of its tasks, and the numbers by which it calls them. Runs in the caller's process.

Calls begin where the script is when they leave: each batch says so, unless the script is where it was when it declared the task.
When `sys.path` is another one than then, the task is declared once more, under another number.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pynenc.named_tuples import NamedTuple
from pynenc.protocol.extras import GONE
from pynenc.protocol.messages import Kind, json_frame
from pynenc.system.boot import texts_of_path
from pynenc.system.directory import working_directory
from pynenc.system.origins import origins, to_texts

if TYPE_CHECKING:
    from pynenc.task import Task


class Declared(NamedTuple):
    """What was told of a task.

    Attributes:
        task: The task.
        path: The `sys.path` of that moment.
        func: Its function, which is another one when its module was imported again.
        directory: The working directory of that moment.
        frame: How it is told.
    """

    task: Task[Any, Any]
    path: list[str]
    func: Any
    directory: str
    frame: bytes


class Declarations:
    """The tasks that a client has declared over its connection, and over those that came before it.

    There is no lock: threads and signal handlers that come together may declare a task twice, under two numbers.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._keys: dict[Task[Any, Any], int] = {}
        self._declared: dict[int, Declared] = {}

    def key_of(self, task: Task[Any, Any]) -> tuple[int, bytes, bytes]:
        """How a task is called from here.

        Returns:
            Its number, the working directory if that is another one than when it was declared, and its declaration if that has to
            be sent first; `sent` is to be called then.
        """
        here = working_directory()  # per batch
        key = self._keys.get(task)
        if key is not None:
            known = self._declared[key]
            if known.func is task.func and known.path == sys.path:
                if here == known.directory:
                    return key, b"", b""
                return key, os.fsencode(here) if here else GONE, b""
        key = next(self._numbers)
        frame = _declaration_frame(task, key, here)
        # Before anything is sent: another supervisor is told of it, too.
        self._declared[key] = Declared(task, list(sys.path), task.func, here, frame)
        return key, b"", frame

    def sent(self, task: Task[Any, Any], key: int) -> None:
        """The declaration has left, so whoever calls the task next need not send it."""
        self._keys[task] = key

    def frames(self) -> Iterable[bytes]:
        """All declarations, for another supervisor."""
        return [one.frame for one in list(self._declared.values())]

    def frame_of(self, key: int) -> bytes:
        """One of them."""
        return self._declared[key].frame

    def task_of(self, key: int) -> Task[Any, Any]:
        """The task that is called by a number."""
        return self._declared[key].task


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
