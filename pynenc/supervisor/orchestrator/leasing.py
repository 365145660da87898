"""What runs where: ready calls go to workers with room, and what a worker has not begun is taken back for another."""

from __future__ import annotations

from pynenc.protocol.extras import key_at
from pynenc.protocol.messages import MAX_BATCH_CALLS
from pynenc.supervisor.broker import Range
from pynenc.supervisor.events import (
    CutReached,
    CutSettled,
    CutWorker,
    Effect,
    Ended,
    KillWorker,
    LeaseCalls,
    LookAgain,
    Looked,
    MeasureWorkers,
    StopsChecked,
    UncutWorker,
    WatchStops,
    WatchTimes,
)
from pynenc.supervisor.orchestrator.arrivals import Arrivals
from pynenc.supervisor.orchestrator.concurrency import first_stretch, stretches
from pynenc.supervisor.orchestrator.leases import ConcurrentLeases, WorkerLeases
from pynenc.supervisor.orchestrator.state import TaskRules

LOOK_AGAIN_S = 0.002
"""How long a worker is idle before the calls of the others are looked at."""

STOPS_S = 0.25
"""How often it is looked whether workers that have not moved are stopped, while one holds calls that it has not begun."""

SHORT_S = 0.002
"""Work shorter than this is not worth dividing between workers."""

AWAITED = 1 << 20
"""Above every priority that a task can have."""

FILLED = 0.75
"""A worker that holds less than this share of what it may is given more. Were it given a call whenever there is room for one,
each would be a lease of its own."""

FIRST_LOOK_S = 0.02
"""How long after it was idle a cluster's memory is looked at first: by then it is known whether it grows."""

TIMES_S = 0.05
"""How often the running times of calls with a time limit are looked at, at the least."""


