"""What the orchestrator knows of tasks and of batches that are not finished."""

from __future__ import annotations

from pynenc.backoff import backed_off
from pynenc.protocol.messages import DEFAULT_DELAY, invocation_number
from pynenc.supervisor.broker import Range
from pynenc.supervisor.events import BatchArrived, Ended, TaskOptions

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
        evictions: How often a call was ended to give the machine memory, by index.
        retries: How many attempts after the first a call has had, by index.
        waiting: The calls that wait for the time of their next attempt.
        withdrawn: Why calls are to end that were in workers' hands when they were withdrawn.
        extras: The keys and the dependencies of the calls.
        depends_on: The batches whose results they take.
        succeeded: The calls `[first, stop)` that have their results.
        failed: The calls `[first, stop)` that have none, and the invocation because of which, if it is not their own.
        rerouted: Whether calls of it were kept waiting for their keys.
        isolated: The calls that are to run without others beside them in their worker.
        arrival: How many batches there were when it had arrived.
    """

    __slots__ = (
        "arrival",
        "count",
        "depends_on",
        "evictions",
        "extras",
        "failed",
        "isolated",
        "losses",
        "priority",
        "rerouted",
        "retries",
        "source",
        "succeeded",
        "task",
        "unfinished",
        "waiting",
        "withdrawn",
    )

    def __init__(self, arrived: BatchArrived, priority: int, arrival: int) -> None:
        self.task = arrived.task
        self.source = arrived.source
        self.count = self.unfinished = arrived.count
        self.extras = arrived.extras
        self.depends_on = {one.batch for one in self.extras.depended_on()} if self.extras.dependencies else frozenset()
        self.arrival = arrival
        self.succeeded: list[tuple[int, int]] = []
        self.failed: list[tuple[int, int, int]] = []
        self.rerouted = False
        self.isolated: set[int] = set()
        self.priority = priority
        self.losses: dict[int, int] = {}
        self.evictions: dict[int, int] = {}
        self.retries: dict[int, int] = {}
        self.waiting: set[int] = set()
        self.withdrawn: dict[int, Ended] = {}

    def has_ended(self, index: int) -> bool:
        """Whether a call has its outcome."""
        return any(first <= index < stop for first, stop in self.succeeded) or any(
            first <= index < stop for first, stop, _ in self.failed
        )

    def results_left(self, first: int, stop: int) -> int:
        """How many of these calls have no result yet."""
        there = sum(max(0, min(stop, b) - max(first, a)) for a, b in self.succeeded)
        return stop - first - there

    def root_of_failure(self, number: int, first: int, stop: int) -> int:
        """The invocation because of which one of these calls failed; 0 when none did."""
        for start, end, root in self.failed:
            at = max(first, start)
            if at < min(stop, end):
                return root or invocation_number(number, at)
        return 0

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
