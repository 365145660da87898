"""How much shared memory blobs may take: a share of what the machine or the container has, and no more than is free."""

from __future__ import annotations

import os

from pynenc.blobs.directory import SHARED_MEMORY, BlobDirectory

KEPT_FREE_BYTES = 1 << 20
"""So much of /dev/shm is left to others."""

CREDIT_PARTS = 16
"""After it has looked what is free, a writer takes this part of it before it looks again."""

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_budget(share: float, memory_bytes: int | None) -> int:
    """How many bytes of shared memory blobs may take.

    Args:
        share: The share of the memory that this process may use.
        memory_bytes: What is said instead of a share.
    """
    return int(share * usable_memory_bytes()) if memory_bytes is None else memory_bytes


def usable_memory_bytes() -> int:
    """The memory of the machine, or of the container if that has less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_LIMITS:
        try:
            with open(path) as file:
                found.append(int(file.read()))
        except (OSError, ValueError):
            continue  # "max", or there is no such controller.
    return min(found)


class Budget:
    """Says whether a blob finds room in shared memory.

    What all processes take together is what lies in the directory. Looking takes a while when that is much, so whoever has
    looked takes a part of what is free as his own for a time. Near the end everybody looks often.
    """

    def __init__(self, directory: BlobDirectory, budget_bytes: int) -> None:
        self._directory = directory
        self._budget_bytes = budget_bytes
        self._credit = 0

    def takes(self, size: int) -> bool:
        """Whether there is room for so many bytes, which are then taken."""
        if size > self._credit:
            free = self.free_bytes()
            if size > free:
                return False
            self._credit = size + (free - size) // CREDIT_PARTS
        self._credit -= size
        return True

    def free_bytes(self) -> int:
        """What is free just now."""
        used = 0
        try:
            with os.scandir(self._directory.memory) as entries:
                for entry in entries:
                    try:
                        used += entry.stat().st_size
                    except FileNotFoundError:
                        continue
            system = os.statvfs(SHARED_MEMORY)
        except OSError:
            return 0
        return min(self._budget_bytes - used, system.f_bavail * system.f_frsize - KEPT_FREE_BYTES)
