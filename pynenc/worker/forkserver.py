"""The fork server: a clean process with one thread, from which workers are forked.

It imports what every worker needs and every task's module imports, once, so a worker starts in a millisecond and shares that
memory. It imports no user code. It ends, and its workers with it, when the supervisor's end of its socket closes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import socket
import sys
from importlib import import_module
from typing import Any, NoReturn

from pynenc.conf.classes import config_classes
from pynenc.protocol.frames import READ_BYTES, FrameReader
from pynenc.protocol.messages import Kind, json_frame, json_from, number_from
from pynenc.protocol.slots import MAX_SLOTS, SLOT_BYTES
from pynenc.system.boot import all_is_imported, end_with
from pynenc.system.parent import die_with_parent
from pynenc.worker import main as worker_main

TASKS_IMPORT = ("pynenc.app",)
"""What a module with tasks imports; nothing in the worker's own code needs it."""


class ForkServer:
    """Forks workers on request and tells how each of them ended."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._supervisor = socket.socket(fileno=settings["socket"])
        self._memory = mmap.mmap(settings["slots"], MAX_SLOTS * SLOT_BYTES)
        self._workers: dict[int, int] = {}
        self._woken, waker = socket.socketpair()
        self._woken.setblocking(False)
        waker.setblocking(False)
        self._waker = waker
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)

    def serve(self) -> None:
        """Serve until the supervisor is gone, then end the workers."""
        reader = FrameReader()
        sockets: list[int] = []
        while True:
            ready, _, _ = select.select([self._supervisor, self._woken], [], [])
            if self._woken in ready:
                self._woken.recv(4096)
                self._reap()
            if self._supervisor in ready:
                try:
                    received, fds, _, _ = socket.recv_fds(self._supervisor, READ_BYTES, 64)
                except ConnectionError:
                    received, fds = b"", []
                if not received:
                    break
                sockets += fds
                for kind, body in reader.feed(received):
                    if kind == Kind.SPAWN:
                        self._spawn(json_from(body), sockets.pop(0))
                    elif kind == Kind.KILL:
                        self._kill(number_from(body))
        self._end_workers()

    def _spawn(self, fields: dict[str, Any], connection: int) -> None:
        number = fields["worker"]
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_worker(parent, number, fields["slot"], connection, fields["concurrent"])
        os.close(connection)
        self._workers[pid] = number
        self._tell(Kind.SPAWNED, worker=number, pid=pid)

    def _become_worker(self, parent: int, number: int, slot: int, connection: int, concurrent: bool) -> NoReturn:
        def main() -> None:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._supervisor.close()
            self._woken.close()
            self._waker.close()
            os.close(self._settings["slots"])
            die_with_parent(parent)
            os.setpgid(0, 0)  # A signal to the process group, as of a shell's `kill 0`, is the call's own business.
            worker_main.main(self._settings, number, slot, connection, self._memory, concurrent)

        end_with(main)

    def _reap(self) -> None:
        while self._workers:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self._workers.pop(pid, None)
            if number is not None:
                peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
                self._tell(Kind.EXITED, worker=number, status=status, peak=peak)

    def _kill(self, number: int) -> None:
        for pid, worker in self._workers.items():
            if worker == number:  # Not reaped yet, so the pid is still its own.
                os.kill(pid, signal.SIGKILL)

    def _tell(self, kind: Kind, **fields: Any) -> None:
        with contextlib.suppress(OSError):  # The supervisor is gone; the next read says so.
            self._supervisor.sendall(json_frame(kind, **fields))

    def _end_workers(self) -> None:
        """Workers end when their connection closes; those that are inside a call are killed."""
        for pid in list(self._workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self._workers:
            try:
                pid, _ = os.waitpid(-1, 0)
            except ChildProcessError:
                return
            self._workers.pop(pid, None)


def main(settings: dict[str, Any]) -> None:
    """Serve one supervisor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(settings["parent"])
    for name in TASKS_IMPORT:
        import_module(name)
    config_classes()
    all_is_imported()
    ForkServer(settings).serve()
