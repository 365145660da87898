"""How many processors this process may really use."""

from __future__ import annotations

import math
import os

from pynenc.system.cgroups import OWN, ROOT, places_of, read

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
)


def usable_cpus(cgroup_root: str = ROOT, own_cgroups: str = OWN) -> int:
    """The processors that affinity and cgroup quotas (v1 and v2) leave to this process; at least one.

    Args:
        cgroup_root: Where cgroups are mounted.
        own_cgroups: The file that names the cgroups of this process.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup_root, own_cgroups)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def thread_caps(workers: int, blas_threads: int | None, cpus: int) -> dict[str, str]:
    """Environment variables that keep numeric libraries from starting a thread per processor in every worker.

    Variables that the user has set are left alone.

    >>> thread_caps(workers=2, blas_threads=3, cpus=4).get("OMP_NUM_THREADS", "3")
    '3'
    """
    threads = blas_threads or max(1, cpus // max(1, workers))
    return {name: str(threads) for name in THREAD_VARIABLES if name not in os.environ}


def _quota(root: str, own_cgroups: str) -> float | None:
    """The smallest quota on the way from this process's cgroups to the root, in processors."""
    places = places_of("cpu", root, own_cgroups)
    return min((quota for place in places if (quota := _quota_at(place)) is not None), default=None)


def _quota_at(place: str) -> float | None:
    fields = read(place, "cpu.max").split()
    if not fields:
        fields = [read(place, "cpu.cfs_quota_us").strip(), read(place, "cpu.cfs_period_us").strip()]
    try:
        quota, period = float(fields[0]), float(fields[1])
    except (ValueError, IndexError):
        return None  # "max", "-1" with nothing beside it, or no such controller here.
    return quota / period if quota > 0 and period > 0 else None
