"""The run file in the state directory: where the supervisor of an app listens, and the key to it. Only this user can read it."""

from __future__ import annotations

import json
import os

from pynenc.named_tuples import NamedTuple
from pynenc.system.descriptors import open_private


class Address(NamedTuple):
    """Where a supervisor listens, and the key that both sides must know."""

    path: str
    key: bytes


def read(run_file: str) -> Address | None:
    """What a run file says; None when it is not there, or says nothing that can be understood."""
    try:
        with open(run_file) as file:
            fields = json.load(file)
        path, key = fields["address"], bytes.fromhex(fields["key"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return Address(path, key) if isinstance(path, str) else None


def write(run_file: str, address: Address) -> None:
    """Write a run file, all of it or nothing.

    Raises:
        OSError: There is no room, or no state directory.
    """
    fresh = f"{run_file}.{os.getpid()}"
    fd = open_private(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with open(fd, "w") as file:
            json.dump({"address": address.path, "key": address.key.hex()}, file)
        os.replace(fresh, run_file)
    except BaseException:
        os.unlink(fresh)
        raise
