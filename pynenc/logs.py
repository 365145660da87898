"""Loggers of tasks. Apart from `task`, because `logging` is slow to import and few scripts need it."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from pynenc import context


class TaskLogger(logging.LoggerAdapter):  # type: ignore[type-arg]
    """Adds to each record `task_id` and `invocation_id`, and begins its message with them."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Called by `logging` for each record."""
        task_id = (self.extra or {}).get("task_id")
        running = context.current()
        invocation_id = running.invocation_id() if running is not None else None
        extra = {"task_id": task_id, "invocation_id": invocation_id, **kwargs.get("extra", {})}
        where = f"[{task_id}]" if invocation_id is None else f"[{task_id} {invocation_id}]"
        return f"{where} {msg}", {**kwargs, "extra": extra}
