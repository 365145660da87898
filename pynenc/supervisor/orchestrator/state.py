"""What the orchestrator knows of tasks and of batches that are not finished."""

from __future__ import annotations

from pynenc.backoff import backed_off
from pynenc.protocol.messages import DEFAULT_DELAY
from pynenc.supervisor.broker import Range
from pynenc.supervisor.events import Ended, TaskOptions

SMOOTHING = 0.4
"""How much the latest shipment counts in a task's expected duration."""


class TaskRules:
    """What holds for the calls of a task; `call_s` is their expected duration once one call has run."""

    __slots__ = ("call_s", "options")

    def __init__(self, options: TaskOptions) -> None:
        self.options = options
        self.call_s: float | None = None

    def learn(self, count: int, seconds: float) -> None:
        """Take what calls took into the expected duration."""
        measured = max(seconds / count, 1e-7)
        self.call_s = measured if self.call_s is None else self.call_s + SMOOTHING * (measured - self.call_s)

    def delay_s(self, retries: int, asked_s: float, chance: float) -> float:
        """How long a call waits for its next attempt.

        Args:
            retries: How many attempts after the first there were.
            asked_s: What the exception asked for, or `DEFAULT_DELAY`.
            chance: A number from 0 to 1.
        """
        if asked_s != DEFAULT_DELAY:
            return asked_s
        options = self.options
        return backed_off(
            options.retry_delay_s,
            options.retry_backoff,
            options.retry_max_delay_s,
            options.retry_jitter,
            retries,
            chance,
        )


class UnfinishedBatch:
    """A batch with calls that have no outcome yet.

    Attributes:
        priority: With which they are queued; it rises when others wait for them.
        losses: How often workers died while they ran a call, by index.
        retries: How many attempts after the first a call has had, by index.
        waiting: The calls that wait for the time of their next attempt.
        withdrawn: Why calls are to end that were in workers' hands when they were withdrawn.
    """

    __slots__ = ("losses", "priority", "retries", "source", "task", "unfinished", "waiting", "withdrawn")

    def __init__(self, task: int, source: int, count: int, priority: int) -> None:
        self.task = task
        self.source = source
        self.unfinished = count
        self.priority = priority
        self.losses: dict[int, int] = {}
        self.retries: dict[int, int] = {}
        self.waiting: set[int] = set()
        self.withdrawn: dict[int, Ended] = {}

    def sort_out(self, ready: Range) -> tuple[list[Range], list[tuple[Range, Ended]]]:
        """Which of these calls may run, and which were withdrawn and why."""
        if not self.withdrawn:
            return [ready], []
        runnable: list[Range] = []
        ended: list[tuple[Range, Ended]] = []
        start = ready.first
        for index in range(ready.first, ready.stop):
            why = self.withdrawn.pop(index, None)
            if why is None:
                continue
            if start < index:
                runnable.append(ready.part(start, index))
            ended.append((ready.part(index, index + 1), why))
            start = index + 1
        if start < ready.stop:
            runnable.append(ready.part(start, ready.stop))
        return runnable, ended
