from __future__ import annotations

import os

PARTS = int(os.environ.get("EXAMPLES_DIVIDED_BY", "1"))
"""More than 1 where all tests run on another Python already: then one part of the examples is tried here."""


def examples(count: int) -> int:
    """How many examples to try."""
    return max(1, count // PARTS)
