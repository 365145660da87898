"""The options of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum, StrEnum
from typing import Any, ClassVar

from pynenc.backoff import backed_off
from pynenc.conf.field import (
    Field,
    anything,
    boolean,
    choice,
    exception_class,
    exception_classes,
    integer,
    names,
    number,
    optional_seconds,
    seconds,
)
from pynenc.conf.sources import PREFIX, Config, Found, nearest, unknown_name
from pynenc.module_paths import found_by_path

WORKER_OPTIONS = ("retry_for", "copy_arguments", "timeout")
"""The options on which a worker acts."""

APP = "app"
"""Beside them, where a worker makes the task itself: of what it makes the app, with `APP_MAKER`."""

APP_MAKER = "pynenc.app.app_like"


class ConcurrencyControlType(StrEnum):
    """What calls of a task count as the same for concurrency control."""

    DISABLED = "disabled"
    TASK = "task"
    ARGUMENTS = "arguments"
    KEYS = "keys"


class ConfigTask(Config):
    """The options of one task, as they hold from all sources.

    Args:
        task_id: The task, `module.function`.
        config_values: Values from the program; a table `task` holds for all tasks, a table in it named by a task id for that task.
        config_filepath: The file to read; None looks for one.
        task_options: What the decorator says.

    >>> ConfigTask("jobs.add", task_options={"max_retries": 3}).max_retries
    3
    """

    section: ClassVar[str] = "task"
    task_id = ""

    parallel_batch_size = integer(
        0, "Most calls of a `parallelize` per batch; 0 lets pynenc choose.", aliases=("auto_parallel_batch_size",)
    )
    retry_for = exception_classes("Exceptions after which a call is tried again; subclasses count.")
    max_retries = integer(0, "How often a call is tried again at most.")
    retry_delay = seconds(0.0, "Seconds before the first retry.")
    retry_backoff = number(2.0, "By what the delay is multiplied for each further retry.", least=1.0)
    retry_max_delay = seconds(300.0, "Seconds that a delay grows to at most.")
    retry_jitter = number(0.1, "The share of a delay that is left to chance, so that retries spread out.", 0.0, 1.0)
    timeout = optional_seconds("Seconds that a call may run; then its worker is ended and it raises TaskTimeoutError.")
    expires = optional_seconds("Seconds within which a call must begin; else it raises InvocationExpiredError.")
    priority = integer(0, "Calls of a higher priority go first.", least=-1000, most=1000)
    running_concurrency = choice(
        ConcurrencyControlType.DISABLED, "Of which calls at most `max_running` run at the same time."
    )
    max_running = integer(
        0, "How many calls of the same key run at once at most; 0 means one under `running_concurrency`, else no limit."
    )
    registration_concurrency = choice(
        ConcurrencyControlType.DISABLED, "Which calls are not registered again while one is waiting."
    )
    key_arguments = names("The arguments that make calls the same under KEYS.")
    on_diff_non_key_args_raise = boolean(
        False, "Raise when a call has the key of a registered one but other arguments."
    )
    call_result_cache = boolean(False, "Answer a call from the stored result of an equal one.")
    cache_by_source = boolean(
        True, "Whether `call_result_cache` forgets results when the function's source has changed."
    )
    disable_cache_args = names("Arguments that do not count for `call_result_cache`.")
    reroute_on_concurrency_control = boolean(True, "Have calls wait that may not run yet, rather than end them.")
    cycle_control = boolean(True, "Refuse a call that is made from inside of itself, with the same arguments.")
    force_new_workflow = boolean(False, "Begin a workflow of its own.")
    triggers = anything("What starts the task by itself.")
    async_concurrency = integer(
        100, "How many calls of a task that is an `async def` function run at once in each worker.", least=1
    )
    threads_per_worker = integer(
        1, "How many calls of the task run at once in each worker, in threads; for tasks that mostly wait.", least=1
    )
    copy_arguments = boolean(
        False, "Give each call copies of its large arguments, which it may change; else they are read-only."
    )
    max_worker_losses = integer(1, "How often a call is run again after its worker died.")
    rerun_on_worker_loss = boolean(True, "Whether a call is run again after its worker died.")

    def __init__(
        self,
        task_id: str,
        config_values: Mapping[str, Any] | None = None,
        config_filepath: str | None = None,
        task_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.task_id = task_id
        self._options = dict(task_options or {})
        super().__init__(config_values, config_filepath)

    made_with: Callable[[], dict[str, Any] | None] = staticmethod(lambda: None)
    """Of what a worker makes the task's app, for a task that it does not find as such in the task's module."""

    def rules(self, is_async: bool = False) -> dict[str, Any]:
        """The options that the supervisor acts on, as it takes them.

        Args:
            is_async: Whether the task's function is a coroutine function.
        """
        from pynenc.exceptions import RetryError, TaskTimeoutError, WorkerMemoryError

        retriable: tuple[type[BaseException], ...] = (RetryError, *self.retry_for)
        return {
            "max_worker_losses": self.max_worker_losses,
            "rerun_on_worker_loss": self.rerun_on_worker_loss,
            "max_retries": self.max_retries,
            "retry_delay_s": self.retry_delay,
            "retry_backoff": self.retry_backoff,
            "retry_max_delay_s": self.retry_max_delay,
            "retry_jitter": self.retry_jitter,
            "timeout_s": self.timeout or 0.0,
            "retry_on_timeout": issubclass(TaskTimeoutError, retriable),
            "retry_on_memory": issubclass(WorkerMemoryError, retriable),
            "expires_s": self.expires or 0.0,
            "priority": self.priority,
            "max_running": self.max_running or 1,
            "reroute": self.reroute_on_concurrency_control,
            "concurrency": self._concurrency(is_async),
        }

    def worker_options(self) -> str:
        """The options on which a worker acts, as text: `with_options` and this process's environment may have changed them.

        Empty when nobody has set any of them, or they cannot be written down; then the task's own hold. When the worker makes
        the task itself, it finds there also what it makes the app of.

        Raises:
            TaskError: The worker makes the task itself, and `retry_for` names a class that it cannot import.
        """
        chosen = {name: getattr(self, name) for name in WORKER_OPTIONS}
        if (made_with := self.made_with()) is not None:
            self.check_travels()
            return options_to_json({**chosen, APP: made_with})
        if not any(chosen.values()) and chosen.keys().isdisjoint(self._options):
            return ""
        return options_to_json(chosen) if untravelled(chosen) is None else ""

    def check_travels(self) -> None:
        """Refuse options that a worker would have to be told, and cannot be.

        Raises:
            TaskError: `retry_for` names a class that it cannot import.
        """
        if (problem := untravelled({"retry_for": self.retry_for})) is not None:
            from pynenc.exceptions import TaskError

            raise TaskError(self.task_id, f"retry_for: {problem}")

    def _concurrency(self, is_async: bool) -> int:
        if is_async:
            return int(self.async_concurrency)
        return int(self.threads_per_worker) if self.threads_per_worker > 1 else 0

    def delay_before_retry(self, retries: int) -> float:
        """Seconds to wait before the next attempt when so many attempts were tried again before."""
        import random

        return backed_off(
            self.retry_delay, self.retry_backoff, self.retry_max_delay, self.retry_jitter, retries, random.random()
        )

    def _given(self, config_values: Mapping[str, Any], config_filepath: str | None) -> Iterator[dict[str, Found]]:
        by_name = option_fields()
        yield {
            by_name[name].name: Found(value, f"options of task {self.task_id}")
            for name, value in self._options.items()
            if name in by_name
        }
        yield from super()._given(config_values, config_filepath)

    def _table(self, content: Mapping[str, Any], source: str) -> dict[str, Found]:
        found = super()._table(content, source)
        by_name = option_fields()
        for name, value in self._own_table(content.get("task", {})).items():
            where = f'{source} [task."{self.task_id}"]'
            if name not in by_name:
                raise unknown_name(where, name, by_name)
            found[by_name[name].name] = Found(value, where)
        return found

    def _own_table(self, section: Any) -> Mapping[str, Any]:
        """The table of this task: TOML makes `[task.jobs.add]` a table in a table, and `[task."jobs.add"]` one named so."""
        at = section
        for part in self.task_id.split("."):
            at = at.get(part, {}) if isinstance(at, Mapping) else {}
        by_parts = at if isinstance(at, Mapping) else {}
        by_id = section.get(self.task_id, {}) if isinstance(section, Mapping) else {}
        return {**by_parts, **by_id}

    def _is_inner_table(self, name: str, value: Any) -> bool:
        return isinstance(value, Mapping)

    def _variables(self, field: Field[Any]) -> Iterator[str]:
        import os

        module, _, name = self.task_id.rpartition(".")
        wanted = {
            f"{PREFIX}CONFIGTASK__{written}#{name}__{one}".upper()
            for written in (module, module.replace(".", "#"))
            for one in field.names
        }
        yield from (variable for variable in os.environ if variable.upper() in wanted)
        yield from super()._variables(field)


def option_fields() -> dict[str, Field[Any]]:
    """The field of each option name."""
    return {name: field for field in ConfigTask.fields() for name in field.names}


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options of a task, a line for each.

    >>> option_problems({"max_retry": 3})
    ["max_retry: unknown option, did you mean 'max_retries'?"]
    """
    fields = option_fields()
    problems = []
    for name, value in options.items():
        field = fields.get(name)
        if field is None:
            problems.append(f"{name}: unknown option{nearest(name, fields)}")
            continue
        try:
            field.convert(value)
        except (ValueError, TypeError):
            problems.append(f"{name}: expected {field.expects}, got {value!r}")
    return problems


