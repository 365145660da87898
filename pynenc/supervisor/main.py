"""The supervisor process begins here: the fork server first, since it takes as long to start as all the rest."""

from __future__ import annotations

import errno
import json
import sys
from typing import Any, NoReturn

from pynenc.supervisor.fork_server import ForkServerProcess
from pynenc.system.lock import FileLock

WORKERS_END_S = 10.0
"""How long workers of a supervisor that was killed may take to be gone; they are killed with it."""


def main(settings: dict[str, Any]) -> None:
    """Start the fork server, then serve. What serving needs is imported while the fork server starts."""
    # The fork server and its workers hold it as long as one of them lives: nothing runs twice at the same time.
    try:
        workers_lock = FileLock(settings["workers_lock"])
        workers_lock.acquire_within(WORKERS_END_S)
        fork_server = ForkServerProcess(settings, workers_lock.fileno())
    except OSError as error:
        _tell_and_end(settings["ready_fd"], error)
    from pynenc.supervisor.service import serve

    serve(settings, fork_server)


def _tell_and_end(ready_fd: int, error: OSError) -> NoReturn:
    """Tell the launching client why there is nothing to serve with."""
    advice = ": raise the limit of open files (ulimit -n)" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
    with open(ready_fd, "w") as ready:
        ready.write(json.dumps({"error": f"{error}{advice}"}))
    sys.exit(1)
