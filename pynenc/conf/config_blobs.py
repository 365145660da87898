"""The configuration of large arguments and results."""

from __future__ import annotations

from typing import ClassVar

from pynenc.conf.field import integer, number, optional_integer
from pynenc.conf.sources import Config


class ConfigBlobs(Config):
    """How large arguments and results travel."""

    section: ClassVar[str] = "blobs"

    threshold_bytes = integer(
        256 << 10,
        "Buffers (arrays, tables, bytes) of this size and more go through shared memory; smaller ones are pickled.",
        least=4096,
    )
    memory_share = number(
        0.3,
        "The share of the machine's or the container's memory that they may take; beyond it they lie in files of the state "
        "directory.",
        0.0,
        0.9,
    )
    memory_bytes = optional_integer(
        "Bytes of shared memory that they may take, in the place of the share; 0 puts all into files.", least=0
    )
