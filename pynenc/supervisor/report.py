"""What the supervisor says when it is asked where calls stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pynenc.supervisor.blobs import Blobs
from pynenc.supervisor.measuring import Measuring
from pynenc.supervisor.orchestrator import Orchestrator
from pynenc.supervisor.pool import Pool
from pynenc.supervisor.refusals import Refusals
from pynenc.supervisor.task import Task


class Report:
    """Looks at the orchestrator's state and at the workers' slots.

    Args:
        orchestrator: Knows who holds which calls.
        pool: The workers.
        tasks: By their numbers.
        clients: By their numbers.
        refusals: Counts the connections that were closed because of what they sent.
        measuring: Reads the workers' memory.
        blobs: Knows who refers to which.
    """

    def __init__(
        self,
        orchestrator: Orchestrator,
        pool: Pool,
        tasks: Mapping[int, Task],
        clients: Mapping[int, object],
        refusals: Refusals,
        measuring: Measuring,
        blobs: Blobs,
    ) -> None:
        self._orchestrator = orchestrator
        self._pool = pool
        self._tasks = tasks
        self._clients = clients
        self._refusals = refusals
        self._measuring = measuring
        self._blobs = blobs

    def all(self) -> dict[str, Any]:
        """What the supervisor does just now, for `pynenc status` and the monitor."""
        import os

        workers = []
        for number, worker in self._pool.workers.items():
            if not worker.pid:
                continue  # It is being forked. Whoever signals the pids that are told here must not signal pid 0, its own group.
            held = self._orchestrator.held_by(number)
            at = worker.slot.position
            running = next((one for one in held if worker.concurrent or one.position <= at < one.end), None)
            workers.append(
                {
                    "worker": number,
                    "pid": worker.pid,
                    "concurrent": worker.concurrent,
                    "running": self._tasks[running.calls.task].task_id if running else None,
                    "memory_bytes": self._measuring.read(worker),
                    "leased": sum(one.end - one.position for one in held),
                }
            )
        return {
            "pid": os.getpid(),
            "fork_server": self._pool.fork_server_pid,
            "memory_limit_bytes": self._measuring.limits.memory_bytes or None,
            "persistent": self._pool.persistent,
            "clients": len({id(client) for client in self._clients.values()}),
            "ready": self._orchestrator.ready,
            "unfinished": sum(batch.unfinished for batch in self._orchestrator.batches.values()),
            "refused": self._refusals.count,
            "workers": workers,
            "blobs": self._blobs.report(),
        }

    def status_of(self, batch: int, index: int) -> str:
        for number, concurrent in self._orchestrator.concurrent.items():
            if (position := concurrent.position_of(batch, index)) is not None:
                if position in concurrent.waiting:
                    return "PAUSED"
                return "PENDING" if position > self._pool.position_of(number) else "RUNNING"
        for number, leases in self._orchestrator.workers.items():
            for leased, _ in leases.paused:
                if leased.calls.batch == batch and leased.calls.first == index:
                    return "PAUSED"
            for leased in leases.outstanding:
                if leased.calls.batch == batch and leased.calls.first <= index < leased.calls.stop:
                    position = leased.position + index - leased.calls.first
                    if position > self._pool.position_of(number):
                        return "PENDING"
                    return "RESUMED" if position == leases.resumed else "RUNNING"
        unfinished = self._orchestrator.batches.get(batch)
        if unfinished is None:
            return "UNKNOWN"
        if index in unfinished.waiting:
            return "RETRY"
        if any(one.batch == batch and one.first <= index < one.stop for one in self._orchestrator.keys.ranges()):
            return "CONCURRENCY_CONTROLLED"
        return "REROUTED" if unfinished.rerouted or index in unfinished.losses else "REGISTERED"

    def counts_of(self, batches: set[int]) -> dict[str, int]:
        pending = running = paused = 0
        for number, leases in self._orchestrator.workers.items():
            position = self._pool.position_of(number)
            paused += sum(leased.calls.batch in batches for leased, _ in leases.paused)
            for leased in leases.outstanding:
                if leased.calls.batch in batches:
                    begun = min(max(position + 1, leased.position), leased.end)
                    running += begun - leased.position
                    pending += leased.end - begun
        for number, concurrent in self._orchestrator.concurrent.items():
            position = self._pool.position_of(number)
            for at, leased in concurrent.held.items():
                if leased.calls.batch in batches:
                    paused += at in concurrent.waiting
                    pending += at > position
                    running += at <= position and at not in concurrent.waiting
        controlled = sum(one.stop - one.first for one in self._orchestrator.keys.ranges() if one.batch in batches)
        return {"PENDING": pending, "RUNNING": running, "PAUSED": paused, "CONCURRENCY_CONTROLLED": controlled}
