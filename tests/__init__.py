from __future__ import annotations

import os

_PARTS = int(os.environ.get("EXAMPLES_DIVIDED_BY", "1"))


def examples(count: int) -> int:
    """How many examples to try: fewer where the same tests run on another Python already, since no rule depends on that."""
    return max(1, count // _PARTS)
