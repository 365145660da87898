"""Done callbacks when nobody waits: a helper thread waits on their behalf, and ends when none is left."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pynenc.execution import call_back
from pynenc.runner import Submission


class CallbackThread:
    """Looks after the callbacks of one client.

    Args:
        wait: Waits until callbacks of some of these submissions have been called.
    """

    def __init__(self, wait: Callable[[list[Submission]], None]) -> None:
        self._wait = wait
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

    def end(self) -> None:
        """Wait for the thread; its connection is closed already."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._waiting = [one for one in self._waiting if one.callbacks]
                if not self._waiting:
                    self._thread = None
                    return
                waiting = list(self._waiting)
            self._wait(waiting)


def call_all(ready: list[Callable[[], object]]) -> None:
    """Call what can be called, and forget it; several threads may be at it."""
    while ready:
        try:
            callback = ready.pop(0)
        except IndexError:
            return  # Another thread took it.
        call_back(callback)
