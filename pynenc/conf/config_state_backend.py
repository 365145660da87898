"""The configuration of the state backend."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pynenc.conf.field import choice
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
