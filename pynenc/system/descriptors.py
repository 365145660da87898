"""How many files this process may have open."""

from __future__ import annotations

import contextlib
import resource

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
