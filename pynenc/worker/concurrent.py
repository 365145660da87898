"""A worker that runs many calls at once: coroutines on one event loop, other functions in threads.

::

    main thread                          the loop's thread, or one of many
    reads leases ──── begins calls ────▶ runs them, ships what comes out
    has calls stopped that run too long

A call that must stop and does not is the supervisor's business, which ends the worker: the slot tells it which call and when,
also when some code keeps all threads of this process from running.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pynenc import context, execution
from pynenc.blobs.freezing import Freezer
from pynenc.exceptions import ProtocolError, TaskTimeoutError
from pynenc.protocol.messages import (
    MAX_BATCH_CALLS,
    NOT_RETRIABLE,
    Ending,
    Kind,
    Lease,
    Packing,
    number_frame,
    number_from,
)
from pynenc.protocol.slots import POSITION, Slot
from pynenc.serializer import Frozen, leased_arguments
from pynenc.worker.base import BaseWorker, DeclaredTask, Output, directory_of, let_collected_calls_leave
from pynenc.worker.event_loop import EventLoop
from pynenc.worker.forks import end_child
from pynenc.worker.lease import RunningLease, failure_frame, results_frame
from pynenc.worker.waits import Waits

MAX_THREADS = 1 << 16
"""There are as many threads as calls; how many of those there are is the supervisor's business."""

GRACE_S = 0.1
"""How long a coroutine may take for its end; then the call has ended without it."""

SLACK_S = 0.03
"""How much later than this process the supervisor acts."""

ANSWER_S = 0.01
"""So long the supervisor's answer may take before the loop turns meanwhile."""

FOREVER = float("inf")


