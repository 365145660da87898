"""Calls at import: refused in a worker, which imports the modules of its tasks, too. Runs in the caller's process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pynenc.exceptions import RunnerError

if TYPE_CHECKING:
    from pynenc.task import Task

_imported: set[str] = set()
"""Modules of tasks that are known to be imported, with all packages around them."""


def check_imported(task: Task[Any, Any]) -> None:
    """See that the import of a task's module has ended in this worker, before the task is called.

    Whoever runs the call has to import that module as well, which makes the call again, and so on without end.

    Raises:
        RunnerError: It has not.
    """
    name = task.func.__module__
    if name in _imported:  # per call
        return
    part = name
    while part:
        if getattr(getattr(sys.modules.get(part), "__spec__", None), "_initializing", False):
            raise RunnerError(
                f"task {task.task_id} is called while module {part} is imported. A worker that runs the call imports that "
                "module, too, and would make the call again, without end: put what calls tasks into a function, as main() "
                "for `pynenc run`, or into a script of its own that imports the tasks"
            )
        part = part.rpartition(".")[0]
    _imported.add(name)
