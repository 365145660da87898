"""The configuration of the broker."""

from __future__ import annotations

from typing import ClassVar

from pynenc.conf.field import integer, seconds
from pynenc.conf.sources import Config


class ConfigBroker(Config):
    """How ready calls are kept and handed out."""

    section: ClassVar[str] = "broker"

    lease_s = seconds(0.04, "Seconds of work that a worker may hold.", least=0.001)
    queued_bytes = integer(
        64 << 20, "Bytes of queued arguments that stay in memory; beyond them they are read back from the database."
    )
