"""Done callbacks. Whoever waits calls them; when nobody does, a helper thread waits on their behalf, and ends when none is left."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from pynenc.exceptions import asked_in_handler
from pynenc.execution import call_back
from pynenc.runner import Submission


class Callbacks:
    """The done callbacks of one client.

    Args:
        wait: Waits until callbacks of some of these submissions have been called.

    Attributes:
        has_ended: Whether the client has closed its connection, so that the others are not called any more.
    """

    def __init__(self, wait: Callable[[list[Submission]], None]) -> None:
        self._wait = wait
        self.has_ended = False
        self._lock = threading.RLock()
        self._is_in_use = False
        self._with_outcomes: deque[Submission] = deque()
        self._ready: list[Callable[[], object]] = []
        self._thread: CallbackThread | None = None

    @property
    def are_ready(self) -> bool:
        """Whether some can be called."""
        return bool(self._ready or self._with_outcomes)

    def add(self, submission: Submission, index: int, callback: Callable[[], object]) -> None:
        """Have one called when a call has its outcome."""
        with self._lock:
            if self._is_in_use:
                raise asked_in_handler("added a done callback")
            self._is_in_use = True
            try:
                submission.callbacks = submission.callbacks or []
                submission.callbacks.append((index, callback))
                # Only now: whoever reads the outcome looks for callbacks after it, so one of both sees the other.
                if submission.has_outcome(index):
                    self._ready += submission.take_callbacks()
                else:
                    if self._thread is None:
                        self._thread = CallbackThread(self._wait, lambda: self.has_ended)
                    self._thread.look_after(submission)
            finally:
                self._is_in_use = False
        self.call()

    def outcome_came(self, submission: Submission) -> None:
        """Some of a submission's may be called. This takes no lock: whoever reads may have interrupted its holder."""
        self._with_outcomes.append(submission)

    def give_up(self, submission: Submission) -> None:
        """Call all of a submission's, whose calls will have no outcome."""
        with self._lock:
            self._ready += submission.take_callbacks(everything=True)

    def call(self) -> None:
        """Call what can be called, and forget it; several threads may be at it."""
        while self._with_outcomes:
            with self._lock:
                if self._is_in_use:
                    break  # This is a signal handler that has interrupted whoever is at it, and goes on with the rest.
                self._is_in_use = True
                try:
                    if self._with_outcomes:
                        self._ready += self._with_outcomes[0].take_callbacks()
                        self._with_outcomes.popleft()
                finally:
                    self._is_in_use = False
        ready = self._ready
        while ready:
            try:
                callback = ready.pop(0)
            except IndexError:
                return  # Another thread took it.
            call_back(callback)

    def wait_for_end(self) -> None:
        """Wait for the helper thread; the connection is closed already."""
        if self._thread is not None:
            self._thread.wait_for_end()


class CallbackThread:
    """Looks after the callbacks of one client.

    Args:
        wait: Waits until callbacks of some of these submissions have been called.
        has_ended: Whether nobody is to be called any more.
    """

    def __init__(self, wait: Callable[[list[Submission]], None], has_ended: Callable[[], bool]) -> None:
        self._wait = wait
        self._has_ended = has_ended
        self._waiting: list[Submission] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def look_after(self, submission: Submission) -> None:
        """See to it that the callbacks of a submission are called."""
        with self._lock:
            if not any(one is submission for one in self._waiting):
                self._waiting.append(submission)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pynenc-callbacks", daemon=True)
                self._thread.start()

    def wait_for_end(self) -> None:
        """Wait for the thread; its connection is closed already."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._waiting = [one for one in self._waiting if one.callbacks]
                if not self._waiting or self._has_ended():
                    self._thread = None
                    return
                waiting = list(self._waiting)
            self._wait(waiting)