class Leasing(Arrivals):
    """The rules about leases and cuts."""

    def lease_ready_calls(self) -> list[Effect]:
        """Hand ready calls to workers that have room, the least loaded first. Once per turn, after its events."""
        effects: list[Effect] = []
        broker = self.broker
        if self._any_waits() or len(self.workers) > self._size:
            effects += self._lease_awaited_calls() + self._fit_workers()
        while broker.ready:
            number, worker = self._worker_with_room()
            if worker is None:
                return effects + (self._look_again() if self._any_waits() else [])
            task = self.tasks[broker.peek().task]
            calls = broker.take(min(self._lease_size(task, worker.load_s), self._left(worker)))
            if self.batches[calls.batch].extras.running:
                effects += self._lease_keyed(number, calls)
            else:
                effects += self._lease(number, worker, calls)
        effects += self._look_again()
        if not self._watching_stops and any(worker.may_hold_unbegun for worker in self.workers.values()):
            self._watching_stops = True
            effects.append(WatchStops(STOPS_S))
        return effects

    def suspects(self, positions: dict[int, int]) -> list[int]:
        """Workers that have not moved for a while and hold calls that they have not begun."""
        return [
            number
            for number, worker in self.workers.items()
            if not worker.paused and worker.seen == positions.get(number) and worker.has_unstarted(worker.seen)
        ]

    def stops_checked(self, event: StopsChecked) -> list[Effect]:
        """What a stopped worker has not begun goes to others; the call that it runs waits until it goes on."""
        self._watching_stops = False
        effects: list[Effect] = []
        for number, worker in self.workers.items():
            worker.seen = event.positions.get(number, worker.seen)
            if number in event.stopped and not worker.paused and worker.has_unstarted(worker.seen):
                effects += self._cut(number, worker, worker.unstarted(worker.seen)[0])
        return effects

    def cut_settled(self, event: CutSettled) -> list[Effect]:
        """What lies behind both the cut and the call that runs will not be run by this worker: queue it again."""
        worker = self.workers.get(event.worker)
        if worker is None or worker.cut is None or event.serial != worker.serial:
            return []
        worker.settled = True
        effects = self._requeue(event.worker, worker.take_since(max(worker.cut[0], event.position + 1)))
        if worker.doomed is not None:
            doomed = worker.doomed[0]
            if event.position != doomed and not worker.is_dying:
                worker.doomed = None  # Its call ended by itself.
            elif worker.cut[0] <= doomed + 1:
                effects += self._kill(event.worker, worker)
        if worker.doomed is None and self._is_shelved(worker, event.position):
            # It had begun this call before the cut was there; it begins no other, so nobody else's is hit.
            worker.doomed = (event.position, Ended.SHELVED)
            effects += self._kill(event.worker, worker)
        if worker.wanted is not None:
            effects += self._cut(event.worker, worker, worker.wanted)
        return effects

    def _is_shelved(self, worker: WorkerLeases, position: int) -> bool:
        leased = worker.leased_at(position)
        if leased is None:
            return False
        index = leased.calls.first + position - leased.position
        return self.batches[leased.calls.batch].withdrawn.get(index) is Ended.SHELVED

    def cut_reached(self, event: CutReached) -> list[Effect]:
        """The worker stands at its cut with empty hands, so it can be leased calls again."""
        worker = self.workers.get(event.worker)
        if worker is None:
            return []
        if worker.paused:
            # The calls that wait need the cut still; what lay in it was taken back when they paused, and what the worker
            # holds now was leased since.
            return []
        effects = self._requeue(event.worker, worker.take_since(event.position))
        worker.uncut()
        return [*effects, UncutWorker(event.worker)]

    def looked(self, event: Looked) -> list[Effect]:
        """A worker idles while another holds calls that it has not begun: take half of them back.

        So are calls that lie behind another while the worker whose call waits for them has nothing to do; and calls for
        which a spare worker would be started. Both only from workers that have not moved since the last look: else these
        are about to begin them.
        """
        self._looking = False
        stuck = {number for number, position in event.positions.items() if self._stood_at.get(number) == position}
        self._stood_at = event.positions
        effects: list[Effect] = []
        for number, position in event.positions.items():
            worker = self.workers.get(number)
            if worker is not None and worker.threads and worker.cut is None:
                start, stop = worker.unstarted(position)
                if start < stop:
                    effects += self._cut(number, worker, start)
        for number, start in self._awaited_behind_others(event.positions).items():
            if number in stuck:
                effects += self._cut(number, self.workers[number], start)
        if effects or self.broker.ready or not self._someone_idles_beside_a_queue():
            return effects
        is_there = self._someone_idles()
        most, victim = 0, -1
        for number, position in event.positions.items():
            worker = self.workers.get(number)
            if worker is None or worker.paused or not (is_there or number in stuck):
                continue
            if (count := self._movable(worker, position)) > most:
                most, victim = count, number
        if victim < 0:
            return []
        longest = self.workers[victim]
        return self._cut(victim, longest, self._start_of_last(longest, (most + 1) // 2))

    def _lease(self, number: int, worker: WorkerLeases, calls: Range) -> list[Effect]:
        task = self.tasks[calls.task]
        position = worker.add(calls, task.call_s or self.lease_s)
        return self._leased(number, position, calls)

    def _leased(self, number: int, position: int, calls: Range) -> list[Effect]:
        effects: list[Effect] = [
            LeaseCalls(number, position, calls.batch, calls.task, calls.first, calls.stop, calls.attempt)
        ]
        if self.tasks[calls.task].options.timeout_s:
            effects += self._watch_times()
        if not self._measuring:
            self._measuring = True
            effects.append(MeasureWorkers(min(self.limits.check_s, FIRST_LOOK_S)))
        return effects

    def _lease_keyed(self, number: int, calls: Range, in_turn: bool = True) -> list[Effect]:
        """Lease the calls that come first for the key of these calls, if it is free; else these wait for it, or end.

        Args:
            number: The worker that has room; one that holds the key already may get them instead.
            calls: Taken from the broker.
            in_turn: Whether others that wait for the key come before them.
        """
        key, stop = first_stretch(self.batches[calls.batch].extras.running, calls.first, calls.stop)
        options = self.tasks[calls.task].options
        if not options.reroute:
            stop = calls.first + 1  # One by one, so that no more of them are in anybody's hands than may run.
        if stop < calls.stop:
            self.broker.put_back(calls.part(stop, calls.stop))
            calls = calls.part(calls.first, stop)
        keys = self.keys
        if not options.reroute:
            return (
                self._hold(key, number, calls)
                if keys.held(key) < options.max_running
                else self._end(calls, Ended.CONTROLLED)
            )
        free = keys.may_hold(key, number, options.max_running)
        if free and not in_turn:
            return self._hold(key, number, calls)
        keys.block(key, self._order(calls), calls)
        if not free:
            # Calls that run side by side hold it themselves.
            with_room = [one for one in keys.holders[key] if one in self.workers and self._has_room(self.workers[one])]
            if not with_room:
                return []
            number = with_room[0]
        return self._lease_blocked(key, number)

    def _lease_blocked(self, key: bytes, number: int) -> list[Effect]:
        """Lease calls that wait for a key to a worker that may hold it: the first of them, and some more if they are short."""
        effects: list[Effect] = []
        worker = self.workers[number]
        while (calls := self.keys.wake(key)) is not None:
            if self.tasks[calls.task].options.concurrency:
                self._cross(calls)
                break
            call_s = self.tasks[calls.task].call_s
            room = int((self.lease_s - worker.load_s) / call_s) if call_s else 0
            stop = calls.first + min(max(room, 0 if effects else 1), self._left(worker))
            if stop < calls.stop:
                left = calls.part(max(stop, calls.first), calls.stop)
                self.keys.block(key, self._order(left), left)
            if stop <= calls.first:
                break
            effects += self._hold(key, number, calls.part(calls.first, min(stop, calls.stop)))
        return effects

    def _cross(self, calls: Range) -> None:
        """Give calls back that others have the key of: those have other options, and run in workers of the other kind."""
        self._queue_back(calls)
        self._crossed = True

    def _hold(self, key: bytes, number: int, calls: Range) -> list[Effect]:
        self.keys.hold(key, number, calls.stop - calls.first)
        return self._lease(number, self.workers[number], calls)

    def _lease_awaited_calls(self) -> list[Effect]:
        """Let workers whose call waits run what it waits for, and nothing else: so no wait can become a deadlock.

        The call on top of each worker runs, or waits for one that is queued, which it then runs itself, or for one that
        lies in another worker, and so on: there is always one that runs, unless calls wait for each other in a circle.
        What has a time limit runs in a worker of its own if there can be one: it may have to be ended with its worker.
        """
        effects: list[Effect] = []
        for number, worker in self.workers.items():
            if not worker.paused or worker.outstanding or worker.resuming or worker.is_dying or not self.broker.ready:
                continue
            if worker.wear.is_unfit:
                continue
            for awaited in self._with_dependencies(worker.awaited[-1]):
                batch = self.batches[awaited]
                task = self.tasks[batch.task]
                if task.options.concurrency:
                    continue  # There are workers for it.
                if task.options.timeout_s and self._can_run_apart():
                    continue
                count = max(1, int(SHORT_S / task.call_s)) if task.call_s else 1
                calls = self.broker.take_of(awaited, batch.source, batch.priority, count)
                if calls is not None:
                    if batch.extras.running:
                        # Nothing else may run on top of a call that waits.
                        effects += self._lease_keyed(number, calls, in_turn=False)
                    else:
                        effects += self._lease(number, worker, calls)
                    if worker.outstanding:
                        break
        return effects

    def _can_run_apart(self) -> bool:
        """Whether there is a worker with nothing to do, or may be one soon."""
        return self._may_add_worker() or self._joining > 0 or self._someone_idles()

    def _put_first(self, number: int) -> None:
        """Calls that others wait for come before all others; the more wait, the earlier."""
        batch = self.batches.get(number)
        if batch is None:
            return
        queued = self._unqueue(number, 0, MAX_BATCH_CALLS)
        batch.priority = max(batch.priority, AWAITED) + 1
        for one in queued:
            self._queue(one._replace(priority=batch.priority))
        column = batch.extras.running
        keys = {key for key, _, _ in stretches(column, 0, batch.count)} if column else set()
        for one in self.keys.remove(keys, number, 0, batch.count):
            self.keys.block(key_at(column, one.first), self._order(one), one)

    def _any_waits(self) -> bool:
        return any(worker.paused or worker.threads for worker in self.workers.values())

    def _with_dependencies(self, awaited: tuple[int, ...]) -> list[int]:
        """These batches and those that their calls wait for, as far as they are unfinished.

        Those are the batches whose results the calls take; and what the calls of concurrent workers wait for, which
        cannot run it themselves.
        """
        found = dict.fromkeys(number for number in awaited if number in self.batches)
        todo = list(found)
        waited_for: dict[int, set[int]] = {}
        for worker in self.concurrent.values():
            for position, numbers in worker.waiting.items():
                waited_for.setdefault(worker.held[position].calls.batch, set()).update(numbers)
        while todo:
            batch = todo.pop()
            for number in {*self.batches[batch].depends_on, *waited_for.get(batch, ())}:
                if number in self.batches and number not in found:
                    found[number] = None
                    todo.append(number)
        return list(found)

    def _cut(self, number: int, worker: WorkerLeases, start: int) -> list[Effect]:
        if worker.paused:
            # Its one cut keeps calls from running that were taken back; a call of a pause is ended without.
            return self._kill(number, worker) if worker.doomed is not None else []
        if worker.cut_at(start):
            return [CutWorker(number, start, worker.next_position, worker.serial)]
        if worker.settled and worker.doomed is not None and worker.cut is not None:
            # The cut that is there lies early enough: look at the worker again.
            worker.cut_again()
            return [CutWorker(number, *worker.cut, worker.serial)]
        return []

    def _kill(self, number: int, worker: WorkerLeases) -> list[Effect]:
        """End a worker; what it does until it is gone still counts."""
        if worker.is_dying:
            return []
        worker.is_dying = True
        return [KillWorker(number)]

    def _watch_times(self) -> list[Effect]:
        if self._watching_times:
            return []
        self._watching_times = True
        return [WatchTimes(TIMES_S)]

    def _lease_size(self, task: TaskRules, load_s: float) -> int:
        if task.call_s is None:
            return 1  # Find out first.
        room = int((self.lease_s - load_s) / task.call_s)
        fair = -(-self.broker.ready // (2 * len(self.workers)))
        return max(1, min(room, fair), int(SHORT_S / task.call_s))

    def _worker_with_room(self) -> tuple[int, WorkerLeases | None]:
        """The least loaded worker that may hold more: some milliseconds of work, and one call beside a long one.

        That one keeps the worker from waiting for its next call; if another worker idles, it takes it over.
        """
        least, number, found = float("inf"), -1, None
        for candidate, worker in self.workers.items():
            if worker.load_s < least and self._has_room(worker):
                least, number, found = worker.load_s, candidate, worker
        return number, found

    def _has_room(self, worker: WorkerLeases) -> bool:
        if worker.cut is not None or worker.paused or worker.threads or worker.is_dying or self._left(worker) <= 0:
            return False
        if self._seats.count and worker.is_idle and not self._seats.has_free(self.workers.values()):
            return False
        return worker.load_s <= FILLED * self.lease_s or not worker.several

    def _left(self, worker: WorkerLeases | ConcurrentLeases) -> int:
        """How many more calls a worker may be given before it is replaced by a fresh one."""
        wear = worker.wear
        if wear.is_full or wear.is_old or wear.is_unfit:
            return 0
        return self.limits.max_calls - wear.calls if self.limits.max_calls else MAX_BATCH_CALLS

    # Looking.

    def _look_again(self) -> list[Effect]:
        """Have the workers looked at if calls may have to be taken back from one."""
        if self._looking:
            return []
        self._looking = any(worker.several for worker in self.workers.values()) and (
            self._someone_idles_beside_a_queue()
            or self._waiting_threads_hold_calls()
            or bool(self._any_waits() and self._awaited_behind_others({}))
        )
        if self._looking:
            return [LookAgain(LOOK_AGAIN_S)]
        self._stood_at = {}
        return []

    def _awaited_behind_others(self, positions: dict[int, int]) -> dict[int, int]:
        """The workers that hold calls behind their own for which another worker waits, with nothing to do; from where on.

        That one would run them at once, or a worker that is added for them.
        """
        holding = [
            (number, worker)
            for number, worker in self.workers.items()
            if worker.several and not worker.paused and not worker.is_dying
        ]
        found: dict[int, int] = {}
        if not holding:
            return found
        for waiting in self.workers.values():
            if not waiting.paused or waiting.outstanding or waiting.resuming or waiting.is_dying:
                continue
            awaited = set(self._with_dependencies(waiting.awaited[-1]))
            for number, worker in holding:
                start = self._first_of(awaited, number, worker, positions.get(number, 0))
                if start is not None:
                    found[number] = min(start, found.get(number, start))
        return found

    def _first_of(self, batches: set[int], number: int, worker: WorkerLeases, position: int) -> int | None:
        """From which position on a worker holds calls of these batches that it has not begun and others could run."""
        start, stop = worker.unstarted(max(position, worker.outstanding[0].position))
        keys_before: set[bytes] = set()
        for leased in worker.outstanding:
            first = max(start, leased.position)
            column = self.batches[leased.calls.batch].extras.running
            key = key_at(column, leased.calls.first) if column else b""
            if leased.calls.batch in batches and first < min(stop, leased.end):
                # A key that it holds for nothing before these calls is free without them.
                holder = number if first == leased.position and key not in keys_before else -1
                if not key or self.keys.may_hold(key, holder, self.tasks[leased.calls.task].options.max_running):
                    return first
            keys_before.add(key)
        return None

    def _someone_idles(self) -> bool:
        return any(worker.is_idle and self._has_room(worker) for worker in self.workers.values())

    def _someone_idles_beside_a_queue(self) -> bool:
        if not (self._someone_idles() or (self._any_waits() and self._may_add_worker())):
            return False
        return any(
            worker.several and not worker.paused and self._movable(worker, worker.outstanding[0].position)
            for worker in self.workers.values()
        )

    def _waiting_threads_hold_calls(self) -> bool:
        return any(worker.threads and worker.several and worker.cut is None for worker in self.workers.values())

    def _movable(self, worker: WorkerLeases, position: int) -> int:
        """How many calls that a worker at `position` has not begun others could run."""
        start, stop = worker.unstarted(position)
        return sum(
            max(0, min(stop, leased.end) - max(start, leased.position))
            for leased in worker.outstanding
            if self._may_run_elsewhere(leased.calls)
        )

    def _start_of_last(self, worker: WorkerLeases, count: int) -> int:
        """The position from which on a worker holds so many calls that others could run."""
        for leased in reversed(worker.outstanding):
            if self._may_run_elsewhere(leased.calls):
                if leased.end - leased.position >= count:
                    return leased.end - count
                count -= leased.end - leased.position
        return worker.outstanding[0].position

    def _may_run_elsewhere(self, calls: Range) -> bool:
        column = self.batches[calls.batch].extras.running
        if not column:
            return True
        return self.keys.may_hold(key_at(column, calls.first), -1, self.tasks[calls.task].options.max_running)
