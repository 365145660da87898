"""The configuration of the state backend."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pynenc.conf.field import choice, optional_duration, optional_size, seconds
from pynenc.conf.sources import Config


class Durability(StrEnum):
    """What a commit survives."""

    NORMAL = "NORMAL"
    """The death of any process."""
    FULL = "FULL"
    """The loss of power, too; each commit waits for the disk."""


class ConfigStateBackend(Config):
    """How invocations are stored."""

    section: ClassVar[str] = "state_backend"

    durability = choice(
        Durability.NORMAL,
        "NORMAL survives the death of any process, FULL also the loss of power; it waits for the disk.",
    )
    disk_timeout_s = seconds(
        60.0,
        "Seconds for which a database that takes no commit (disk full, locked by another program) is tried again, while calls and "
        "results wait. Then the supervisor ends with an error.",
    )
    retention = optional_duration(
        "How long calls are kept after they have ended, with their arguments, results and histories. None keeps them until "
        "`max_state_size` is reached."
    )
    max_state_size = optional_size(
        10 << 30,
        "How large the database, its log and the large results beside it may be together. Beyond it the calls that are final are "
        "forgotten, those first that were made first. None lets it grow.",
        least=1 << 20,
    )
