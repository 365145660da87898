"""The fork server as the supervisor holds it: its process, the socket to it, and the memory that workers share.

Imports little: to fork it is the first thing that a supervisor does, while it has one thread and no database. When it
was killed, it is too late for that, and another one is started in a new interpreter.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pynenc.protocol.slots import MAX_SLOTS, SLOT_BYTES
from pynenc.system.boot import Started, fork_module, start_module

_TOLD = ("persistent", "app_id", "address", "key", "database", "blob_threshold_bytes", "blob_memory_bytes")


class ForkServerProcess:
    """Starts the fork server, at once.

    Args:
        settings: What the launching client decided.
        workers_lock: An open file that it and its workers are to keep open.

    Attributes:
        connection: The socket to it.
        pid: Its process.
        memory: The slots of all workers.
    """

    def __init__(self, settings: dict[str, Any], workers_lock: int) -> None:
        self._workers_lock = workers_lock
        self._settings = {name: settings[name] for name in _TOLD}
        self._environment = {**os.environ, **settings["worker_environment"]}
        self._slots_fd, self.memory = _shared_memory(MAX_SLOTS * SLOT_BYTES)
        self._start(fork_module)

    def start_again(self) -> None:
        """Start another one: this one was killed."""
        self._process.wait()
        self._start(start_module)

    def end(self) -> None:
        """Have it end its workers and itself, and wait until they are gone."""
        self.connection.close()
        self._process.wait()

    def close(self) -> None:
        """Let go of the shared memory."""
        self.memory.close()
        os.close(self._slots_fd)

    def _start(self, start: Callable[[str, dict[str, Any], Sequence[int], Mapping[str, str]], Started]) -> None:
        self.connection, theirs = socket.socketpair()
        settings = {
            **self._settings,
            "socket": theirs.fileno(),
            "slots": self._slots_fd,
            "workers_lock": self._workers_lock,
            "parent": os.getpid(),
        }
        inherited = (theirs.fileno(), self._slots_fd, self._workers_lock)
        self._process = start("pynenc.worker.forkserver", settings, inherited, self._environment)
        self.pid = self._process.pid
        theirs.close()


def _shared_memory(size: int) -> tuple[int, mmap.mmap]:
    """Memory that child processes share through a descriptor, and that has no name to be left behind."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("pynenc-slots")
    else:
        import tempfile

        fd, path = tempfile.mkstemp(prefix="pynenc-slots-")
        os.unlink(path)
    os.ftruncate(fd, size)
    return fd, mmap.mmap(fd, size)
