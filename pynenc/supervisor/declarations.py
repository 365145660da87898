"""Reads the declaration of a task: every option is of its type and within its bounds from here on."""

from __future__ import annotations

from typing import Any

from pynenc.exceptions import ProtocolError
from pynenc.named_tuples import NamedTuple
from pynenc.protocol.fields import Fields
from pynenc.supervisor.events import TaskOptions

MAX_KEY = (1 << 32) - 1
"""What the head of a batch can say of its task."""

_LEAST = {"priority": -(1 << 62), "max_running": 1}
"""Where it is not 0."""


class Declaration(NamedTuple):
    """A task as a client declared it; `options` and `context` also as they came, for the database and the workers."""

    key: int
    task_id: str
    rules: TaskOptions
    options: dict[str, Any]
    context: dict[str, Any]
    modules: list[str]


def declaration_from(body: bytes) -> Declaration:
    """The declaration in the body of a frame.

    Raises:
        ProtocolError: A field is missing, or is not what it should be.
    """
    fields = Fields.of("a task", body)
    options, context = fields.inner("options"), fields.inner("context")
    surroundings = {
        "sys_path": context.texts("sys_path"),
        "cwd": context.path("cwd"),
        "options": context.text("options") if "options" in context.names else "",
        "file": context.path("file") if "file" in context.names else "",
    }
    modules = context.texts("modules") if "modules" in context.names else []
    key = fields.integer("key", most=MAX_KEY)
    return Declaration(key, fields.text("task_id"), _rules(options), options.values, surroundings, modules)


def _rules(options: Fields) -> TaskOptions:
    read: dict[str, Any] = {}
    for name in options.names:
        default = TaskOptions._field_defaults.get(name)
        if default is None:
            raise ProtocolError(f"a task was declared with an option that is not known: {name!r:.100}")
        if isinstance(default, bool):
            read[name] = options.flag(name)
        elif isinstance(default, float):
            read[name] = options.number(name)
        else:
            read[name] = options.integer(name, least=_LEAST.get(name, 0))
    return TaskOptions(**read)
