"""What a process prints."""

from __future__ import annotations

import contextlib
import sys


def flush_output() -> None:
    """Let what was printed appear. What cannot be written any more is nobody's fault here."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
