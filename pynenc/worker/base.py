"""What every worker does: it reads what the supervisor sends, imports tasks, prints where the client does."""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import socket
import sys
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pynenc import context, execution
from pynenc.blobs.freezing import Freezer
from pynenc.blobs.references import refers
from pynenc.conf.config_task import APP, APP_MAKER, options_from_json
from pynenc.exceptions import RunnerError
from pynenc.module_paths import found_by_path
from pynenc.named_tuples import NamedTuple
from pynenc.protocol.frames import READ_BYTES, FrameReader
from pynenc.protocol.messages import Kind, Lease, bytes_from, json_from, number_from
from pynenc.protocol.recent import Recent
from pynenc.protocol.slots import Slot
from pynenc.serializer import Frozen, loads
from pynenc.system.directory import go_to, working_directory
from pynenc.system.origins import Origin, to_texts
from pynenc.system.output import flush_output
from pynenc.system.sockets import NO_SIGPIPE
from pynenc.task import Task, registered
from pynenc.worker.forks import became_child, end_child
from pynenc.worker.imports import Clash, Imports

ATTACHED_BYTES = socket.CMSG_SPACE(16 * array("i").itemsize)
"""Room for the open files that come with one read."""


MANY = 16
"""How many calls of a task tell how long the next ones will take."""


class DeclaredTask:
    """A task that the supervisor told of; imported when the first lease comes.

    Attributes:
        copies: Whether its calls get copies of large arguments.
        modules: Those of its client, as they travel; see `pynenc.system.origins`.
        stride: See `execution.run_lease`.
        strays: Whether its calls were seen to leave the directory in which they began.
    """

    __slots__ = ("context", "copies", "func", "modules", "strays", "stride", "task", "task_id")

    def __init__(self, task_id: str, client_context: dict[str, Any], modules: Sequence[str] = ()) -> None:
        self.task_id = task_id
        self.context = client_context
        self.modules = modules or _own_module(task_id, client_context)
        self.task: Any = None
        self.func: Callable[..., Any]
        self.copies = False
        self.stride = 1
        self.strays = False

    def learn(self, count: int, seconds: float) -> None:
        """So many calls took so long."""
        if seconds > count * execution.QUICK_S:
            self.stride = 1
        elif count >= MANY:
            self.stride = execution.MAX_STRIDE

    def load(self) -> None:
        """Import the task's module; this process is in its client's surroundings.

        Raises:
            RunnerError: The module has no such task. Whatever the import raises comes through.
        """
        module_name, _, name = self.task_id.rpartition(".")
        importlib.invalidate_caches()
        found = getattr(importlib.import_module(module_name), name, None)
        options = options_from_json(self.context.get("options") or "{}")
        made_with = options.pop(APP, None)
        # Made without a decorator, the name is the function's own, and only the app knows the task.
        task = found if isinstance(found, Task) else registered.get(self.task_id)
        if task is None and made_with is not None and callable(found):
            # The script has made it of a plain function. Apps bring the client along, which most workers never need.
            task = Task(found_by_path(APP_MAKER)(**made_with), found)
        if task is None:
            raise RunnerError(
                f"the worker found no task {name!r} in module {module_name!r} ({self.context['cwd']}): "
                "a task must be a module-level name when its module is imported"
            )
        if options:
            task = task.with_options(**options)
        self.task = task
        self.func = execution.runnable(task.func)
        self.copies = task.conf.copy_arguments


def _own_module(task_id: str, client_context: dict[str, Any]) -> list[str]:
    """The module of a task, in no state that it could be in: all that is known of a call that was made long ago."""
    file = client_context.get("file")
    return to_texts({task_id.rpartition(".")[0]: Origin("-", file)}) if file else []


class Place(NamedTuple):
    """Where a call is that pauses.

    Attributes:
        directory: Its working directory; empty when that is gone.
        entered: Its task.
        began_in: The directory in which it began.
        path: The `sys.path` that came with its task.
        found_in: The `sys.path` as it is.
    """

    directory: str
    entered: DeclaredTask | None
    began_in: str
    path: list[str]
    found_in: list[str]


def directory_of(lease: Lease, declared: DeclaredTask) -> str:
    """Where calls begin."""
    directory: str = os.fsdecode(lease.directory) if lease.directory else declared.context["cwd"]
    return directory


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


def _freeze_nothing(value: Any) -> Frozen:
    """In a forked child: what its call returned is of no use to anybody."""
    end_child()
    raise AssertionError("this is no forked child")


def let_calls_leave() -> None:
    """Have everything acknowledged that tasks have called here and not waited for: this process is about to end."""
    for app in {task.app for task in registered.values()}:
        app.close()


def let_collected_calls_leave() -> None:
    """Have the supervisor get what tasks have called here before it gets their results.

    Else their children would be lost with this process, and their ids mean nothing to whoever gets them as a result.
    """
    while context.collecting:
        # Another thread may be at it; and whoever waits for calls that cannot be sent is told, or ends.
        with contextlib.suppress(KeyError, RunnerError):
            context.collecting.pop()()


