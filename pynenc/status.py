"""The statuses of an invocation: one table says which are final, who sets them, and what may follow what.

Whoever writes down a change asks `check_change`; the page docs/statuses.md and `pynenc status render` are drawn from the table.
"""

from __future__ import annotations

from enum import StrEnum

from pynenc.exceptions import InvocationStatusTransitionError
from pynenc.named_tuples import NamedTuple


class InvocationStatus(StrEnum):
    """Where an invocation stands on its way from registration to its final status.

    >>> InvocationStatus.SUCCESS.is_final
    True
    >>> InvocationStatus.REGISTERED.is_available_for_run
    True
    """

    REGISTERED = "REGISTERED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    RESUMED = "RESUMED"
    RETRY = "RETRY"
    REROUTED = "REROUTED"
    CONCURRENCY_CONTROLLED = "CONCURRENCY_CONTROLLED"
    CONCURRENCY_CONTROLLED_FINAL = "CONCURRENCY_CONTROLLED_FINAL"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    KILLED = "KILLED"

    @property
    def is_final(self) -> bool:
        """Whether nothing can follow: the invocation has its result or its exception."""
        return not STATUSES[self].following

    @property
    def is_available_for_run(self) -> bool:
        """Whether the invocation waits for a worker and may run."""
        return self in (InvocationStatus.REGISTERED, InvocationStatus.REROUTED)


class StatusRule(NamedTuple):
    """A row of the table.

    Attributes:
        means: What the status says.
        owner: Which process knows that it holds: the supervisor's queues or the worker.
        following: The statuses that may come next; none after a final one.
    """

    means: str
    owner: str
    following: frozenset[InvocationStatus]


def _row(means: str, owner: str, *following: str) -> StatusRule:
    return StatusRule(means, owner, frozenset(map(InvocationStatus, following)))


STATUSES: dict[InvocationStatus, StatusRule] = {
    InvocationStatus.REGISTERED: _row(
        "It waits for its turn, or for the calls whose results it takes.",
        "supervisor",
        *("PENDING", "RUNNING", "CONCURRENCY_CONTROLLED", "CONCURRENCY_CONTROLLED_FINAL", "FAILED", "CANCELLED"),
    ),
    InvocationStatus.PENDING: _row(
        "It lies in a worker's hands and has not begun.",
        "supervisor",
        *("RUNNING", "REROUTED", "REGISTERED", "CONCURRENCY_CONTROLLED", "FAILED", "CANCELLED"),
    ),
    InvocationStatus.RUNNING: _row(
        "A worker runs it.", "worker", "SUCCESS", "FAILED", "RETRY", "PAUSED", "REROUTED", "REGISTERED", "KILLED"
    ),
    InvocationStatus.PAUSED: _row(
        "It has begun, and waits for calls that it made.",
        "worker",
        "RESUMED",
        "RUNNING",
        "REROUTED",
        "KILLED",
        "FAILED",
    ),
    InvocationStatus.RESUMED: _row(
        "What it waited for is there, and it runs on.",
        "worker",
        *("SUCCESS", "FAILED", "RETRY", "PAUSED", "RUNNING", "REROUTED", "KILLED"),
    ),
    InvocationStatus.RETRY: _row(
        "An attempt raised; the next one waits for its time.",
        "supervisor",
        *("PENDING", "RUNNING", "CONCURRENCY_CONTROLLED", "CONCURRENCY_CONTROLLED_FINAL", "CANCELLED"),
    ),
    InvocationStatus.REROUTED: _row(
        "It waits for its turn again: its worker died, or calls of its key had kept it from running.",
        "supervisor",
        *("PENDING", "RUNNING", "CONCURRENCY_CONTROLLED", "CONCURRENCY_CONTROLLED_FINAL", "FAILED", "CANCELLED"),
    ),
    InvocationStatus.CONCURRENCY_CONTROLLED: _row(
        "As many calls of its key run as may; it is woken when one of them ends.",
        "supervisor",
        *("REROUTED", "PENDING", "RUNNING", "FAILED", "CANCELLED"),
    ),
    InvocationStatus.CONCURRENCY_CONTROLLED_FINAL: _row("It was not run, because others of its key ran.", "supervisor"),
    InvocationStatus.SUCCESS: _row("It has its result.", "worker"),
    InvocationStatus.FAILED: _row("It has its exception.", "worker"),
    InvocationStatus.CANCELLED: _row("It was cancelled before it began.", "supervisor"),
    InvocationStatus.KILLED: _row(
        "It was cancelled while it ran: its coroutine was cancelled, or its worker ended.", "supervisor"
    ),
}
"""What each status means and what may follow it."""


def check_change(invocation_id: str, before: InvocationStatus, after: InvocationStatus) -> None:
    """Make sure that one status may follow another.

    Raises:
        InvocationStatusTransitionError: It may not.

    >>> check_change("1-0-0", InvocationStatus.RUNNING, InvocationStatus.SUCCESS)
    """
    if after not in STATUSES[before].following:
        allowed = ", ".join(sorted(STATUSES[before].following)) or "nothing: it is final"
        raise InvocationStatusTransitionError(invocation_id, f"{after} cannot follow {before}; what can: {allowed}")
