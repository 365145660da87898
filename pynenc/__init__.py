"""pynenc: tasks for a single machine. Decorate a function, call it, and worker processes run it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if sys.platform not in ("linux", "darwin"):
    raise ImportError(
        f"pynenc runs on Linux and macOS: it needs fork and Unix sockets, which {sys.platform} does not have"
    )

from pynenc.version import __version__

if TYPE_CHECKING:
    from pynenc.app import Pynenc
    from pynenc.blobs.ref import BlobRef
    from pynenc.builder import PynencBuilder
    from pynenc.conf.config_task import ConcurrencyControlType
    from pynenc.exceptions import (
        BlobLostError,
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
        WorkerMemoryError,
    )
    from pynenc.status import InvocationStatus
    from pynenc.task import Task

__all__ = [
    "BlobLostError",
    "BlobRef",
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
    "WorkerMemoryError",
    "__version__",
]

_HOMES = {
    "BlobRef": "pynenc.blobs.ref",
    "ConcurrencyControlType": "pynenc.conf.config_task",
    "InvocationStatus": "pynenc.status",
    "Pynenc": "pynenc.app",
    "PynencBuilder": "pynenc.builder",
    "Task": "pynenc.task",
}


def __getattr__(name: str) -> Any:
    # Names are imported when they are used: the supervisor's process needs none of them, and imports no pickle.
    if name not in __all__:
        raise AttributeError(f"module 'pynenc' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES.get(name, "pynenc.exceptions")), name)
    return value


def __dir__() -> list[str]:
    return __all__
