"""The worker process: read leases, run them, ship what came out, until the connection closes."""

from __future__ import annotations

import contextlib
import importlib
import io
import mmap
import os
import select
import socket
import sys
from array import array
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from pynenc import context, execution
from pynenc.exceptions import RunnerError
from pynenc.protocol.frames import READ_BYTES, FrameReader
from pynenc.protocol.messages import Kind, Lease, bytes_from, json_from, number_from
from pynenc.protocol.recent import Recent
from pynenc.protocol.slots import Slot
from pynenc.serializer import loads
from pynenc.system.spin import Spin
from pynenc.task import Task, registered
from pynenc.worker import lease as leases
from pynenc.worker.nesting import Nesting

ATTACHED_BYTES = socket.CMSG_SPACE(16 * array("i").itemsize)
"""Room for the open files that come with one read."""


class DeclaredTask:
    """A task that the supervisor told of; imported when the first lease comes."""

    __slots__ = ("context", "func", "task", "task_id")

    def __init__(self, task_id: str, client_context: dict[str, Any]) -> None:
        self.task_id = task_id
        self.context = client_context
        self.task: Any = None
        self.func: Callable[..., Any]

    def load(self) -> None:
        """Import the task's module in its client's surroundings.

        Raises:
            RunnerError: The module has no such task. Whatever the import raises comes through.
        """
        path: list[str] = self.context["sys_path"]
        if sys.path != path:
            sys.path[:] = path
        if os.getcwd() != self.context["cwd"]:
            os.chdir(self.context["cwd"])
        module_name, _, name = self.task_id.rpartition(".")
        importlib.invalidate_caches()
        task = getattr(importlib.import_module(module_name), name, None)
        if not isinstance(task, Task):
            # Made without a decorator: the name is the function's own, and only the app knows the task.
            task = registered.get(self.task_id)
        if task is None:
            raise RunnerError(
                f"the worker found no task {name!r} in module {module_name!r} ({self.context['cwd']}): "
                "a task must be a module-level name when its module is imported"
            )
        self.task = task
        self.func = execution.runnable(task.func)


class Output:
    """The files that calls from here on print to; none when their client has gone."""

    def __init__(self, files: list[int]) -> None:
        self._files = files

    def use(self) -> None:
        """Put these files in the place of the standard output and error."""
        flush_output()
        files = self._files or [os.open(os.devnull, os.O_WRONLY)]
        os.dup2(files[0], 1)
        os.dup2(files[-1], 2)
        for file in files:
            os.close(file)


def flush_output() -> None:
    """Let what was printed appear. What cannot be written any more is nobody's fault here."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


class Worker:
    """Runs leases in the order in which they come."""

    def __init__(self, number: int, connection: socket.socket, slot: Slot) -> None:
        self.connection = connection
        self.slot = slot
        self.spin = Spin()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._reader = FrameReader()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._files: list[int] = []
        self._leases: deque[Lease | Output] = deque()
        self._tasks: dict[int, DeclaredTask] = {}
        self._recent = Recent()
        self._common: dict[int, bytes | dict[str, Any]] = {}
        self._dropped_to = 0
        self._switched: Kind | None = None
        self.shipper = leases.Shipper(self.send, number)
        context.nested_wait = Nesting(self).wait

    def run(self) -> None:
        """Run leases until the supervisor closes the connection."""
        while self._receive():
            while self._take_one():
                if not self._leases and self._more_has_come() and not self._receive():
                    return
            self.shipper.ship()
            self.shipper.unwatch()
            # Only now does no lease refer to what is not recent.
            self._common = {one: kept for one, kept in self._common.items() if one in self._recent}

    def _take_one(self) -> bool:
        if not self._leases:
            return False
        following = self._leases.popleft()
        if isinstance(following, Output):
            following.use()
        else:
            self._run_one(following)
        return True

    # For a call that waits; see `nesting`.

    def run_next(self) -> bool:
        """Run what was leased next, if anything was, and ship what came out when that was all."""
        if not self._take_one():
            return False
        if not self._leases:
            self.shipper.ship()
        return True

    def switch(self, message: bytes, answer: Kind) -> None:
        """Tell the supervisor that a call waits or goes on. What was leased before its answer is not to be run."""
        self.send(message)
        self._switched = None
        while self._switched != answer:
            self.receive_or_end()

    def receive_or_end(self) -> None:
        """Read what the supervisor sends; when it has gone, so is this process, in the middle of a call."""
        if not self._receive():
            os._exit(1)

    def _run_one(self, lease: Lease) -> None:
        if self._leases or lease.stop - lease.first > 1:
            self.shipper.watch()
        declared = self._tasks[lease.task]
        try:
            if declared.task is None:
                declared.load()
            func = declared.func
            if lease.common:
                func = partial(func, **self._common_arguments(lease))
        except BaseException as error:  # importing runs user code
            leases.fail(lease, error, self.slot, self.shipper)
            return
        dropped_to = leases.run(lease, declared.task, func, self.slot, self.shipper)
        if dropped_to is not None:
            self._dropped_to = dropped_to
            self._leases = deque(one for one in self._leases if isinstance(one, Output) or one.position >= dropped_to)

    def _common_arguments(self, lease: Lease) -> dict[str, Any]:
        """What the calls of a lease share; unpickled once."""
        kept = self._common[lease.common]
        if isinstance(kept, bytes):
            kept = self._common[lease.common] = loads(kept)
        return kept

    def _receive(self) -> bool:
        """Wait for what the supervisor sends; False when it has gone."""
        if not self.spin.look(lambda: self._poll.poll(0)):
            self._poll.poll()
        try:
            count, attached, _, _ = self.connection.recvmsg_into([self._buffer], ATTACHED_BYTES)
        except ConnectionError:
            return False
        for _, _, descriptors in attached:
            self._files += array("i", descriptors)
        for kind, body in self._reader.feed(bytes(self._buffer[:count])):
            if kind == Kind.LEASE:
                lease = Lease.from_body(body)
                if lease.position >= self._dropped_to:
                    self._leases.append(lease)
            elif kind == Kind.TASK:
                fields = json_from(body)
                self._tasks[fields["number"]] = DeclaredTask(fields["task_id"], fields["context"])
            elif kind == Kind.COMMON:
                number, payload = bytes_from(body)
                self._recent.add(number)
                self._common[number] = payload
            elif kind in (Kind.PAUSED, Kind.RESUMED):
                self._switched = Kind(kind)
                self._leases = deque(one for one in self._leases if isinstance(one, Output))
            elif kind == Kind.OUTPUT:
                carried = number_from(body)
                self._leases.append(Output(self._files[:carried]))
                del self._files[:carried]
        return count > 0

    def send(self, message: bytes) -> None:
        flush_output()  # What a call printed is seen before its result.
        self.connection.sendall(message)

    def _more_has_come(self) -> bool:
        return bool(self._poll.poll(0))


def main(settings: dict[str, Any], number: int, slot: int, connection: int, memory: mmap.mmap) -> None:
    """Be one worker. Runs in a process just forked from the fork server."""
    context.worker_of = context.WorkerOf(
        settings["app_id"], settings["address"], bytes.fromhex(settings["key"]), settings["database"]
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    with socket.socket(fileno=connection) as supervisor:
        Worker(number, supervisor, Slot(memory, slot)).run()
