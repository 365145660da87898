"""The configuration of the orchestrator."""

from __future__ import annotations

from typing import ClassVar

from pynenc.conf.field import integer
from pynenc.conf.sources import Config


class ConfigOrchestrator(Config):
    """How outcomes are delivered."""

    section: ClassVar[str] = "orchestrator"

    client_buffer_bytes = integer(
        16 << 20,
        "Bytes of outcomes that wait in memory for a client that does not read; beyond them they are read back from "
        "the database.",
        least=4096,
    )
