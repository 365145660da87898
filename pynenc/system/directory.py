"""Where this process is, and where calls are to begin."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pynenc.exceptions import RunnerError


def working_directory() -> str:
    """The working directory; empty when it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def go_to(directory: str) -> None:
    """Change to the directory in which a call is to begin.

    Raises:
        RunnerError: It is gone, or this process may not go there.
    """
    try:
        if not os.path.isabs(directory):
            raise FileNotFoundError("the script was in a directory that was gone when it made the call")
        os.chdir(directory)
    except (OSError, ValueError) as error:
        raise RunnerError(
            f"a call begins in the directory in which its script made it, and there is none: {error}; keep it until the "
            "call has ended, or change the directory before the call"
        ) from error


def call_in(directory: str, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function in a directory, wherever the one before has left this process."""
    if working_directory() != directory:
        go_to(directory)
    return func(*args, **kwargs)
