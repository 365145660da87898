"""`pynenc run`: run a script so that its own tasks can be imported by workers."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys

from pynenc.exceptions import RunnerError
from pynenc.execution import runnable


def run(options: argparse.Namespace) -> int:
    """Import a script under its module name and call its `main()`.

    Raises:
        RunnerError: The script is not there, cannot be a module, or has no `main`.
    """
    path = os.path.abspath(options.script)
    directory, file_name = os.path.split(path)
    name = os.path.splitext(file_name)[0]
    if not os.path.isfile(path):
        raise RunnerError(f"there is no script {options.script}")
    if not name.isidentifier():
        raise RunnerError(f"{file_name} cannot be imported as a module: its name is not an identifier; rename it")
    if name in sys.stdlib_module_names and name != "test":  # Python's own tests, which nothing else imports.
        raise RunnerError(
            f"{file_name} would be imported in place of module {name!r} of Python's standard library; rename the script"
        )
    if os.path.exists(os.path.join(directory, "__init__.py")):
        package, directory = _package_of(directory)
        name = f"{package}.{name}"
    sys.path.insert(0, directory)
    sys.argv = [path, *options.arguments]
    importlib.invalidate_caches()
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None or not os.path.samefile(found.origin, path):
        raise RunnerError(
            f"{file_name} cannot be imported as module {name!r}: that name belongs to "
            f"{found.origin if found else 'nothing'}; rename the script"
        )
    module = importlib.import_module(name)
    main = getattr(module, "main", None)
    if not callable(main):
        raise RunnerError(f"{options.script} has no main(): `pynenc run` imports the script and calls its main()")
    code = runnable(main)()
    return code if isinstance(code, int) else 0


def _package_of(directory: str) -> tuple[str, str]:
    """The dotted name of the package in a directory, and the directory that holds the topmost one."""
    parts: list[str] = []
    while os.path.exists(os.path.join(directory, "__init__.py")):
        directory, part = os.path.split(directory)
        parts.insert(0, part)
    return ".".join(parts), directory
