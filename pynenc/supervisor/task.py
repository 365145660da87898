"""A task as the supervisor knows it."""

from __future__ import annotations

from typing import Any


class Task:
    """A name that workers import, and where they find it."""

    __slots__ = ("context", "number", "task_id")

    def __init__(self, number: int, task_id: str, context: dict[str, Any]) -> None:
        self.number = number
        self.task_id = task_id
        self.context = context