def options_to_json(options: Mapping[str, Any]) -> str:
    """Task options as text; exception classes and enums come back as themselves.

    >>> options_from_json(options_to_json({"retry_for": (ValueError,)}))
    {'retry_for': (<class 'ValueError'>,)}
    """
    import json

    return json.dumps({name: _to_plain(value) for name, value in options.items()})


def untravelled(options: Mapping[str, Any]) -> str | None:
    """Why no worker can be told of options; None when it can.

    >>> untravelled({"max_retries": 3})
    """
    try:
        text = options_to_json(options)
    except (ValueError, TypeError) as error:
        return str(error)
    if '"__main__.' in text:
        return "a class of it is defined in the script, which no worker can import: move it to a module"
    return None


def options_from_json(text: str) -> dict[str, Any]:
    """The options that `options_to_json` wrote."""
    import json

    return {name: _from_plain(value) for name, value in json.loads(text).items()}


def _to_plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return {"enum": _dotted(type(value)), "name": value.name}
    if isinstance(value, type):
        return {"class": _dotted(value)}
    if isinstance(value, tuple):
        return {"tuple": [_to_plain(one) for one in value]}
    if isinstance(value, set | frozenset):
        return {"set": [_to_plain(one) for one in sorted(value, key=repr)], "frozen": isinstance(value, frozenset)}
    if isinstance(value, list):
        return [_to_plain(one) for one in value]
    if isinstance(value, dict):
        return {"dict": [[_to_plain(key), _to_plain(one)] for key, one in value.items()]}
    return value


def _from_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "enum" in value:
        return found_by_path(value["enum"])[value["name"]]
    if "class" in value:
        return exception_class(value["class"])
    if "tuple" in value:
        return tuple(_from_plain(one) for one in value["tuple"])
    if "set" in value:
        made = {_from_plain(one) for one in value["set"]}
        return frozenset(made) if value["frozen"] else made
    return {_from_plain(key): _from_plain(one) for key, one in value["dict"]}


def _dotted(kind: type) -> str:
    dotted = f"{kind.__module__}.{kind.__qualname__}"
    try:
        found_by_path(dotted)
    except (ImportError, AttributeError):
        raise ValueError(
            f"the class {dotted} is not found by this name, so no other process has it: define it at the top level of a "
            "module, or in a class there"
        ) from None
    return dotted
