"""End with the parent process, also when that is killed."""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux).

    Elsewhere a closed connection tells the same, a little later: when the process next reads it.

    Args:
        parent: The parent's pid, as the parent knows it. It may have ended already, and then somebody else's child is asking.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # It ended before it was asked for.
        os._exit(1)
