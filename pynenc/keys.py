"""Keys: digests by which calls of a task count as the same, for concurrency control and the result cache.

They are made where the call is made, from the values of the arguments with defaults filled in, however the call was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pynenc.arguments import Arguments, digest
from pynenc.conf.config_task import ConcurrencyControlType
from pynenc.exceptions import InvalidTaskOptionsError
from pynenc.prepared import CallKeys
from pynenc.protocol.extras import KEY_BYTES, NONE, Extras
from pynenc.task import KEY_OPTIONS

if TYPE_CHECKING:
    from pynenc.task import Task


class KeyRules:
    """How the keys of a task's calls are made.

    Attributes:
        looks_up: Whether a call may be answered by an invocation that is there already.
        by_arguments: Whether keys depend on the arguments of the call.
        constant: What holds for all calls alike, when they do not.

    Raises:
        InvalidTaskOptionsError: The options do not fit the function.
    """

    def __init__(self, task: Task[Any, Any]) -> None:
        conf = task.conf
        problems = key_problems(task.func, {name: getattr(conf, name) for name in KEY_OPTIONS})
        if problems:
            raise InvalidTaskOptionsError(task.task_id, problems)
        self._task_id = task.task_id
        self._names = conf.key_arguments
        self._running = conf.running_concurrency
        if self._running is ConcurrencyControlType.DISABLED and conf.max_running:
            self._running = ConcurrencyControlType.TASK
        self._registration = conf.registration_concurrency
        self._cached = conf.call_result_cache
        self._not_cached = frozenset(conf.disable_cache_args)
        self._source = _source_digest(task.func) if conf.call_result_cache and conf.cache_by_source else b""
        self.looks_up = self._cached or self._registration is not ConcurrencyControlType.DISABLED

        self.by_arguments = self.looks_up or self._running is not ConcurrencyControlType.TASK
        self.constant = NONE if self.by_arguments else Extras(running=self._key("running", self._running, Arguments()))

    @staticmethod
    def of(task: Task[Any, Any]) -> KeyRules | None:
        """The rules of a task; None for most, whose calls need no keys."""
        conf = task.conf
        disabled = ConcurrencyControlType.DISABLED
        if (
            conf.running_concurrency is disabled
            and conf.registration_concurrency is disabled
            and not conf.max_running
            and not conf.call_result_cache
        ):
            return None
        return KeyRules(task)

    def keys_of(self, arguments: Arguments) -> CallKeys:
        """The keys of one call."""
        return CallKeys(
            self._key("running", self._running, arguments),
            self._key("registration", self._registration, arguments),
            arguments.digest[:KEY_BYTES] if self._registration is not ConcurrencyControlType.DISABLED else b"",
            self._cache_key(arguments) if self._cached else b"",
        )

    def _key(self, what: str, control: ConcurrencyControlType, arguments: Arguments) -> bytes:
        match control:
            case ConcurrencyControlType.DISABLED:
                return b""
            case ConcurrencyControlType.TASK:
                counts: dict[str, Any] = {}
            case ConcurrencyControlType.ARGUMENTS:
                counts = arguments.kwargs
            case ConcurrencyControlType.KEYS:
                counts = {name: arguments.kwargs[name] for name in self._names}
        return digest([what, control.name, self._task_id, counts])[:KEY_BYTES]

    def _cache_key(self, arguments: Arguments) -> bytes:
        counts = {name: value for name, value in arguments.kwargs.items() if name not in self._not_cached}
        return digest(["cache", self._task_id, self._source, counts])[:KEY_BYTES]


def key_problems(func: Callable[..., Any], options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options about keys, a line for each."""
    import inspect

    problems = []
    parameters = list(inspect.signature(func).parameters)
    for name in ("key_arguments", "disable_cache_args"):
        unknown = [one for one in options.get(name, ()) if one not in parameters]
        if unknown:
            problems.append(
                f"{name}: {func.__name__}() has no parameter {', '.join(map(repr, unknown))}, only "
                f"{', '.join(map(repr, parameters)) or 'none'}"
            )
    by_keys = [
        name
        for name in ("running_concurrency", "registration_concurrency")
        if options.get(name) is ConcurrencyControlType.KEYS
    ]
    if by_keys and not options.get("key_arguments"):
        problems.append(
            f"key_arguments: {' and '.join(by_keys)} = KEYS needs the names of the arguments that make the key"
        )
    return problems


def _source_digest(func: Callable[..., Any]) -> bytes:
    """A digest of a function's source text; of its code where there is no text."""
    import inspect

    try:
        return digest(inspect.getsource(func))
    except (OSError, TypeError):
        code = getattr(func, "__code__", None)
        return digest([code.co_code, repr(code.co_consts), code.co_names] if code is not None else repr(func))