class Call(RunningLease):
    """One of the calls that run.

    Attributes:
        event_loop: Where its coroutine runs; None for those that run in threads.
        coroutine: What runs it there.
        why: What is to become of it when it was stopped.
        stopped_at: When it was; monotonic seconds.
        has_heard: Whether its coroutine has been told.
        began: When it began or, before that, when it was leased.
        has_begun: Whether it has.
    """

    __slots__ = (
        "_copies",
        "_entry_here",
        "_func",
        "_has_told",
        "_worker",
        "began",
        "coroutine",
        "event_loop",
        "has_begun",
        "has_heard",
        "is_async",
        "stopped_at",
        "timeout_s",
        "waits",
        "why",
    )

    def __init__(
        self, worker: ConcurrentWorker, declared: DeclaredTask, func: Callable[..., Any], lease: Lease, entry: Any
    ) -> None:
        task = declared.task
        super().__init__(task, lease, worker.slot)
        self._copies = declared.copies
        self._worker = worker
        self._func = func
        self._entry_here = entry
        self._has_told = False
        self.is_async = task.is_async
        self.timeout_s = task.conf.timeout or FOREVER
        self.event_loop: EventLoop | None = None
        self.coroutine: asyncio.Task[None] | None = None
        self.why: Ending | None = None
        self.stopped_at = 0.0
        self.has_heard = self.has_begun = False
        self.began = time.monotonic()
        self.waits = Waits(lease.position, worker.send)

    @property
    def index(self) -> int:
        return self.lease.first

    def entry(self) -> Any:
        return self._entry_here

    async def run(self) -> None:
        """Run it on the event loop."""
        self._begin()
        try:
            made = self._made()
            self._succeed(await made if isinstance(made, Coroutine) else made)
        except BaseException as error:  # user code: SystemExit ends the call, not the worker
            self._fail(error)
        finally:
            self._worker.left(self)

    def run_in_thread(self) -> None:
        """Run it in the thread that this is."""
        token = context.concurrent_call.set(self)
        self._begin()
        try:
            self._succeed(self._made())
        except BaseException as error:  # user code, see above
            self._fail(error)
        finally:
            context.concurrent_call.reset(token)
            self._worker.left(self)

    def fail_with(self, raised: execution.Raised, retry_s: float, ending: Ending = Ending.FAILED) -> None:
        """Let this be its outcome, unless it has one."""
        lease = self.lease
        call = (lease.batch, lease.first, self._worker.number, lease.attempt)
        self._tell(failure_frame(call, raised, self.began, time.monotonic(), retry_s, ending))

    def forget_arguments(self) -> None:
        """It has ended. Its coroutine's context refers to it and it to the coroutine, so it stays for a while."""
        self._func, self._entry_here = execution.nothing, ()

    def limit(self) -> float:
        """When it is to be stopped, if it was not yet."""
        return self.began + self.timeout_s if self.why is None else FOREVER

    def must_end(self) -> float:
        """When it must be over."""
        allowed_s = GRACE_S + SLACK_S if self.is_async else SLACK_S
        return (self.limit() if self.why is None else self.stopped_at) + allowed_s

    def stop(self, why: Ending) -> None:
        """Have it end; a thread cannot be ended but with its process."""
        if self.why is None:
            self.why, self.stopped_at = why, time.monotonic()
            if self.is_async:
                self._call_soon(self._cancel)

    def give_up(self) -> None:
        """Say what became of it, although its coroutine has not ended."""
        self.fail_with(*self._stopped(""))

    def end_with(self, error: BaseException) -> bool:
        """Fail with what something has raised that its coroutine has started; False when it had ended before."""
        if self._has_told:
            return False
        if self.why is None:
            self._fail(error)
            self.stop(Ending.FAILED)  # The coroutine itself does not know yet.
        return True

    def start(self) -> None:
        """Begin it on its event loop, in whose thread this is."""
        assert self.event_loop is not None
        token = context.concurrent_call.set(self)
        self.coroutine = _Coroutine(self)  # It takes the context over as it is now.
        context.concurrent_call.reset(token)

    def _call_soon(self, callback: Callable[[], None]) -> None:
        assert self.event_loop is not None
        self.event_loop.loop.call_soon_threadsafe(callback)

    def _begin(self) -> None:
        self.began, self.has_begun = time.monotonic(), True

    def _made(self) -> Any:
        entry = self._entry_here
        if self._copies:
            return self._func(entry)
        return execution.call_frozen(self._func, entry) if type(entry) is Frozen else self._func(*entry)

    def _cancel(self) -> None:
        if not self.has_begun:
            self._call_soon(self._cancel)
        elif self.coroutine is not None:
            self.has_heard = True
            self.coroutine.cancel()

    def _succeed(self, value: Any) -> None:
        end_child()
        lease, frozen, ended = self.lease, [self._worker.freeze(value)], time.monotonic()
        self._tell(results_frame(lease.batch, lease.first, self._worker.number, frozen, self.began, ended, [ended]))

    def _fail(self, error: BaseException) -> None:
        end_child(error)
        raised = execution.describe(error)
        end_child()  # Code of the exception may have forked.
        if isinstance(error, asyncio.CancelledError) and self.why is not None:
            self.fail_with(*self._stopped(raised.traceback))
        else:
            self.fail_with(raised, execution.retry_delay(error, self.task.retriable_exceptions))

    def _stopped(self, traceback: str) -> tuple[execution.Raised, float, Ending]:
        """What becomes of it because it was stopped."""
        task_id, ran_s = self.task_id(), time.monotonic() - self.began
        if self.why == Ending.KILLED:
            message = f"it was cancelled with force after it had run for {ran_s:.3g} s (task {task_id})"
            return execution.Raised("InvocationCancelledError", message, traceback, b""), NOT_RETRIABLE, Ending.KILLED
        message = f"it ran for {ran_s:.3g} s, longer than option timeout of task {task_id} allows; it was cancelled"
        error = TaskTimeoutError(self.invocation_id(), message)
        retry_s = execution.retry_delay(error, self.task.retriable_exceptions)
        return execution.Raised("TaskTimeoutError", message, traceback, b""), retry_s, Ending.FAILED

    def _tell(self, frame: bytes) -> None:
        if not self._has_told:
            self._has_told = True
            self._worker.ship(frame)


