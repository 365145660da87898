"""Event loops of a worker, each in a thread of its own.

A coroutine that blocks its loop, by `.result` in place of `await`, has the loop turn from inside, so that the others go on. They
run on top of it on the same stack. So that this does not grow without end, a loop with many such turns begins nothing
new; another one does.

`SystemExit` and `KeyboardInterrupt` of what a coroutine has started beside itself (child tasks, callbacks) asyncio lets through the
whole loop. The call to which that belongs ends with it, as under `asyncio.run`; the loop goes on with the others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from pynenc import context
from pynenc.worker.forks import end_child

Waited = TypeVar("Waited")

MAX_TURNS = 20
"""With so many turns inside of each other a loop begins nothing new."""

TURN_FRAMES = 100
"""So many levels of the stack may lie between two turns, one inside of the other."""

STACK_BYTES = 64 * 1024 * 1024
"""The stack of a loop's thread; only what is used takes memory."""

RUNS_CALLBACK = asyncio.Handle._run.__code__
"""What runs each step of a task and each callback in an event loop that is written in Python."""

_limit_lock = threading.Lock()


class EventLoop:
    """An event loop and its thread.

    Args:
        send: Takes what is shipped from the loop; called once in a turn.

    Attributes:
        loop: The loop itself.
        thread: The number of its thread.
        turns: How many turns of it lie inside of each other.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self.loop = asyncio.new_event_loop()
        self.turns = 0
        self._send = send
        self._frames: list[bytes] = []
        usual = threading.stack_size(STACK_BYTES)
        thread = threading.Thread(target=self._run, name="pynenc-loop", daemon=True)
        thread.start()
        threading.stack_size(usual)
        assert thread.ident is not None
        self.thread = thread.ident

    @property
    def takes_more(self) -> bool:
        """Whether new coroutines are to begin here."""
        return self.turns < MAX_TURNS

    def ship(self, frame: bytes) -> None:
        """Send something at the end of this turn, together with what else there is by then."""
        self._frames.append(frame)
        if len(self._frames) == 1:
            self.loop.call_soon(self._ship)

    def block(self, wait: Callable[[], Waited], gives_up: Callable[[], bool]) -> Waited:
        """Wait in one of the coroutines, while the loop turns.

        Args:
            wait: What waits; it runs in another thread.
            gives_up: Looked at in between; when it says so, nobody waits any more.

        Raises:
            CancelledError: It did.
        """
        waiting: asyncio.Future[Waited] = self.loop.create_future()

        def wait_and_tell() -> None:
            try:
                told = partial(waiting.set_result, wait())
            except BaseException as error:  # it is raised where somebody waits
                told = partial(waiting.set_exception, error)
            self.loop.call_soon_threadsafe(lambda: None if waiting.done() else told())

        threading.Thread(target=wait_and_tell, name="pynenc-wait", daemon=True).start()
        self.turn_until(lambda: waiting.done() or gives_up())
        if waiting.done():
            return waiting.result()
        waiting.cancel()
        raise asyncio.CancelledError

    def turn_until(self, is_over: Callable[[], bool]) -> None:
        """Have the loop do its work from inside of one of its coroutines."""
        loop: Any = self.loop
        if not hasattr(loop, "_run_once") or not hasattr(loop, "_ready"):
            raise RuntimeError(
                f"a blocking wait would hold up every call of this worker, whose event loop is a {type(loop).__qualname__}: "
                "write `await invocation` instead"
            )
        running = asyncio.current_task(loop)
        if running is not None:
            asyncio.tasks._leave_task(loop, running)
        left = len(loop._ready)
        sys.setrecursionlimit(
            sys.getrecursionlimit() + TURN_FRAMES
        )  # What runs on top finds as much room as it would below.
        self.turns += 1
        try:
            while not is_over():
                try:
                    loop._run_once()
                except (SystemExit, KeyboardInterrupt) as error:
                    self._go_on_after(error)
                # A coroutine on top may have called `stop`, which is no business of the one that waits.
                loop._stopping = False
        finally:
            self.turns -= 1
            _change_recursion_limit(-TURN_FRAMES)
            # The turn that this interrupted counts on what was there.
            for _ in range(left - len(loop._ready)):
                loop.call_soon(_nothing)
            if running is not None:
                asyncio.tasks._enter_task(loop, running)

    def after_fork_in_child(self) -> None:
        """A coroutine has forked. Its loop, which has all the others too, shares its selector with the parent's."""
        loop: Any = self.loop
        if hasattr(loop, "_ready"):
            loop._ready = _NothingToDo(asyncio.current_task(loop))

    def _ship(self) -> None:
        frames, self._frames = self._frames, []
        self._send(b"".join(frames))

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            while True:
                try:
                    self.loop.run_forever()  # It returns when a coroutine has called `stop`.
                except (SystemExit, KeyboardInterrupt) as error:
                    self._go_on_after(error)
        except BaseException as error:  # a coroutine has closed the loop, or broken it in another way
            end_child(error)
            traceback.print_exc()
        # Without this thread its calls would never end: with the process they are counted as lost.
        os._exit(1)

    def _go_on_after(self, error: BaseException) -> None:
        """Something beside the calls' own coroutines has raised what would end a program."""
        end_child(error)
        call = _take_call(error)
        if call is None or not call.end_with(error):
            logging.getLogger("pynenc").error(
                "%s in an event loop of a worker, of no call that still runs; the loop goes on",
                type(error).__name__,
                exc_info=error,
            )


class _NothingToDo:
    """Stands in a forked child where an event loop looks for what to do next: it ends there, before anything of others goes on."""

    def __init__(self, forked: asyncio.Task[Any] | None) -> None:
        self._forked = forked

    def append(self, handle: object) -> None:
        """It will not be done."""

    def popleft(self) -> None:
        self._end()

    def __len__(self) -> int:
        self._end()
        return 0

    def _end(self) -> None:
        forked = self._forked
        if forked is None or forked.cancelled():
            end_child()
        elif forked.done():
            end_child(forked.exception())
        else:
            end_child(
                RuntimeError(
                    "a child process that a coroutine forked has awaited something, but the event loop is its parent's: "
                    "end it with os._exit, or run a loop of its own with asyncio.run"
                )
            )


def _take_call(error: BaseException) -> Any:
    """The call to which the code belongs that has raised this through its event loop; None when that cannot be told.

    Tasks and callbacks run in the context in which they were made. The frames of the loop are left out of the traceback.
    """
    found = error.__traceback__
    while found is not None and found.tb_frame.f_code is not RUNS_CALLBACK:
        found = found.tb_next
    if found is None:
        return None
    error.__traceback__ = found
    frame: FrameType = found.tb_frame
    return frame.f_locals["self"]._context.get(context.concurrent_call)


def _change_recursion_limit(by: int) -> None:
    with _limit_lock:
        sys.setrecursionlimit(sys.getrecursionlimit() + by)


def _nothing() -> None:
    pass
