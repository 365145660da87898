"""What the rules want to be told later: that a time has come, and what the workers' slots say then. Runs in the supervisor."""

from __future__ import annotations

import time

from pynenc.protocol.slots import SETTLE_S
from pynenc.supervisor.events import (
    CallLater,
    CallsWithdrawn,
    CutSettled,
    CutWorker,
    Looked,
    RetryDue,
    StopsChecked,
    TimesChecked,
)
from pynenc.supervisor.inbox import Inbox
from pynenc.supervisor.loop import Loop
from pynenc.supervisor.measuring import Measuring
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.pool import Pool, Worker


class Timers:
    """Sets timers of the loop, and looks at the workers when they go off.

    Args:
        loop: Has the timers.
        pool: The workers.
        orchestrator: Knows which of them do not move.
        measuring: Reads their memory.
        inbox: Takes events.
    """

    def __init__(self, loop: Loop, pool: Pool, orchestrator: Orchestrator, measuring: Measuring, inbox: Inbox) -> None:
        self._loop = loop
        self._pool = pool
        self._orchestrator = orchestrator
        self._measuring = measuring
        self._inbox = inbox

    def call_later(self, effect: CallLater) -> None:
        """Hand an event back when its time has come."""
        self._loop.call_in(effect.seconds, lambda: self._its_time_came(effect.event))

    def look(self, seconds: float) -> None:
        """Tell where the workers are."""
        self._loop.call_in(seconds, lambda: self._inbox.add(Looked(self._pool.positions())))

    def check_times(self, seconds: float) -> None:
        """Tell for how long the workers' calls have run."""
        self._loop.call_in(seconds, self._check_times)

    def check_stops(self, seconds: float) -> None:
        """Tell which of the workers that do not move are stopped."""
        self._loop.call_in(seconds, self._check_stops)

    def measure(self, seconds: float) -> None:
        """Tell what the workers take."""
        self._measuring.call_in(self._loop, seconds, self._inbox.add)

    def settle_cut(self, cut: CutWorker) -> None:
        """Tell where a worker is when it must have seen a cut that was written just now."""
        worker = self._pool.workers.get(cut.worker)
        if worker is not None:
            self._loop.call_in(SETTLE_S, lambda: self._cut_settled(worker, cut.serial))

    def _its_time_came(self, event: RetryDue | CallsWithdrawn) -> None:
        if isinstance(event, CallsWithdrawn):
            event = event._replace(positions=self._pool.positions())
        self._inbox.add(event)

    def _check_times(self) -> None:
        running = {}
        for number, worker in self._pool.workers.items():
            # In this order: a worker notes the time before the position, so this is never the time of an earlier call.
            running[number] = (worker.slot.position, worker.slot.running_s())
        now = time.monotonic()
        concurrent = [worker for worker in self._pool.workers.values() if worker.concurrent]
        overdue = {worker.number: position for worker in concurrent if (position := worker.slot.overdue(now))}
        self._inbox.add(TimesChecked(running, overdue, now))

    def _check_stops(self) -> None:
        positions = self._pool.positions()
        stopped = frozenset(one for one in self._orchestrator.suspects(positions) if self._pool.is_stopped(one))
        self._inbox.add(StopsChecked(positions, stopped))

    def _cut_settled(self, worker: Worker, serial: int) -> None:
        if worker.number in self._pool.workers:
            self._inbox.add(CutSettled(worker.number, worker.slot.position, serial))
