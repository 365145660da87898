"""Functions and classes by their dotted names: what every process finds that can import the same modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def found_by_path(dotted: str) -> Any:
    """What a module has under a dotted name, which may lead through classes: `module.Outer.Inner`; of builtins by the bare name.

    Raises:
        ImportError: There is no such module, or it cannot be imported.
        AttributeError: It has nothing of that name.
    """
    from importlib import import_module

    parts = dotted.split(".")
    if len(parts) == 1:
        parts = ["builtins", *parts]
    for count in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:count])
        try:
            found: Any = import_module(module)
        except ModuleNotFoundError as error:
            is_missing_itself = error.name is not None and f"{module}.".startswith(f"{error.name}.")
            if not is_missing_itself or count == 1:
                raise
            continue  # The end of it is no module, so it may be a class.
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(f"no module is named in {dotted!r}")


def check_importable(func: Callable[..., Any]) -> None:
    """Refuse a function of which no task can be made, since a worker would not find it, or nobody could check its calls.

    Raises:
        RuntimeError: Its module is run as the main program.
        ValueError: It is nested, a lambda, a method, or a builtin that does not tell its parameters.
    """
    name = getattr(func, "__qualname__", type(func).__name__)
    if not hasattr(func, "__qualname__") or not hasattr(func, "__module__"):
        raise ValueError(f"a task is made from a function, not from {func!r}")
    if func.__module__ == "__main__":
        raise RuntimeError(
            f"the task {name!r} is defined in the module that is run as the main program (__main__). Worker processes "
            "import a task by its module's name, and that module has none. Move the function to an importable "
            "module, or start the script with `pynenc run script.py`, which imports it under its own name "
            "and calls its main()."
        )
    where = f"{func.__module__}.{name}"
    if "<lambda>" in name:
        raise ValueError(
            f"a lambda cannot be a task ({where}): worker processes find a task by its "
            "name at the top level of its module. Write it as a function there with `def`."
        )
    if "<locals>" in name:
        raise ValueError(
            f"{where} is defined inside another function and cannot be a task: worker "
            "processes find a task by its name at the top level of its module. Move it there."
        )
    if "." in name:
        raise ValueError(
            f"{where} is defined inside a class and cannot be a task: worker processes find a task by "
            "its name at the top level of its module. Move it there."
        )
    if not hasattr(func, "__code__"):
        _check_signature(func, where)


def _check_signature(func: Callable[..., Any], where: str) -> None:
    import inspect

    try:
        inspect.signature(func)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where} cannot be a task: it does not tell its parameters, so its calls could not be checked ({error}). "
            "Write a function with `def` that calls it."
        ) from None
