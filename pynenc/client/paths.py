"""The files of an app in its state directory."""

from __future__ import annotations

import os

from pynenc.named_tuples import NamedTuple


class Paths(NamedTuple):
    """The files of one app in its state directory."""

    database: str
    start_lock: str
    run_file: str
    log: str
    workers_lock: str


def paths_of(state_dir: str, app_id: str) -> Paths:
    """The files of an app; the app's id is made a safe file name."""
    name = "".join(c if c.isalnum() or c in "-_." else f"%{ord(c):x}" for c in app_id)
    return Paths(*(os.path.join(state_dir, name + ending) for ending in (".db", ".lock", ".run", ".log", ".workers")))
