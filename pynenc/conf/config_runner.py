"""The configuration of processes."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pynenc.conf.field import choice, optional_integer, optional_memory, optional_seconds, seconds
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
    worker_memory_limit = optional_memory(
        "What a worker may take for itself: bytes, a text like `2GiB`, or a share (`0.25`) of the memory that the machine or the "
        "container has. A worker above 80% of it is replaced between two calls; a call that takes its worker beyond it "
        "raises WorkerMemoryError.",
        least=16 << 20,
    )
    memory_check_s = seconds(
        0.1,
        "Seconds between two looks at the memory of workers that run calls; those that grow towards their limit are looked "
        "at more often.",
        least=0.005,
    )
    max_calls_per_worker = optional_integer("After how many calls a worker is replaced by a fresh one.")
    max_worker_age = optional_seconds(
        "Seconds after which a worker is replaced by a fresh one, as soon as it has ended its call."
    )
    on_client_loss = choice(
        OnClientLoss.DRAIN,
        "When a script is killed: DRAIN runs its calls and then ends, STOP keeps them for `pynenc resume` and ends, STAY runs "
        "them and stays. What counts is the value with which the supervisor was started.",
    )
