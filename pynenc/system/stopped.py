"""Whether a process is stopped (SIGSTOP, a debugger): it lives, but does nothing until somebody lets it go on."""

from __future__ import annotations

import os


def is_stopped(pid: int) -> bool:
    """Ask the system; a process that is gone is not stopped."""
    if not pid:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except FileNotFoundError:
        return not os.path.exists("/proc/self/stat") and _is_stopped_elsewhere(pid)
    except OSError:
        return False


def _is_stopped_elsewhere(pid: int) -> bool:
    """Where there is no /proc."""
    import psutil

    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False