class BaseWorker:
    """One end of the connection to the supervisor.

    Attributes:
        number: The worker's.
        is_retired: Whether the supervisor, which goes on, needs this worker no more.
        held: Open files that tell others that this worker lives.
    """

    def __init__(self, number: int, connection: socket.socket, slot: Slot, freezer: Freezer) -> None:
        self.number = number
        self.freezer = freezer
        self.connection = connection
        self.slot = slot
        self.is_retired = False
        self.held: list[int] = []
        self.poll = select.poll()
        self.poll.register(connection, select.POLLIN)
        self._reader = FrameReader()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._files: list[int] = []
        self._tasks: dict[int, DeclaredTask] = {}
        self._recent = Recent()
        self._common: dict[int, bytes] = {}
        self._shared: dict[int, dict[str, Any]] = {}
        self._mapping: set[int] = set()
        self._entered: DeclaredTask | None = None
        self._directory = ""
        self._path: list[str] = []
        self._imports = Imports()

    def run(self) -> None:
        """Run leases until the supervisor closes the connection."""
        raise NotImplementedError

    def send(self, message: bytes) -> None:
        """Send frames, after what was printed before."""
        end_child()
        flush_output()  # What a call printed is seen before its result.
        try:
            self.connection.sendall(message, NO_SIGPIPE)
        except OSError:
            os._exit(1)  # The supervisor has gone, and so does this process, in the middle of a call.

    def after_fork_in_child(self) -> None:
        """A call has forked: have this process end when the call does, and until then touch nothing that is the worker's."""
        became_child(self.number)
        self.slot.leave()
        self.connection.close()
        while self.held:  # A child may live on when all workers are gone, and nobody has to wait for its end.
            os.close(self.held.pop())
        self.freezer.frozen = _freeze_nothing  # type: ignore[method-assign]

    def take_lease(self, lease: Lease) -> None:
        """Calls came to be run."""
        raise NotImplementedError

    def take_output(self, output: Output) -> None:
        """What is leased from here on prints to these files."""
        raise NotImplementedError

    def take_answer(self, kind: Kind, body: bytes) -> None:
        """The supervisor said something of a call that runs."""
        raise NotImplementedError

    def _read(self) -> bool:
        """Take in what the supervisor has sent; False when it has gone."""
        try:
            count, attached, _, _ = self.connection.recvmsg_into([self._buffer], ATTACHED_BYTES)
        except ConnectionError:
            return False
        for _, _, descriptors in attached:
            self._files += array("i", descriptors)
        for kind, body in self._reader.feed(bytes(self._buffer[:count])):
            if kind == Kind.LEASE:
                self.take_lease(Lease.from_body(body))
            elif kind == Kind.TASK:
                fields = json_from(body)
                self._tasks[fields["number"]] = DeclaredTask(fields["task_id"], fields["context"], fields["modules"])
            elif kind == Kind.COMMON:
                number, payload = bytes_from(body)
                self._recent.add(number)
                self._common[number] = payload
            elif kind == Kind.OUTPUT:
                carried = number_from(body)
                output = Output(self._files[:carried])
                del self._files[:carried]
                self.take_output(output)
            elif kind == Kind.GOODBYE:
                self.is_retired = True
            else:
                self.take_answer(Kind(kind), body)
        return count > 0

    def enter(self, declared: DeclaredTask, directory: str) -> None:
        """Go where calls of a task are to begin, and look for modules where their client does.

        What modules and calls have added to `sys.path` themselves stays, until calls come from somewhere else.

        Raises:
            RunnerError: The directory is gone, or nobody can go there.
        """
        path: list[str] = declared.context["sys_path"]
        here = working_directory()  # per lease
        if here != self._directory and self._entered is not None:
            self._entered.strays = True
        self._entered, self._directory = declared, directory
        if here != directory:
            go_to(directory)
        if path != self._path:
            self._path = path
            sys.path[:] = path

    def place(self) -> Place:
        """Where a call is that pauses."""
        return Place(working_directory(), self._entered, self._directory, self._path, list(sys.path))

    def go_back(self, place: Place) -> None:
        """Be there again, as far as that is possible: what ran on top of the call may have begun somewhere else."""
        if place.directory and working_directory() != place.directory:
            with contextlib.suppress(OSError):
                os.chdir(place.directory)
        if self._path is not place.path:
            sys.path[:] = place.found_in
        self._entered, self._directory, self._path = place.entered, place.began_in, place.path

    def clash(self, declared: DeclaredTask) -> Clash | None:
        """Why this worker cannot run the calls of a task; it is asked before the first of them."""
        return self._imports.clash(declared.modules) if declared.task is None else None

    def load(self, declared: DeclaredTask, directory: str) -> None:
        """Go where calls of a task are to begin, and import it, unless that is done already.

        Raises:
            RunnerError: See `enter` and `DeclaredTask.load`. Whatever the import raises comes through.
        """
        self.enter(declared, directory)
        if declared.task is None:
            before = frozenset(sys.modules)
            try:
                declared.load()
            finally:
                self._imports.imported(declared.modules, before)

    def function_for(self, declared: DeclaredTask, func: Callable[..., Any], lease: Lease) -> Callable[..., Any]:
        """What the calls of a lease call: the function, with the arguments that they share, unpickled once.

        For a task whose calls get copies it takes the arguments of a call as they came.
        """
        if declared.copies:
            return partial(execution.call_copying, func, self._common.get(lease.common))
        if not lease.common:
            return func
        shared = self._shared.get(lease.common)
        if shared is None:
            payload = self._common[lease.common]
            shared = self._shared[lease.common] = loads(payload)
            if refers(payload):
                self._mapping.add(lease.common)
        return partial(func, **shared)

    def let_mappings_go(self) -> None:
        """Drop unpickled arguments that map blobs, which may be large and are soon mapped again."""
        while self._mapping:
            self._shared.pop(self._mapping.pop(), None)

    def _forget_common_arguments(self) -> None:
        """Drop what is not recent, now that no lease refers to it."""
        self._common = {one: kept for one, kept in self._common.items() if one in self._recent}
        self._shared = {one: kept for one, kept in self._shared.items() if one in self._recent}
