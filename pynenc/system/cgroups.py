"""Where the control groups of this process say what it may use; versions 1 and 2."""

from __future__ import annotations

from pathlib import Path

ROOT = "/sys/fs/cgroup"
"""Where cgroups are mounted."""

OWN = "/proc/self/cgroup"
"""The file that names the cgroups of this process."""


def places_of(controller: str, root: Path, own_cgroups: Path) -> list[Path]:
    """The directories of a controller from this process's cgroups up to the root; some of them may not exist.

    Args:
        controller: Its name in version 1, as in `cpu` or `memory`.
        root: Where cgroups are mounted.
        own_cgroups: The file that names the cgroups of this process.
    """
    places: list[Path] = []
    for line in read(own_cgroups).splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        controllers, path = parts[1].split(","), parts[2]
        if controllers == [""]:
            mounts = [root, root / "unified"]
        elif controller in controllers:
            mounts = [root / controller, root / parts[1]]
        else:
            continue
        for mount in mounts:
            at = mount / path.lstrip("/")
            # In a container the path may name a place that is mounted as the root.
            places += [place for place in (at, *at.parents, mount) if place not in places]
    return places


def read(path: Path) -> str:
    """What a file of the kernel's says; nothing when it is not there."""
    try:
        return path.read_text()
    except OSError:
        return ""
