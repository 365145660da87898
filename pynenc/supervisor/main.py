"""The supervisor process begins here: the fork server first, since it takes as long to start as all the rest."""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any, NoReturn

from pynenc.supervisor.fork_server import ForkServerProcess
from pynenc.system.boot import all_is_imported
from pynenc.system.descriptors import open_private
from pynenc.system.lock import FileLock

WORKERS_END_S = 10.0
"""How long workers of a supervisor that was killed may take to be gone; they are killed with it."""


def main(settings: dict[str, Any]) -> None:
    """Start the fork server, then serve. What serving needs is imported while the fork server starts."""
    # The fork server and its workers hold it as long as one of them lives: nothing runs twice at the same time.
    try:
        _print_to(settings["log"])
        workers_lock = FileLock(settings["workers_lock"])
        if not workers_lock.acquire_within(WORKERS_END_S):
            _tell_and_end(settings["ready_fd"], _who_still_runs(settings["workers_lock"]), is_hidden=True)
        workers_lock.sign(f"{os.getpid()}")
        fork_server = ForkServerProcess(settings, workers_lock.fileno())
    except OSError as error:
        advice = ": raise the limit of open files (ulimit -n)" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
        _tell_and_end(settings["ready_fd"], f"{error}{advice}")
    os.umask(0o077)  # Of this process alone: tasks make files as their users want them.
    from pynenc.supervisor.service import serve

    all_is_imported()
    serve(settings, fork_server)


def _print_to(log: str | None) -> None:
    """Print to a file from now on, if there is one: the terminal of whoever started this may go away, or wait for its end."""
    if log is not None:
        output = open_private(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)


def _who_still_runs(workers_lock: str) -> str:
    """What a client is told when another supervisor, or its workers, are there and nobody can find it."""
    with open(workers_lock) as file:
        signature = file.read()
    who = f"supervisor of this app and state directory (pid {signature})" if signature else "supervisor of this app"
    return (
        f"the {who}, or workers of it, are still there, but the socket is not that leads to it. While they run nothing else "
        "may, so end them; on another machine or in another container, set state_dir (PYNENC__STATE_DIR) to a directory of its own"
    )


def _tell_and_end(ready_fd: int, why: str, is_hidden: bool = False) -> NoReturn:
    """Tell the launching client why there is nothing to serve with; perhaps that another supervisor lives, which it missed."""
    with open(ready_fd, "w") as ready:
        ready.write(json.dumps({"error": why, "is_hidden": is_hidden}))
    sys.exit(1)