class _Coroutine(asyncio.Task[None]):
    """Runs a call. What is cancelled before it begins would never come to tell; user code may cancel all tasks of its loop."""

    def __init__(self, call: Call) -> None:
        assert call.event_loop is not None
        super().__init__(call.run(), loop=call.event_loop.loop)
        self._call = call

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel it, once it has begun."""
        if self._call.has_begun:
            return super().cancel(msg)
        self.get_loop().call_soon(self.cancel, msg)
        return True


class ConcurrentWorker(BaseWorker):
    """Begins each call as it comes."""

    def __init__(self, number: int, connection: socket.socket, slot: Slot, freezer: Freezer) -> None:
        super().__init__(number, connection, slot, freezer)
        self.freeze = freezer.freeze
        self._calls: dict[int, Call] = {}
        self._limited: dict[int, Call] = {}
        self._new: list[Call] = []
        self._is_unfit = False
        self._columns: tuple[int, list[Any]] = (0, [])
        self._send_lock = threading.Lock()
        self._loops: dict[int, EventLoop] = {}
        self._threads: ThreadPoolExecutor | None = None
        context.nested_wait = self._wait
        context.nested_await = self._await

    def run(self) -> None:
        """Begin calls until the supervisor closes the connection."""
        while True:
            until_s = self._look_at_limits()
            if self._new:
                self._start_new()  # Now that the slot tells of them: once they run, this thread may not.
            if self.poll.poll(None if until_s == FOREVER else max(0.0, until_s * 1000)) and not self._read():
                return
            self._forget_common_arguments()

    def send(self, message: bytes) -> None:
        """Send frames."""
        end_child()  # Before the lock, which may be held by a thread that is not here any more.
        let_collected_calls_leave()
        with self._send_lock:
            super().send(message)

    def after_fork_in_child(self) -> None:
        """A call has forked, or a coroutine of it: no other coroutine of this loop goes on here."""
        super().after_fork_in_child()
        here = self._loops.get(threading.get_ident())
        if here is not None:
            here.after_fork_in_child()

    # What the supervisor sends.

    def take_lease(self, lease: Lease) -> None:
        """Begin these calls."""
        declared = self._tasks[lease.task]
        if self._is_unfit or self.clash(declared) is not None:
            if not self._is_unfit:
                self._is_unfit = True
                self.send(number_frame(Kind.UNFIT, lease.position))
            return  # A fresh worker runs them; this one ends when its calls have ended.
        self.slot.numbers[POSITION] = lease.position + lease.stop - lease.first - 1
        try:
            func, entries = self._function(declared, lease), self._entries(lease)
            if len(entries) != lease.stop - lease.first:
                raise ProtocolError(f"{len(entries)} arguments came for {lease.stop - lease.first} calls")
        except BaseException as error:  # importing and unpickling run user code
            end_child(error)
            raised, now = execution.describe(error), time.monotonic()
            for index in range(lease.first, lease.stop):
                call = (lease.batch, index, self.number, lease.attempt)
                self.send(failure_frame(call, raised, now, now, NOT_RETRIABLE))
            return
        for offset, entry in enumerate(entries):
            index, position = lease.first + offset, lease.position + offset
            own = lease._replace(position=position, first=index, stop=index + 1)
            self._begin(Call(self, declared, func, own, entry))

    def take_output(self, output: Output) -> None:
        """Print to these files from now on."""
        output.use()

    def take_answer(self, kind: Kind, body: bytes) -> None:
        """A call may go on, or has to end."""
        call = self._calls.get(number_from(body))
        if call is None:
            return  # It has just ended.
        if kind == Kind.RESUMED:
            call.waits.go_on()
        else:
            self._limited[call.lease.position] = call
            call.stop(Ending.KILLED)

    def _function(self, declared: DeclaredTask, lease: Lease) -> Callable[..., Any]:
        self.load(declared, directory_of(lease, declared))
        return self.function_for(declared, declared.task.func, lease)

    def _entries(self, lease: Lease) -> list[Any]:
        if lease.packing == Packing.ROWS:
            return list(leased_arguments(lease.packing, lease.payload, lease.first, lease.stop))
        if self._columns[0] != lease.batch:
            # They come whole with each lease, so they are unpickled but once.
            self._columns = (lease.batch, list(leased_arguments(lease.packing, lease.payload, 0, MAX_BATCH_CALLS)))
        return self._columns[1][lease.first : lease.stop]

    def _begin(self, call: Call) -> None:
        position = call.lease.position
        self._calls[position] = call
        if call.timeout_s != FOREVER:
            self._limited[position] = call
        self._new.append(call)

    def _look_at_limits(self) -> float:
        """Stop what has run for too long, and tell the supervisor what it must look after; seconds until the next look."""
        now = time.monotonic()
        for position, call in list(self._limited.items()):
            if position not in self._calls:
                self._limited.pop(position, None)
            elif not call.has_begun and call.limit() <= now:
                call.began = now  # It waits because the loop is held up by another one.
            elif call.limit() <= now:
                call.stop(Ending.FAILED)
            elif call.has_heard and call.stopped_at + GRACE_S <= now:
                call.give_up()
                self._limited.pop(position, None)
        limited = list(self._limited.values())
        if not limited:
            self.slot.must_end(0, 0.0, 0.0)
            return FOREVER
        first = min(limited, key=Call.must_end)
        self.slot.must_end(first.lease.position, first.began, first.must_end())
        return (
            min(one.limit() if one.why is None else max(now + GRACE_S / 4, one.stopped_at + GRACE_S) for one in limited)
            - now
        )

    # What calls do, in their threads.

    def left(self, call: Call) -> None:
        """A call has ended."""
        self._calls.pop(call.lease.position, None)
        call.forget_arguments()
        if not self._calls:
            self.let_mappings_go()
        call.waits.end()

    def ship(self, frame: bytes) -> None:
        """Send an outcome; those of one turn of an event loop together."""
        here = self._loops.get(threading.get_ident())
        if here is not None:
            here.ship(frame)
        else:
            self.send(frame)

    def _start_new(self) -> None:
        new, self._new = self._new, []
        if coroutines := [call for call in new if call.is_async]:
            self._start_coroutines(coroutines)
        for call in new:
            if not call.is_async:
                self._threads = self._threads or ThreadPoolExecutor(MAX_THREADS, "pynenc-call")
                self._threads.submit(call.run_in_thread)

    def _start_coroutines(self, new: list[Call]) -> None:
        where = next((one for one in self._loops.values() if one.takes_more), None)
        if where is None:
            where = EventLoop(self.send)
            self._loops[where.thread] = where
        for call in new:
            call.event_loop = where
        where.loop.call_soon_threadsafe(_start, new)

    # How calls wait for others.

    def _wait(self, connection: Any, done: Callable[[], bool], awaited: Sequence[int], timeout: float | None) -> bool:
        call = context.concurrent_call.get()
        connection.read_nowait()
        if done():
            return True
        if call is None:  # It is a thread that no call has started.
            return bool(connection.wait_until(done, timeout))
        call.waits.begin(awaited)
        here = self._loops.get(threading.get_ident())
        try:
            if here is not None:
                return bool(here.block(partial(connection.wait_until, done, timeout), lambda: call.why is not None))
            return bool(connection.wait_until(done, timeout))
        finally:
            self._finish_wait(call, awaited, here)

    def _finish_wait(self, call: Call, awaited: Sequence[int], here: EventLoop | None) -> None:
        if not call.waits.finish(awaited):
            return
        # What would begin in a turn of the loop would keep this call from going on. So there is one only if its key is taken,
        # perhaps by one of those that the loop runs.
        if not call.waits.until_resumed(None if here is None else ANSWER_S) and here is not None:
            here.turn_until(call.waits.resumed(here.loop).done)

    async def _await(self, done: asyncio.Future[None], awaited: Sequence[int]) -> None:
        call = context.concurrent_call.get()
        if call is None or done.done():
            await done
            return
        call.waits.begin(awaited)
        try:
            await done
        finally:
            if call.waits.finish(awaited):
                await call.waits.resumed(asyncio.get_running_loop())


def _start(calls: list[Call]) -> None:
    for call in calls:
        call.start()
