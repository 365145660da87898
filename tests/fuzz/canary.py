"""A pickle that tells on whoever unpickles it."""

from __future__ import annotations

import os
import pickle

VARIABLE = "PYNENC_TEST_CANARY"
"""Names the file that is made when it is unpickled."""


def sing() -> None:
    """Leave a mark."""
    with open(os.environ[VARIABLE], "a") as file:
        file.write(f"{os.getpid()}\n")


class Canary:
    """Sings when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return sing, ()


PICKLE = pickle.dumps(Canary(), 5)
