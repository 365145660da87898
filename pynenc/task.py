"""Tasks: module-level functions that can be called through an app."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic

from pynenc import context
from pynenc.exceptions import InvalidTaskOptionsError, RetryError, TaskError
from pynenc.module_paths import check_importable, found_by_path
from pynenc.types import Func, Params, Result

if TYPE_CHECKING:
    import logging

    from pynenc.app import Pynenc
    from pynenc.arguments import Arguments
    from pynenc.conf.config_task import ConfigTask
    from pynenc.invocation.base_invocation import BaseInvocation, BaseInvocationGroup
    from pynenc.keys import KeyRules

_VARIABLE_POSITIONAL = 0x04
"""The flag of a function's code that has `*args`; `inspect` has it too, but is slow to import."""

ANY_NUMBER = 1 << 30

KEY_OPTIONS = {"running_concurrency", "registration_concurrency", "key_arguments", "disable_cache_args"}
"""Options whose values have to fit the function's parameters."""

registered: dict[str, Task[Any, Any]] = {}
"""The tasks of all apps in this process, by id: how a worker finds one whose name in its module is another."""


class Task(Generic[Params, Result]):
    """A module-level function that workers can import, with its options.

    Made by `@app.task`. Calling it gives an invocation at once; a worker process runs the function.

    Args:
        app: The app that the task belongs to.
        func: A function defined at the top level of an importable module.
        options: Task options by name; see the configuration reference.

    Raises:
        RuntimeError: The function's module is run as the main program, which workers cannot import.
        ValueError: The function is nested or a lambda, which workers cannot find, or a builtin that does not tell its parameters.
        InvalidTaskOptionsError: Options are invalid; all of them are listed.
    """

    def __init__(self, app: Pynenc, func: Func[Params, Result], options: dict[str, Any] | None = None) -> None:
        check_importable(func)
        self.app = app
        self.func = func
        self.options: dict[str, Any] = dict(options or {})
        self.task_id = f"{func.__module__}.{func.__qualname__}"
        self._fewest, self._most = _positional_range(func)
        self.__doc__ = func.__doc__
        self.__name__ = func.__name__
        self.__qualname__ = func.__qualname__
        self.__module__ = func.__module__
        self.__wrapped__ = func
        self.validate_options()

    def with_options(self, **options: Any) -> Task[Params, Result]:
        """The same task with other options for some calls: `resize.with_options(priority=5)("cat.png")`.

        Raises:
            InvalidTaskOptionsError: Options are invalid; all of them are listed.
            TaskError: `retry_for` names a class that workers cannot import.
        """
        changed: Task[Params, Result] = Task(self.app, self.func, {**self.options, **options})
        if "retry_for" in options:
            changed.conf.check_travels()
        return changed

    def __call__(self, /, *args: Params.args, **kwargs: Params.kwargs) -> BaseInvocation[Params, Result]:
        """Call the task: a worker will run the function with these arguments.

        The arguments are checked and pickled at once: what happens to them later is not seen.

        Raises:
            TypeError: The arguments do not fit the function, or one of them cannot be pickled.
        """
        if kwargs or not self._fewest <= len(args) <= self._most:  # per call
            from pynenc.arguments import Arguments

            Arguments.from_call(self.func, *args, **kwargs)
        return self.app.runner.submit(self, args, kwargs)

    def _call(self, arguments: Arguments) -> BaseInvocation[Params, Result]:
        """Call the task with arguments from `args`."""
        return self.app.runner.submit(self, *arguments.to_call(self.func))

    def args(self, /, *args: Params.args, **kwargs: Params.kwargs) -> Arguments:
        """The arguments of a call, bound and with defaults, for `parallelize`.

        Raises:
            TypeError: They do not fit the function.
        """
        from pynenc.arguments import Arguments

        return Arguments.from_call(self.func, *args, **kwargs)

    def parallelize(
        self,
        param_iter: Iterable[tuple[Any, ...] | dict[str, Any] | Arguments],
        common_args: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> BaseInvocationGroup[Params, Result]:
        """Call the task once for each item.

        Args:
            param_iter: Tuples are positional arguments, dictionaries keyword arguments, `Arguments` come from `args`;
                they may be mixed. It is consumed once, as calls are sent.
            common_args: Arguments by name that all calls get beside their own. They travel and are stored once, and each
                worker unpickles them once: a task must not change them.
            name: Names the group. Where a group of this task has that name already, in an earlier run of the script or now,
                the calls that have succeeded or still run are taken over, and only the others are made.

        Returns:
            The invocations in the order of the items.

        Raises:
            TypeError: An item is none of these, does not fit the function, or cannot be pickled. Calls before it have been made.
            NamedGroupChangedError: The group of that name was made with other items; says which.
            InvocationConcurrencyWithDifferentArgumentsError: See option `on_diff_non_key_args_raise`.
        """
        if name is not None:
            from pynenc.protocol.fields import is_unicode

            if not (isinstance(name, str) and is_unicode(name)):
                raise TypeError(f"{self.task_id}: the name of a group is a text, not {name!r:.100}")
        return self.app.runner.submit_group(self, param_iter, dict(common_args or {}), name)

    def stream(
        self,
        iterable: Iterable[tuple[Any, ...] | dict[str, Any] | Arguments],
        ordered: bool = True,
        in_flight: int | None = None,
    ) -> Iterator[Result]:
        """The results of a call for each item of an endless or huge iterable, made as results are taken.

        Args:
            iterable: As for `parallelize`.
            ordered: Whether results come in the order of the items, or as they are there.
            in_flight: How many calls may be under way at once; None lets it follow the calls' duration.

        Raises:
            BaseException: What a call raised, when its turn comes; or the iterable, after the results of what came before.
            ValueError: `in_flight` is no number of at least 1.
        """
        if in_flight is not None and (not isinstance(in_flight, int) or in_flight < 1):
            raise ValueError(
                f"{self.task_id}: in_flight is a number of calls of at least 1, or None, not {in_flight!r:.100}"
            )
        return iter(self.app.runner.stream(self, iterable, ordered, in_flight))

    @property
    def invocation(self) -> BaseInvocation[Params, Result]:
        """The invocation that the code is running inside.

        Raises:
            RuntimeError: It is not running inside an invocation of this task.
        """
        running = context.current()
        if running is None or running.task_id() != self.task_id:
            where = "outside of any task" if running is None else f"inside task {running.task_id()}"
            raise RuntimeError(
                f"{self!s}.invocation was asked for {where}: it is there only while a worker runs the task's function"
            )
        return running.invocation()  # type: ignore[no-any-return]

    @cached_property
    def conf(self) -> ConfigTask:
        """The options as they hold, from all sources of configuration."""
        from pynenc.conf.config_task import ConfigTask

        conf = ConfigTask(self.task_id, self.app.config_values, self.app.config_filepath, self.options)
        conf.made_with = self._made_with
        return conf

    def _made_with(self) -> dict[str, Any] | None:
        """Of what a worker makes the task's app, when its module has only the plain function under the function's name."""
        module = sys.modules.get(self.func.__module__)
        return self.app.settings_for_workers() if getattr(module, self.func.__name__, None) is self.func else None

    def validate_options(self) -> None:
        """Check the names and types of the options.

        Raises:
            InvalidTaskOptionsError: Lists every invalid option, with the nearest valid names.
        """
        if not self.options:
            return
        from pynenc.conf.config_task import option_problems

        problems = option_problems(self.options)
        if not problems and KEY_OPTIONS & self.options.keys():
            from pynenc.conf.config_task import option_fields
            from pynenc.keys import key_problems

            fields = option_fields()
            problems = key_problems(self.func, {n: fields[n].convert(v) for n, v in self.options.items()})
        if problems:
            raise InvalidTaskOptionsError(self.task_id, problems)

    @cached_property
    def retriable_exceptions(self) -> tuple[type[BaseException], ...]:
        """The exceptions after which a call is tried again: those of option `retry_for`, and `RetryError`."""
        named = tuple(self.conf.retry_for)
        return named if RetryError in named else (*named, RetryError)

    @cached_property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry `task_id` and `invocation_id`, and begin with them."""
        from pynenc.logs import TaskLogger

        return TaskLogger(self.app.logger, {"task_id": self.task_id})

    def to_json(self) -> str:
        """The task as text: its id and its options.

        Raises:
            TaskError: An option names a class that no other process finds.
        """
        import json

        from pynenc.conf.config_task import options_to_json

        try:
            options = options_to_json(self.options)
        except ValueError as error:
            raise TaskError(self.task_id, str(error)) from error
        return json.dumps({"task_id": self.task_id, "options": options})

    @classmethod
    def from_json(cls, app: Pynenc, serialized: str) -> Task[Any, Any]:
        """The task that `to_json` wrote; its function is found by module path.

        Raises:
            TaskError: The module has no such function, or an option names a class that is not there.
        """
        _, func, options = cls._from_json(serialized)
        return cls(app, func, options)

    @classmethod
    def _from_json(cls, serialized: str) -> tuple[str, Callable[..., Any], dict[str, Any]]:
        import json

        from pynenc.conf.config_task import options_from_json

        fields = json.loads(serialized)
        task_id: str = fields["task_id"]
        try:
            options = options_from_json(fields["options"])
        except (ImportError, AttributeError, KeyError, ValueError) as error:
            raise TaskError(task_id, f"its options cannot be read here: {error}") from error
        return task_id, function_of(task_id), options

    def __getstate__(self) -> dict[str, Any]:
        return {"app": self.app, "task": self.to_json()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        _, func, options = self._from_json(state["task"])
        self.__init__(state["app"], func, options)  # type: ignore[misc]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Task):
            return NotImplemented
        return self is other or (
            self.task_id == other.task_id and self.app.app_id == other.app.app_id and self.options == other.options
        )

    @cached_property
    def _hash(self) -> int:
        return hash(self.task_id)

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return f"Task(func={self.func.__name__})"

    __repr__ = __str__

    # What runners need.

    @property
    def is_async(self) -> bool:
        """Whether it is an `async def` function."""
        from pynenc.execution import is_coroutine_function

        return is_coroutine_function(self.func)

    @cached_property
    def runnable(self) -> Callable[..., Any]:
        """The function as a worker calls it."""
        from pynenc.execution import runnable

        return runnable(self.func)

    def takes_positional(self, count: int) -> bool:
        """Whether the function can be called with so many positional arguments and nothing else."""
        return self._fewest <= count <= self._most

    @cached_property
    def identity(self) -> bytes:
        """A digest of the task's id, for comparing calls."""
        from hashlib import sha256

        from pynenc.lineage import TASK_BYTES

        return sha256(self.task_id.encode()).digest()[:TASK_BYTES]

    @cached_property
    def key_rules(self) -> KeyRules | None:
        """How the keys of its calls are made; None when they need none."""
        from pynenc.keys import KeyRules

        return KeyRules.of(self)


def function_of(task_id: str) -> Callable[..., Any]:
    """The function behind a task id, found by module path.

    Raises:
        TaskError: The module cannot be imported, or has no such function.
    """
    from pynenc.direct import DirectTask

    try:
        found = found_by_path(task_id)
    except (ImportError, AttributeError, ValueError) as error:
        raise TaskError(task_id, f"its function cannot be found by its module path: {error}") from error
    func: Callable[..., Any] = found.func if isinstance(found, Task | DirectTask) else found
    return func


def _positional_range(func: Callable[..., Any]) -> tuple[int, int]:
    """How few and how many positional arguments alone make a valid call; an empty range when none do."""
    code = getattr(func, "__code__", None)
    if code is None or hasattr(func, "__wrapped__") or hasattr(func, "__signature__"):
        return 1, 0  # Leave it to `inspect`, call by call.
    if code.co_kwonlyargcount > len(getattr(func, "__kwdefaults__", None) or ()):
        return 1, 0
    most = code.co_argcount
    fewest = most - len(getattr(func, "__defaults__", None) or ())
    return fewest, ANY_NUMBER if code.co_flags & _VARIABLE_POSITIONAL else most
