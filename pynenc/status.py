"""The statuses of an invocation, and what may follow what.

One declarative table. Whoever changes a status asks it; docs are drawn from it.
"""

from __future__ import annotations

from enum import StrEnum


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
    RETRY = "RETRY"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    KILLED = "KILLED"

    @property
    def is_final(self) -> bool:
        """Whether nothing can follow: the invocation has its result or its exception."""
        return not NEXT_STATUSES[self]

    @property
    def is_available_for_run(self) -> bool:
        """Whether the invocation waits for a worker."""
        return self is InvocationStatus.REGISTERED


NEXT_STATUSES: dict[InvocationStatus, frozenset[InvocationStatus]] = {
    InvocationStatus.REGISTERED: frozenset({InvocationStatus.PENDING, InvocationStatus.CANCELLED}),
    # A lease can be cut before its turn, or its worker can die: back to the queue.
    InvocationStatus.PENDING: frozenset(
        {
            InvocationStatus.RUNNING,
            InvocationStatus.REGISTERED,
            InvocationStatus.FAILED,
            InvocationStatus.CANCELLED,
        }
    ),
    InvocationStatus.RUNNING: frozenset(
        {
            InvocationStatus.SUCCESS,
            InvocationStatus.FAILED,
            InvocationStatus.REGISTERED,
            InvocationStatus.RETRY,
            InvocationStatus.PAUSED,
            InvocationStatus.KILLED,
        }
    ),
    InvocationStatus.PAUSED: frozenset(
        {InvocationStatus.RUNNING, InvocationStatus.REGISTERED, InvocationStatus.KILLED}
    ),
    InvocationStatus.RETRY: frozenset({InvocationStatus.PENDING, InvocationStatus.CANCELLED}),
    InvocationStatus.CANCELLED: frozenset(),
    InvocationStatus.KILLED: frozenset(),
    InvocationStatus.SUCCESS: frozenset(),
    InvocationStatus.FAILED: frozenset(),
}
"""For each status, the statuses that may follow it."""
