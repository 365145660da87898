"""A call: a task with its arguments."""

from __future__ import annotations

import base64
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic

from pynenc.arguments import Arguments
from pynenc.types import Params, Result

if TYPE_CHECKING:
    from pynenc.app import Pynenc
    from pynenc.task import Task


class Call(Generic[Params, Result]):
    """A task with its arguments.

    Args:
        task: The task to call.
        arguments: What its parameters get.
    """

    def __init__(self, task: Task[Params, Result], arguments: Arguments | None = None) -> None:
        self.task = task
        self.arguments = arguments or Arguments()

    @property
    def app(self) -> Pynenc:
        """The app of the task."""
        return self.task.app

    @cached_property
    def call_id(self) -> str:
        """The same for calls of the same task with equal arguments."""
        return f"{self.task.task_id}#{self.arguments.args_id}"

    @property
    def serialized_arguments(self) -> dict[str, str]:
        """Each argument as text: its pickle in base64."""
        from pynenc.serializer import dumps

        return {name: base64.b64encode(dumps(value)).decode() for name, value in self.arguments.kwargs.items()}

    def to_json(self) -> str:
        """The call as text; `from_json` undoes it."""
        return json.dumps({"task": self.task.to_json(), "arguments": self.serialized_arguments})

    @classmethod
    def from_json(cls, app: Pynenc, serialized: str) -> Call[Any, Any]:
        """The call that `to_json` wrote. It unpickles the arguments: only for text from a source that you trust."""
        from pynenc.serializer import loads
        from pynenc.task import Task

        fields = json.loads(serialized)
        values = {name: loads(base64.b64decode(text)) for name, text in fields["arguments"].items()}
        return Call(Task.from_json(app, fields["task"]), Arguments(values))

    def __eq__(self, other: object) -> bool:
        return self.call_id == other.call_id if isinstance(other, Call) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.call_id)

    def __repr__(self) -> str:
        return f"Call({self.task.task_id}, {self.arguments!r})"
