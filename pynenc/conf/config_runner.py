"""The configuration of processes."""

from __future__ import annotations

from typing import ClassVar

from pynenc.conf.field import optional_integer, seconds
from pynenc.conf.sources import Config


class ConfigRunner(Config):
    """How the supervisor and the workers are run."""

    section: ClassVar[str] = "runner"

    worker_blas_threads = optional_integer(
        "Threads that BLAS and OpenMP libraries may use in each worker. Default: the CPUs divided by the workers."
    )
    spare_workers = optional_integer(
        "How many more workers there may be while calls only wait for other calls. Default: as many as num_workers.",
        least=0,
    )
    start_timeout_s = seconds(30.0, "Seconds that the supervisor may take to start.", least=0.1)
