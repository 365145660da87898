"""Open files: how many there may be, which numbers they get, and who may read what they make."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource

FIRST = 3
"""The numbers below are those of the standard input, output and error."""

ENOUGH = 65_536
"""Some systems allow a thousand million, and some programs try each of them when they start."""


def raise_limit() -> int:
    """Raise the soft limit, as far as the hard one allows and to what is enough; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS allows less than it says.
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return ENOUGH if soft == resource.RLIM_INFINITY else soft


def lifted(fd: int) -> int:
    """The same open file under a number that nobody takes for a standard one.

    Where a program has closed those, files get their numbers.
    """
    if fd >= FIRST:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST)
    finally:
        os.close(fd)


def is_open(fd: int) -> bool:
    """Whether a file is open under this number."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def open_private(path: str, flags: int) -> int:
    """Open a file for this user alone, whatever the process's umask takes from one that is made.

    Raises:
        OSError: As `os.open` does.
    """
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    if os.fstat(fd).st_mode & 0o600 != 0o600:
        with contextlib.suppress(OSError):  # It is somebody else's.
            os.fchmod(fd, 0o600)
    return fd
