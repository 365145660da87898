"""How much memory there is: the machine's, or what a control group leaves of it; and what a process takes of it."""

from __future__ import annotations

import os
import sys

from pynenc.system.cgroups import OWN, ROOT, places_of, read

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

CONFIRM_S = 30.0
"""How long the difference between the cheap reading of a process and the dear one is taken to stay as it is."""

SHORT_SHARE = 0.02
SHORT_BYTES = 64 << 20
SHORT_MOST_BYTES = 2 << 30
SHORT_MOST_SHARE = 0.1
"""The machine is short of memory when less than this is available: a share of it and some bytes at the least, within bounds."""


class MachineMemory:
    """The memory that this process and its children share with others: the machine's, or that of a container.

    Args:
        cgroup_root: Where cgroups are mounted.
        own_cgroups: The file that names the cgroups of this process.
        proc: Where the kernel tells of the machine.

    Attributes:
        total: Bytes there are, in use or not: the least of what the machine has and what the cgroups allow.
    """

    def __init__(self, cgroup_root: str = ROOT, own_cgroups: str = OWN, proc: str = "/proc") -> None:
        self._proc = proc
        self._places = places_of("memory", cgroup_root, own_cgroups)
        physical = self._physical().get("MemTotal") or _physical_bytes()
        limits = {place: limit for place in self._places if (limit := _limit_at(place)) is not None}
        # The first version says "no limit" by a number that no machine has.
        self._limited = [place for place, limit in limits.items() if limit < physical]
        self.total = min([physical, *(limits[place] for place in self._limited)])
        least = min(max(SHORT_SHARE * self.total, SHORT_BYTES), SHORT_MOST_BYTES)
        self.short_below = int(min(least, SHORT_MOST_SHARE * self.total))

    def available(self) -> int:
        """Bytes that could be taken into use without swapping; what the kernel would give back counts."""
        machine = self._physical().get("MemAvailable")
        return min([self.total if machine is None else machine, *map(_left_at, self._limited)])

    def is_short(self) -> bool:
        """Whether the kernel is about to look for a process that it can end."""
        return self.available() < self.short_below

    def kills(self) -> int:
        """How often the kernel has ended a process because there was no memory, here or in these cgroups."""
        counts = [_number_in(read(self._proc, "vmstat"), "oom_kill")]
        for place in self._places:
            counts.append(_number_in(read(place, "memory.events"), "oom_kill"))
            counts.append(_number_in(read(place, "memory.oom_control"), "oom_kill"))
        return sum(count for count in counts if count is not None)

    def _physical(self) -> dict[str, int]:
        found = {}
        for line in read(self._proc, "meminfo").splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(rest.split()[0]) * 1024
        return found


class ProcessMemory:
    """What one process takes for itself, which is what its end would bring.

    The cheap reading, of pages that belong to no file, costs microseconds. It counts those that a worker still shares with the
    process it was forked from; the dear one, psutil's, does not, and costs milliseconds when the process is large.

    Attributes:
        used: The last reading in bytes; 0 when there was none.
    """

    __slots__ = ("_confirmed", "_pid", "_shared", "used")

    def __init__(self) -> None:
        self.used = 0
        self._pid = 0
        self._shared = 0
        self._confirmed = float("-inf")

    def read(self, pid: int, now: float, dear_from: float) -> int:
        """Read it anew; the last reading when the process is gone.

        Args:
            pid: The process.
            now: Monotonic seconds.
            dear_from: From so many bytes on the reading has to be exact.
        """
        used = _private_bytes(pid)
        if used is not None:
            if used - self._shared >= dear_from and now - self._confirmed >= CONFIRM_S:
                self._confirmed = now
                self._shared = max(0, used - min(used, _unique_bytes(pid) or used))
            self.used = max(0, used - self._shared)
        return self.used


def in_words(size: float) -> str:
    """A number of bytes as people read it.

    >>> in_words(1536), in_words(3 << 30), in_words(250 << 20)
    ('1.5 KiB', '3 GiB', '250 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def _private_bytes(pid: int) -> int | None:
    if not sys.platform.startswith("linux"):
        return _unique_bytes(pid)
    try:
        with open(f"/proc/{pid}/statm", "rb", 0) as statm:
            fields = statm.read().split()
    except OSError:
        return None
    if len(fields) < 3 or fields[1] == b"0":
        return None  # It has ended, and nobody has asked how.
    return (int(fields[1]) - int(fields[2])) * PAGE_BYTES


def _unique_bytes(pid: int) -> int | None:
    import psutil

    try:
        process = psutil.Process(pid)
        try:
            return int(process.memory_full_info().uss)
        except (psutil.AccessDenied, AttributeError):  # Not every system tells.
            return int(process.memory_info().rss)
    except psutil.Error:
        return None


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES


def _limit_at(place: str) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int(read(place, name))
        except ValueError:
            continue  # "max", or no such file.
    return None


def _left_at(place: str) -> int:
    """What a cgroup may still take; what the kernel can give back of its files counts as free."""
    limit, stat = _limit_at(place), read(place, "memory.stat")
    used = read(place, "memory.current") or read(place, "memory.usage_in_bytes")
    if limit is None or not used:
        return sys.maxsize
    names = (
        ("total_inactive_file", "total_active_file")
        if "total_inactive_file " in stat
        else ("inactive_file", "active_file")
    )
    reclaimable = sum(_number_in(stat, name) or 0 for name in names)
    return max(0, limit - max(0, int(used) - reclaimable))


def _number_in(text: str, name: str) -> int | None:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return None
