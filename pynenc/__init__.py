"""pynenc: tasks for a single machine. Decorate a function, call it, and worker processes run it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if sys.platform not in ("linux", "darwin"):
    raise ImportError(
        f"pynenc runs on Linux and macOS: it needs fork and Unix sockets, which {sys.platform} does not have"
    )

from pynenc.app import Pynenc
from pynenc.exceptions import (
    ConfigError,
    CycleDetectedError,
    InvalidTaskOptionsError,
    InvocationError,
    InvocationNotFoundError,
    PynencError,
    RetryError,
    RunnerError,
    SerializationError,
    TaskError,
    WorkerLostError,
)
from pynenc.status import InvocationStatus
from pynenc.task import Task

if TYPE_CHECKING:
    from pynenc.builder import PynencBuilder
    from pynenc.conf.config_task import ConcurrencyControlType

from pynenc.version import __version__

__all__ = [
    "ConcurrencyControlType",
    "ConfigError",
    "CycleDetectedError",
    "InvalidTaskOptionsError",
    "InvocationError",
    "InvocationNotFoundError",
    "InvocationStatus",
    "Pynenc",
    "PynencBuilder",
    "PynencError",
    "RetryError",
    "RunnerError",
    "SerializationError",
    "Task",
    "TaskError",
    "WorkerLostError",
    "__version__",
]

_LAZY = {"PynencBuilder": "pynenc.builder", "ConcurrencyControlType": "pynenc.conf.config_task"}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'pynenc' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(module), name)
