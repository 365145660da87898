"""The clients of this process, when it ends: by itself, by Ctrl-C, by SIGTERM, or in a child that was forked.

| how it ends | its calls |
| --- | --- |
| by itself, `sys.exit()` or an exception | are acknowledged, and run |
| Ctrl-C that nobody catches, or that ended a wait after which nothing more was called | stop, and are kept |
| SIGTERM, unless the script handles it | stop, and are kept; then it dies of it as it would without pynenc |
| any other way, such as SIGKILL | are run or kept, as `on_client_loss` says |

While calls are stopped the terminal gets one line instead of tracebacks. A second Ctrl-C ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Protocol

from pynenc.exceptions import RunnerError

Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


class Client(Protocol):
    """What a process needs of its clients when it ends."""

    @property
    def is_in_use(self) -> bool:
        """Whether it has calls without outcome, or was interrupted while it connected."""

    @property
    def was_left(self) -> bool:
        """Whether Ctrl-C ended a wait, and nothing was called or waited for since."""

    def close(self) -> None:
        """Have all calls acknowledged, and disconnect."""

    def interrupt(self, in_handler: bool) -> int:
        """Stop its calls; how many are kept."""

    def after_fork_in_child(self) -> None:
        """Forget the parent's connection."""


SAME_S = 0.3
"""What comes so soon is the same SIGTERM: `timeout` sends one to the script, and another one to its process group."""

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_watches = False
_closes = False
_interrupted = False


def register(client: Client) -> None:
    """Have a client end with the process."""
    _clients.add(client)


def watch() -> None:
    """A client is about to connect: see to it that the end of the process is noticed. In workers there is no need to."""
    global _watches
    _close_at_exit()
    if not _watches:
        _watches = True
        sys.excepthook = _instead_of(sys.excepthook)
        threading.excepthook = _instead_in_threads(threading.excepthook)
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)


def _close_at_exit() -> None:
    global _closes
    if _closes:
        return
    import atexit

    _closes = True
    atexit.register(_close_all)
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None and sys.modules["multiprocessing.process"].parent_process() is not None:
        # Its processes leave without what is registered with atexit.
        multiprocessing.Finalize(None, _close_all, exitpriority=0)


def interrupt_all(in_handler: bool = False) -> int:
    """Stop the calls of all clients; how many are kept. From now on Ctrl-C ends the process at once."""
    global _interrupted
    _interrupted = True
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    kept = 0
    for client in list(_clients):
        with contextlib.suppress(RunnerError, OSError):
            kept += client.interrupt(in_handler)
    return kept


def say(what: str, kept: int) -> None:
    """Tell that calls were stopped, in one line."""
    rest = "" if not kept else f"; {kept:,} calls are kept: pynenc resume runs them"
    if kept == 1:
        rest = "; 1 call is kept: pynenc resume runs it"
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"pynenc: {what}{rest}", file=sys.stderr, flush=True)


def _is_in_use() -> bool:
    return any(client.is_in_use for client in list(_clients))


def _instead_of(hook: Hook) -> Hook:
    """What is done with exceptions that nobody caught: a Ctrl-C that stops calls is told of in one line."""

    def uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        # At a prompt, or in a notebook, the process goes on.
        if issubclass(kind, KeyboardInterrupt) and not hasattr(sys, "ps1") and not _interrupted and _is_in_use():
            kept = interrupt_all()
            say("interrupted", kept)
            if hook is sys.__excepthook__:
                return
        hook(kind, error, traceback)

    return uncaught


def _instead_in_threads(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Threads whose waits were ended by Ctrl-C end, too; that is no news."""

    def uncaught(arguments: Any) -> None:
        if not (_interrupted and issubclass(arguments.exc_type, RunnerError)):
            hook(arguments)

    return uncaught


def _terminated(number: int, frame: FrameType | None) -> None:
    """SIGTERM, which the script does not handle: die of it, after its calls were stopped; a second one ends the script at once."""
    began = time.monotonic()

    def again(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - began > SAME_S:
            _die_of(number)

    signal.signal(number, again)
    was_in_use = _is_in_use()
    kept = interrupt_all(in_handler=True)
    if was_in_use:
        say("ended by SIGTERM", kept)
    _die_of(number)


def _die_of(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _close_all() -> None:
    last = getattr(sys, "last_value", None)
    try:
        is_ended_by_it = isinstance(last, KeyboardInterrupt) and not hasattr(sys, "ps1") and _is_in_use()
        if not _interrupted and (is_ended_by_it or any(client.was_left for client in list(_clients))):
            say("interrupted", interrupt_all())
        for client in list(_clients):
            try:
                client.close()
            except OSError as error:  # Such as when the script has closed all descriptors.
                say(f"the supervisor was not told that this script ends: {error}", 0)
    except KeyboardInterrupt:
        say("interrupted", interrupt_all())


def _after_fork_in_child() -> None:
    global _closes
    _closes = False  # What is registered may hold for other ways to end than this process's.
    for client in list(_clients):
        client.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
