"""A client, as the supervisor knows it."""

from __future__ import annotations

from collections import deque

from pynenc.protocol.messages import Kind
from pynenc.supervisor.loop import Peer
from pynenc.supervisor.task import Task


class Client:
    """A connected client.

    Attributes:
        is_worker: Whether it is a worker whose task calls tasks; nobody stays for its sake.
        tasks: Its own numbers of the tasks that it declared.
        unread: How many answers it may not have read yet.
        uncommitted: The batches that came since it was told which are committed.
        backlog: Invocations whose outcomes wait in the state backend until it reads again.
        has_left: Whether it has said goodbye, or was interrupted.
        asks_only: Whether it makes no calls: it is welcome also while nothing is committed.
        needs: Batches that are not to be forgotten while it is there: named groups that it goes on with, by their first batch,
            and what it has resumed.
        waits_beside: The worker whose call has forked it, while it waits for other calls; None when it does not.
        numbers: Its number, and those that other supervisors had given it.
        watched: The batches of others that it waits for.
    """

    __slots__ = (
        "asks_only",
        "backlog",
        "has_left",
        "is_worker",
        "needs",
        "number",
        "numbers",
        "peer",
        "pid",
        "tasks",
        "uncommitted",
        "unread",
        "waits_beside",
        "watched",
    )

    def __init__(self, number: int, peer: Peer, pid: int, is_worker: bool, asks_only: bool) -> None:
        self.number = number
        self.asks_only = asks_only
        self.numbers = {number}
        self.pid = pid
        self.is_worker = is_worker
        self.has_left = False
        self.peer = peer
        self.tasks: dict[int, Task] = {}
        self.uncommitted: list[int] = []
        self.unread = 0
        self.backlog: deque[tuple[Kind, int]] = deque()
        self.needs: set[int] = set()
        self.waits_beside: int | None = None
        self.watched: set[int] = set()
