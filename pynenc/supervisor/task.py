"""A task as the supervisor knows it."""

from __future__ import annotations

from typing import Any


class Task:
    """A name that workers import, and where they find it.

    Attributes:
        modules: What was imported where it was declared last, as it travels; see `pynenc.system.origins`. It is not kept
            in the database: whoever takes a call up later runs what is there then.
    """

    __slots__ = ("context", "modules", "number", "task_id")

    def __init__(self, number: int, task_id: str, context: dict[str, Any]) -> None:
        self.number = number
        self.task_id = task_id
        self.context = context
        self.modules: list[str] = []
