"""The configuration of processes."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pynenc.conf.field import choice, optional_integer, seconds
from pynenc.conf.sources import Config


class OnClientLoss(StrEnum):
    """What becomes of the calls of a script that was killed. One that ends by itself always leaves its calls to be run."""

    DRAIN = "DRAIN"
    """They are run; when nothing is left, supervisor and workers end."""
    STOP = "STOP"
    """They stop, as by Ctrl-C: what has not run is kept, and `pynenc resume` runs it."""
    STAY = "STAY"
    """They are run, and the supervisor stays as if `pynenc runner start` had started it."""


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
    on_client_loss = choice(
        OnClientLoss.DRAIN,
        "When a script is killed: DRAIN runs its calls and then ends, STOP keeps them for `pynenc resume` and ends, STAY runs "
        "them and stays. What counts is the value with which the supervisor was started.",
    )
