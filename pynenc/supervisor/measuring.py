"""Reading what workers take: the shell's side of the rules about memory, and what is said of it when one died.

A reading costs about ten microseconds per worker. It is made while workers hold calls, when the rules ask for it, and once more
after that: a cluster that has nothing to do reads nothing.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from pynenc.supervisor.events import WorkerLimits, WorkersMeasured
from pynenc.supervisor.loop import Loop
from pynenc.supervisor.pool import Pool, Worker
from pynenc.system.memory import MachineMemory, in_words

EXACT_SHARE = 0.6
"""From this share of the limit on readings have to be exact."""

HIGH_SHARE = 0.8
"""Whoever had this share of all memory when it was killed was probably killed for it."""


class Measuring:
    """Reads the workers' memory and age.

    Args:
        pool: The workers.
        settings: What the launching client decided.

    Attributes:
        limits: What the rules go by; a share of memory has become bytes.
    """

    def __init__(self, pool: Pool, settings: dict[str, Any]) -> None:
        self._pool = pool
        self._machine = MachineMemory()
        self._kills = self._machine.kills()
        self._max_age_s: float = settings["max_worker_age"] or float("inf")
        self._asked = 0
        self._was_short = False
        limit: int | float | None = settings["worker_memory_limit"]
        if isinstance(limit, float):
            limit = int(limit * self._machine.total)
        self.limits = WorkerLimits(limit or 0, settings["memory_check_s"], settings["max_calls_per_worker"] or 0)

    def call_in(self, loop: Loop, seconds: float, callback: Callable[[WorkersMeasured], None]) -> None:
        """Call back with a measurement after some seconds, instead of the one that was asked for before and has not come."""
        self._asked += 1
        asked = self._asked

        def measure() -> None:
            if asked == self._asked:
                callback(self._measure())

        loop.call_in(seconds, measure)

    def read(self, worker: Worker) -> int:
        """What a worker takes now, in bytes."""
        exact_from = EXACT_SHARE * self.limits.memory_bytes if self.limits.memory_bytes else float("inf")
        return worker.memory.read(worker.pid, time.monotonic(), exact_from) if worker.pid else 0

    def _measure(self) -> WorkersMeasured:
        workers = self._pool.workers
        now = time.monotonic()
        used = {number: self.read(worker) for number, worker in workers.items()}
        # In this order: a worker notes the time before the position, so this is never the time of an earlier call.
        running = {number: (worker.slot.position, worker.slot.running_s()) for number, worker in workers.items()}
        aged = frozenset(number for number, worker in workers.items() if now - worker.started > self._max_age_s)
        spare_bytes = self._machine.available() - self._machine.short_below
        self._was_short = spare_bytes < 0
        return WorkersMeasured(used, running, aged, spare_bytes, now)

    # What is said of workers that died.

    def note_death(self, worker: Worker) -> None:
        """See what a death looks like, while that can be seen."""
        if worker.was_ended or signal.SIGKILL.name not in worker.death:
            return
        before, self._kills = self._kills, self._machine.kills()
        if self._kills > before:
            worker.hint = "the kernel has ended a process just then because memory was short"
        elif self._was_short or _peak(worker) > HIGH_SHARE * (self.limits.memory_bytes or self._machine.total):
            worker.hint = "this looks like the kernel ended it because memory was short"

    def of_lost(self, worker: Worker) -> str:
        """What a worker that died had taken, beside what it might, and what that looks like."""
        taken = []
        if worker.memory.used:
            taken.append(f"{in_words(worker.memory.used)} when that was last read")
        if worker.peak_bytes:
            taken.append(f"at most {in_words(worker.peak_bytes)}")
        said = f"it had taken {' and '.join(taken)}" if taken else "what it had taken was not read"
        if self.limits.memory_bytes:
            said += f"; worker_memory_limit is {in_words(self.limits.memory_bytes)}"
        else:
            said += f", of {in_words(self._machine.total)} that there are"
        if worker.hint:
            said += f"; {worker.hint}: have its calls take less, set worker_memory_limit, or run fewer workers (num_workers)"
        return said

    def of_limit(self, worker: Worker) -> str:
        """By how much a worker took more than it may."""
        return (
            f"took {in_words(worker.memory.used)}, more than the {in_words(self.limits.memory_bytes)} that "
            "worker_memory_limit allows"
        )

    def of_shortage(self, worker: Worker) -> str:
        """That there was too little memory, and what a worker had of it."""
        return (
            f"the machine had less than {in_words(self._machine.short_below)} of its {in_words(self._machine.total)} of "
            f"memory left; its worker (pid {worker.pid}), which had taken {in_words(worker.memory.used)}"
        )


def _peak(worker: Worker) -> int:
    return max(worker.memory.used, worker.peak_bytes)
