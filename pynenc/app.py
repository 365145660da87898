"""The app: configuration and the registry of tasks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakValueDictionary

from pynenc.exceptions import TaskError, asked_in_handler
from pynenc.module_paths import found_by_path
from pynenc.task import Task, registered
from pynenc.types import Func, Params, Result

if TYPE_CHECKING:
    import logging
    from types import ModuleType

    from pynenc.blobs.ref import BlobRef
    from pynenc.broker import Broker
    from pynenc.client.beginning import BegunSupervisor
    from pynenc.client.resuming import Resumed
    from pynenc.client.runner import ClusterRunner
    from pynenc.conf.config_pynenc import ConfigPynenc
    from pynenc.direct import DirectTask, Split
    from pynenc.invocation.base_invocation import BaseInvocation
    from pynenc.orchestrator import Orchestrator
    from pynenc.runner import Runner
    from pynenc.state_backend import StateBackend
    from pynenc.synchronous import SynchronousRunner

Value = TypeVar("Value")

_apps: dict[str, Pynenc] = {}
"""The first app of each id in this process."""

_further: WeakValueDictionary[tuple[str, int], Pynenc] = WeakValueDictionary()
"""The others, by id and number."""

_numbers: dict[str, Iterator[int]] = {}


class Pynenc:
    """An app: its tasks, its configuration, and the way to its workers.

    Args:
        app_id: Names the app. Apps with different ids in one state directory do not meet. Default: configuration field `app_id`.
        config_values: Configuration by field name; wins over files, loses against the environment.
        config_filepath: A TOML, JSON or YAML file to read instead of the one that would be found.

    Raises:
        ConfigError: A configuration value has an unknown name or a wrong type.

    >>> app = Pynenc("docs", config_values={"num_workers": 2})
    >>> app.conf.num_workers
    2
    """

    def __init__(
        self,
        app_id: str | None = None,
        config_values: dict[str, Any] | None = None,
        config_filepath: str | os.PathLike[str] | None = None,
    ) -> None:
        from pynenc.conf.config_pynenc import ConfigPynenc

        self.config_values = dict(config_values or {})
        if app_id is not None:
            self.config_values["app_id"] = app_id
        filepath = os.fspath(config_filepath) if config_filepath else None
        self.conf: ConfigPynenc = ConfigPynenc(self.config_values, filepath)
        # Tasks read it later, when the script may have changed its directory.
        self.config_filepath = self.conf.config_filepath
        self.app_id: str = self.conf.app_id  # The environment may have the last word.
        self.tasks: dict[str, Task[Any, Any]] = {}
        self._lock = threading.RLock()
        self._imports_in = 0
        self._has_begun = False
        self._begun: BegunSupervisor | None = None
        self._number = next(_numbers.setdefault(self.app_id, count()))
        if _apps.setdefault(self.app_id, self) is not self:
            _further[self.app_id, self._number] = self

    @overload
    def task(self, func: Func[Params, Result], /) -> Task[Params, Result]: ...
    @overload
    def task(self, func: None = None, /, **options: Any) -> Callable[[Func[Params, Result]], Task[Params, Result]]: ...
    def task(
        self, func: Func[Params, Result] | None = None, /, **options: Any
    ) -> Task[Params, Result] | Callable[[Func[Params, Result]], Task[Params, Result]]:
        """Make a task of a module-level function: `@app.task` or `@app.task(option=...)`.

        Args:
            func: The function.
            options: Task options; the configuration reference lists them.

        Raises:
            RuntimeError: The function's module is run as the main program.
            ValueError: The function is nested or a lambda.
            InvalidTaskOptionsError: Options are invalid.
        """
        if func is not None:
            return self._register(Task(self, func, options))

        def decorate(decorated: Func[Params, Result]) -> Task[Params, Result]:
            return self._register(Task(self, decorated, options))

        return decorate

    @overload
    def direct_task(self, func: Func[Params, Result], /) -> DirectTask[Params, Result]: ...
    @overload
    def direct_task(
        self,
        func: None = None,
        /,
        *,
        parallel_func: Split | None = None,
        aggregate_func: Callable[[list[Any]], Any] | None = None,
        **options: Any,
    ) -> Callable[[Func[Params, Result]], DirectTask[Params, Result]]: ...
    def direct_task(
        self,
        func: Func[Params, Result] | None = None,
        /,
        *,
        parallel_func: Split | None = None,
        aggregate_func: Callable[[list[Any]], Any] | None = None,
        **options: Any,
    ) -> DirectTask[Params, Result] | Callable[[Func[Params, Result]], DirectTask[Params, Result]]:
        """Make a function that workers run, and whose calls block and return its value: `@app.direct_task`.

        Args:
            func: A module-level function.
            parallel_func: Splits a call. It is given the call's arguments by name, defaults included, and returns those of the
                parts, as `parallelize` takes them; or a tuple of the arguments that all parts share, a dictionary, and
                those of the parts.
            aggregate_func: Makes the value of the call from the list of the parts' results, in order; without it the list
                is the value.
            options: Task options; the configuration reference lists them.

        Raises:
            RuntimeError: The function's module is run as the main program.
            ValueError: The function is nested or a lambda, or there is an `aggregate_func` alone.
            InvalidTaskOptionsError: Options are invalid.
        """
        from pynenc.direct import DirectTask

        def decorate(decorated: Func[Params, Result]) -> DirectTask[Params, Result]:
            direct = DirectTask(Task(self, decorated, options), parallel_func, aggregate_func)
            self._register(direct.task)
            return direct

        return decorate if func is None else decorate(func)

    def _register(self, task: Task[Params, Result]) -> Task[Params, Result]:
        self.tasks[task.task_id] = registered[task.task_id] = task
        return task

    def get_task(self, task_id: str) -> Task[Any, Any]:
        """The task with this id; its module is imported when it is not yet.

        Raises:
            TaskError: There is no such task.
        """
        task = self.tasks.get(task_id)
        if task is not None:
            return task
        from pynenc.direct import DirectTask

        try:
            found = found_by_path(task_id)
        except (ImportError, AttributeError, ValueError) as error:
            found = error
        # What the module calls the task may be another name, and its app another object than this.
        task = self.tasks.get(task_id) or registered.get(task_id)
        if task is not None and task.app.app_id == self.app_id:
            return task
        if isinstance(found, DirectTask):
            found = found.task
        if isinstance(found, Task):
            return found
        if isinstance(found, Exception):
            raise TaskError(task_id, f"it cannot be found by its module path: {found}") from found
        return self._task_of_plain(task_id, found)

    def _task_of_plain(self, task_id: str, func: Any) -> Task[Any, Any]:
        """The task of a plain function, which a script may have made of it."""
        try:
            task: Task[Any, Any] = Task(self, func)
        except (ValueError, RuntimeError) as error:
            raise TaskError(task_id, f"its module has a name like this, but it is not a task: {error}") from error
        if task.task_id != task_id:
            raise TaskError(task_id, f"its module has a name like this, but it is the function of {task.task_id}")
        self.tasks[task_id] = task
        return task

    def get_invocation(self, invocation_id: str) -> BaseInvocation[Any, Any]:
        """The invocation with this id, whichever process made it, also at an earlier time.

        Raises:
            InvocationNotFoundError: There is none in this app and state directory.
            TypeError: It is not a text.
        """
        if not isinstance(invocation_id, str):
            raise TypeError(f"the id of an invocation is a text like '1-2-3', not {invocation_id!r:.100}")
        from pynenc.invocation.synchronous import SYNCHRONOUS

        made_here = invocation_id.startswith(SYNCHRONOUS)
        return self._synchronous.find(invocation_id) if made_here else self._cluster.find(invocation_id)

    def put(self, value: Value) -> BlobRef[Value]:
        """Put a large value into shared memory once, to be used as an argument of many calls.

        Args:
            value: An array, a table, bytes, or anything else that can be pickled.

        Returns:
            What stands for the value in the arguments of calls; the value is freed some time after this object is gone, or
            the app is closed, and these calls have ended.

        Raises:
            SerializationError: The value cannot be pickled.
        """
        return self.runner.put(value)

    def purge(self) -> None:
        """Forget all invocations that are stored.

        Raises:
            RunnerError: Calls are running or waiting to run.
        """
        if not os.path.exists(self.state_backend.path):
            return
        answer = self._cluster.ask_to_purge()
        if "error" in answer:
            from pynenc.exceptions import RunnerError

            raise RunnerError(f"nothing was purged: {answer['error']}")

    def close(self) -> None:
        """Have all calls acknowledged and disconnect. The supervisor ends when its last client has left and all is done.

        A script need not call it: it happens at exit. A later call connects again, and so does whoever waits for an earlier
        one. Threads that wait just now are told that the connection was closed; their calls go on.
        """
        if "state_backend" in self.__dict__:
            self.state_backend.close()
        if "_cluster" in self.__dict__:
            self._cluster.close()
        self._drop_begun()
        self.conf.look_anew()

    @property
    def runner(self) -> Runner:
        """What runs the calls just now: the local cluster, or this process in synchronous mode."""
        if self.conf.force_sync:  # per call
            return self._synchronous
        return self._cluster if "_cluster" in self.__dict__ else self._cluster_for_calls()

    def _cluster_for_calls(self) -> ClusterRunner:
        """The cluster, for a first call. What can be done meanwhile is: a supervisor that does not run yet starts."""
        with self._lock:  # Several threads may make their first calls at once.
            if not self._has_begun:
                self._has_begun = True
                from pynenc.client.beginning import begin_unless_running

                self._begun = begin_unless_running(self.conf.state_path, self.app_id)
        try:
            return self._cluster
        except BaseException:
            self._drop_begun()
            raise

    def _drop_begun(self) -> None:
        if (begun := self.take_begun()) is not None:
            begun.abandon()

    def take_begun(self) -> BegunSupervisor | None:
        """The interpreter that was begun for a supervisor, should one have to be started; once."""
        begun, self._begun = self._begun, None
        if begun is not None and not begun.is_own:
            begun.abandon()
            return None
        return begun

    @cached_property
    def _cluster(self) -> ClusterRunner:
        if (
            self._imports_in == threading.get_ident()
        ):  # A module that is half imported would give an error that nobody understands.
            raise asked_in_handler("made its first call")
        self._imports_in = threading.get_ident()
        try:
            from pynenc.client.runner import ClusterRunner
        finally:
            self._imports_in = 0
        # A signal handler may have been faster, and there has to be one only.
        return self.__dict__.setdefault("_cluster", ClusterRunner(self))  # type: ignore[no-any-return]

    @cached_property
    def _synchronous(self) -> SynchronousRunner:
        from pynenc.synchronous import SynchronousRunner

        return SynchronousRunner()

    def report(self) -> dict[str, Any] | None:
        """What the supervisor does just now; None when none runs."""
        cluster = self._cluster
        return cluster.ask("report") if cluster.connect_only() else None

    def start_supervisor(self, log: str | None) -> int:
        """Start a supervisor that stays; its pid. It prints to `log`, or to this process's terminal.

        Raises:
            RunnerError: One runs already, or it does not start.
        """
        return self._cluster.start_staying(log)

    def stop_supervisor(self, now: bool = False) -> bool:
        """Have the supervisor end when its work is done, or now; False when none runs."""
        cluster = self._cluster
        if not cluster.connect_only():
            return False
        cluster.ask("stop", now=now)
        cluster.close()
        return True

    def resume(self) -> Resumed:
        """Have the calls run that earlier runs have left: stopped by Ctrl-C, SIGTERM or `runner stop --now`, or killed.

        They keep their numbers, and each is run by one supervisor only, however many programs ask for it.

        Returns:
            How many they are (`calls`); `wait(timeout)` waits for them, and `counts` tells how they ended.
        """
        from pynenc.client.resuming import Resumed

        return Resumed(self._cluster)

    def supervisor_settings(self) -> dict[str, Any]:
        """What a supervisor that this app starts needs to know."""
        from pynenc.blobs.budget import memory_budget
        from pynenc.conf.config_blobs import ConfigBlobs
        from pynenc.conf.config_broker import ConfigBroker
        from pynenc.conf.config_orchestrator import ConfigOrchestrator
        from pynenc.conf.config_runner import ConfigRunner
        from pynenc.conf.config_state_backend import ConfigStateBackend
        from pynenc.system.cpus import thread_caps, usable_cpus

        sources = (self.config_values, self.config_filepath)
        runner, broker, blobs = ConfigRunner(*sources), ConfigBroker(*sources), ConfigBlobs(*sources)
        stored = ConfigStateBackend(*sources)
        cpus = usable_cpus()
        workers = self.conf.num_workers or cpus
        return {
            "app_id": self.app_id,
            "num_workers": workers,
            "spare_workers": workers if runner.spare_workers is None else runner.spare_workers,
            "worker_environment": thread_caps(workers, runner.worker_blas_threads, cpus),
            "worker_memory_limit": runner.worker_memory_limit,
            "memory_check_s": runner.memory_check_s,
            "max_calls_per_worker": runner.max_calls_per_worker,
            "max_worker_age": runner.max_worker_age,
            "start_timeout_s": runner.start_timeout_s,
            "persistent": False,
            "on_client_loss": runner.on_client_loss.name,
            "takes_up": True,
            "durability": stored.durability.name,
            "disk_timeout_s": stored.disk_timeout_s,
            "retention": stored.retention,
            "max_state_bytes": stored.max_state_size,
            "lease_s": broker.lease_s,
            "queued_bytes": broker.queued_bytes,
            "blob_threshold_bytes": blobs.threshold_bytes,
            "blob_memory_bytes": memory_budget(blobs.memory_share, blobs.memory_bytes),
            "client_buffer_bytes": ConfigOrchestrator(*sources).client_buffer_bytes,
        }

    @cached_property
    def state_backend(self) -> StateBackend:
        """Reads what is stored about invocations."""
        from pynenc import context
        from pynenc.client.launch import check_state_dir
        from pynenc.client.paths import paths_of
        from pynenc.state_backend import StateBackend

        inside = context.own_supervisor(self.app_id)
        if inside is not None:
            database = inside.database
        else:
            check_state_dir(self.conf.state_path)
            database = paths_of(self.conf.state_path, self.app_id).database
        context.databases[database] = None
        return StateBackend(database)

    def use_database(self, path: str) -> None:
        """Read what is stored there from now on; the runner has connected to its supervisor."""
        known = self.__dict__.get("state_backend")
        if known is not None and known.path != path:
            known.close()
            del self.__dict__["state_backend"]

    @cached_property
    def broker(self) -> Broker:
        """How many calls wait for a worker."""
        from pynenc.broker import Broker

        return Broker(self)

    @cached_property
    def orchestrator(self) -> Orchestrator:
        """Where calls and workers stand."""
        from pynenc.orchestrator import Orchestrator

        return Orchestrator(self)

    @property
    def serializer(self) -> ModuleType:
        """The module that makes bytes of values and values of bytes: `dumps` and `loads`."""
        from pynenc import serializer

        return serializer

    @cached_property
    def logger(self) -> logging.Logger:
        """The app's logger, `pynenc.<app_id>`, at the level of field `logging_level`."""
        import logging

        logger = logging.getLogger(f"pynenc.{self.app_id}")
        logger.setLevel(self.conf.logging_level)
        return logger

    def settings_for_workers(self) -> dict[str, Any]:
        """Of what a worker makes an app like this (`app_like`), as far as that can be written down."""
        from pynenc.conf.config_task import untravelled

        plain = {name: value for name, value in self._own_values().items() if untravelled({name: value}) is None}
        return {"app_id": self.app_id, "config_values": plain, "config_filepath": self.config_filepath}

    def _own_values(self) -> dict[str, Any]:
        """What the program says of the configuration beside the id."""
        return {name: value for name, value in self.config_values.items() if name != "app_id"}

    def __reduce__(self) -> tuple[Any, ...]:
        return _same_app, (self.app_id, self._own_values(), self.config_filepath, self._number)

    def __repr__(self) -> str:
        return f"Pynenc(app_id={self.app_id!r})"


def _same_app(app_id: str, config_values: dict[str, Any], config_filepath: str | None, number: int) -> Pynenc:
    """An app that has travelled: one of the same id that is here, if possible with the same configuration, or a new one."""
    known = _alike(app_id, config_values, config_filepath, number) or _apps.get(app_id)
    return known or Pynenc(app_id, config_values, config_filepath)


def app_like(app_id: str, config_values: dict[str, Any], config_filepath: str | None) -> Pynenc:
    """An app of this id and configuration: one that is here, or a new one."""
    return _alike(app_id, config_values, config_filepath) or Pynenc(app_id, config_values, config_filepath)


def _alike(app_id: str, config_values: dict[str, Any], config_filepath: str | None, number: int = 0) -> Pynenc | None:
    """The app of an id and configuration; of several such apps the one with this number, which is the one that was pickled here."""
    here = (_apps.get(app_id), *(one() for one in _further.valuerefs()))
    wanted = (app_id, config_values, config_filepath)
    alike = [app for app in here if app is not None and (app.app_id, app._own_values(), app.config_filepath) == wanted]
    return next((app for app in alike if app._number == number), alike[0] if alike else None)
