"""The rules against models of them, in sequences that nobody has thought of."""

from __future__ import annotations

import os

PARTS = int(os.environ.get("EXAMPLES_DIVIDED_BY", "1"))


def examples(count: int) -> int:
    """How many examples to try: fewer where the same tests run on another Python already, since no rule depends on that."""
    return count // PARTS
