"""Sends that fail with an error when nobody is there any more, also where SIGPIPE would end the program."""

from __future__ import annotations

import socket
import sys

NO_SIGPIPE: int = getattr(socket, "MSG_NOSIGNAL", 0)
"""The flag for each send. Scripts that are filters often have SIGPIPE at its default, which is to die of it."""

_SO_NOSIGPIPE = 0x1022
"""From <sys/socket.h> of macOS, which has an option of the socket in place of the flag."""


def spare_sigpipe(connected: socket.socket) -> None:
    """Have a socket's sends fail with an error on systems that have no flag for it."""
    if sys.platform == "darwin":
        connected.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
