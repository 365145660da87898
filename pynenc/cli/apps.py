"""Find the app that a command is about."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from pynenc.app import Pynenc
from pynenc.cli import use_working_directory
from pynenc.exceptions import ConfigError


def find_app(named: str | None) -> Pynenc:
    """The app that is named, or the only one in the working directory.

    Raises:
        ConfigError: The name leads to no app, or there is none, or there are several.
    """
    use_working_directory()
    if named is not None:
        return _named(named)
    found: dict[int, tuple[str, Pynenc]] = {}
    failures: list[str] = []
    for module_name in _candidates(Path.cwd()):
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:  # importing runs the user's code
            failures.append(f"{module_name} cannot be imported: {type(error).__name__}: {error}")
            continue
        for name, value in vars(module).items():
            if isinstance(value, Pynenc):
                found.setdefault(id(value), (f"{module_name}.{name}", value))
    if len(found) == 1:
        return next(iter(found.values()))[1]
    if found:
        names = ", ".join(sorted(name for name, _ in found.values()))
        raise ConfigError("command line", "--app", f"the working directory has several apps: {names}; name one")
    why = f" ({'; '.join(failures)})" if failures else ""
    raise ConfigError(
        "command line", "--app", f"the working directory has no module with an app{why}; name one: --app module.app"
    )


def _named(named: str) -> Pynenc:
    module_name, _, name = named.rpartition(".")
    try:
        app = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError("command line", "--app", f"{named!r} cannot be found: {error}") from error
    if not isinstance(app, Pynenc):
        raise ConfigError("command line", "--app", f"{named!r} is a {type(app).__name__}, not an app")
    return app


def _candidates(directory: Path) -> list[str]:
    """Modules of a directory and of its packages that mention `Pynenc`; only these are imported."""
    files = [*directory.glob("*.py"), *directory.glob("*/*.py")]
    names = []
    for file in sorted(files):
        parts = file.relative_to(directory).with_suffix("").parts
        if not all(part.isidentifier() for part in parts):
            continue
        if len(parts) > 1 and not (file.parent / "__init__.py").exists():
            continue
        if file.is_file() and b"Pynenc" in file.read_bytes():
            names.append(".".join(part for part in parts if part != "__init__"))
    return [name for name in names if name and name not in sys.builtin_module_names]
