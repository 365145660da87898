"""Concurrent tasks: many of their calls run at once in one worker, on an event loop or in threads.

They have workers of their own, so that calls that mostly wait and calls that compute never hold each other up. Such a worker
is given what it may begin at once and nothing beyond that, so there is nothing to cut and nothing to take back. A call
that waits for others leaves its place to another one; its worker has no need to run anything on top of it.
"""

from __future__ import annotations

from pynenc.protocol.extras import key_at
from pynenc.status import InvocationStatus
from pynenc.supervisor.broker import Range
from pynenc.supervisor.events import (
    AddWorker,
    CallsWithdrawn,
    Effect,
    Ended,
    StopCall,
    WorkerPaused,
    WorkerResumed,
)
from pynenc.supervisor.orchestrator.leases import ConcurrentLeases
from pynenc.supervisor.orchestrator.losses import Losses
from pynenc.supervisor.orchestrator.outcomes import MAX_WORKERS, transition


class Concurrent(Losses):
    """The rules about concurrent tasks and their workers."""

    def lease_ready_calls(self) -> list[Effect]:
        """Hand ready calls to workers that have room. Once per turn, after its events."""
        if not self.brokers:
            return super().lease_ready_calls()
        effects: list[Effect] = []
        self._crossed = True
        while self._crossed:  # Calls that come first for their key may be for workers of the other kind.
            self._crossed = False
            effects += self._lease_concurrent_calls() + super().lease_ready_calls()
        return effects

    def call_paused(self, event: WorkerPaused, worker: ConcurrentLeases) -> list[Effect]:
        """One of the calls waits for others: its place and its key are free meanwhile."""
        leased = worker.held.get(event.position)
        if leased is None:
            return []
        effects = self._let_go(event.worker, leased.calls)
        if event.position not in worker.waiting:
            effects.append(transition(leased.calls, InvocationStatus.PAUSED, event.worker))
        worker.wait(leased, event.awaited)
        for number in self._with_dependencies(event.awaited):
            self._put_first(number)
        return effects

    def call_resumed(self, event: WorkerResumed, worker: ConcurrentLeases) -> list[Effect]:
        """What one of the calls waited for is there: it goes on, as soon as its key is free."""
        leased = worker.held.get(event.position)
        if leased is None or event.position not in worker.waiting or not self._hold_again(event.worker, leased.calls):
            return []
        return self._resume_call(event.worker, event.position)

    def _stop_running(self, event: CallsWithdrawn) -> list[Effect]:
        """Have those of the calls stopped that run."""
        effects: list[Effect] = []
        for number, worker in self.concurrent.items():
            for index in range(event.first, event.stop) if worker.held else ():
                position = worker.position_of(event.batch, index)
                if position is not None:
                    self.batches[event.batch].withdrawn[index] = event.why  # Should its worker die.
                    effects += [StopCall(number, position), *self._watch_times()]
        return effects

    def _any_must_end(self) -> bool:
        """Whether a call has a time limit or was cancelled."""
        return any(
            self.tasks[one.calls.task].options.timeout_s or one.calls.first in self.batches[one.calls.batch].withdrawn
            for worker in self.concurrent.values()
            for one in worker.held.values()
        )

    # Leasing.

    def _lease_concurrent_calls(self) -> list[Effect]:
        effects = self._fit_concurrent_workers()
        reserved = -1
        if self.isolated.ready:
            for number, worker in self.concurrent.items():
                if worker.only_waits and self.isolated.ready and self._left(worker) > 0:
                    alone = worker.next_position
                    leased = self._lease_concurrent(number, worker, self.isolated.take(1))
                    worker.alone = alone if leased and alone in worker.held else worker.alone
                    effects += leased
            lasting = [number for number, worker in self.concurrent.items() if self._left(worker) > 0]
            if self.isolated.ready and lasting:
                # It is emptied for them.
                reserved = min(lasting, key=lambda number: sum(self.concurrent[number].running.values()))
        for task, broker in self.brokers.items():
            while broker.ready:
                number, room = self._concurrent_worker_with_room(task, reserved)
                if not room:
                    break
                calls = broker.take(room)
                if self.batches[calls.batch].extras.running and calls.stop > calls.first + 1:
                    broker.put_back(calls.part(calls.first + 1, calls.stop))  # Each of them needs its key.
                    calls = calls.part(calls.first, calls.first + 1)
                effects += self._lease_concurrent(number, self.concurrent[number], calls)
        return effects

    def _lease_concurrent(self, number: int, worker: ConcurrentLeases, calls: Range) -> list[Effect]:
        column = self.batches[calls.batch].extras.running
        if column:
            key = key_at(column, calls.first)
            options = self.tasks[calls.task].options
            free = self.keys.held(key) < options.max_running and not self.keys.resuming.get(key)
            if options.reroute:
                self.keys.block(key, self._order(calls), calls)
                woken = self.keys.wake(key) if free else None
                if woken is None:
                    return []
                if not self.tasks[woken.task].options.concurrency:
                    self._cross(woken)
                    return []
                calls = woken
            elif not free:
                return self._end(calls, Ended.CONTROLLED)
            self.keys.hold(key, self._holder(number, calls), 1)
        position = worker.add(calls)
        return self._leased(number, position, calls)

    def _concurrent_worker_with_room(self, task: int, reserved: int) -> tuple[int, int]:
        """The worker that runs the fewest calls of a task, and how many more it may begin now."""
        running = sum(worker.running.get(task, 0) for worker in self.concurrent.values())
        workers = self._lasting_concurrent_workers()
        fair = -(-(running + self.brokers[task].ready) // max(1, workers))
        most = min(self.tasks[task].options.concurrency, fair)
        number, room = -1, 0
        for candidate, worker in self.concurrent.items():
            here = min(most - worker.running.get(task, 0), self._left(worker))
            if here > room and candidate != reserved and worker.takes_more:
                number, room = candidate, here
        return number, room

    def _fit_concurrent_workers(self) -> list[Effect]:
        """Have as many of these workers as processors are meant to be used, as soon as there are calls for them."""
        ready = self.concurrent_ready
        if not ready:
            return []
        running = sum(sum(worker.running.values()) for worker in self.concurrent.values())
        wanted = min(self._size, ready + running) - self._lasting_concurrent_workers()
        more = max(0, min(wanted, MAX_WORKERS - len(self.concurrent) - self._joining_concurrent))
        self._joining_concurrent += more
        return [AddWorker(concurrent=True)] * more

    def _lasting_concurrent_workers(self) -> int:
        """How many of these workers there are or will be that may be given calls; the others end when they are empty."""
        return sum(self._left(worker) > 0 for worker in self.concurrent.values()) + self._joining_concurrent
