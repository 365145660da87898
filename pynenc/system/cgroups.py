"""Where the control groups of this process say what it may use; versions 1 and 2."""

from __future__ import annotations

import os

ROOT = "/sys/fs/cgroup"
"""Where cgroups are mounted."""

OWN = "/proc/self/cgroup"
"""The file that names the cgroups of this process."""


def places_of(controller: str, root: str, own_cgroups: str) -> list[str]:
    """The directories of a controller from this process's cgroups up to the root; some of them may not exist.

    Args:
        controller: Its name in version 1, as in `cpu` or `memory`.
        root: Where cgroups are mounted.
        own_cgroups: The file that names the cgroups of this process.
    """
    places: list[str] = []
    for line in read(own_cgroups).splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        controllers, path = parts[1].split(","), parts[2]
        if controllers == [""]:
            mounts = [root, os.path.join(root, "unified")]
        elif controller in controllers:
            mounts = [os.path.join(root, controller), os.path.join(root, parts[1])]
        else:
            continue
        for mount in mounts:
            names = [name for name in path.split("/") if name]
            # In a container the path may name a place that is mounted as the root.
            upwards = [os.path.join(mount, *names[:depth]) for depth in range(len(names), -1, -1)]
            places += [place for place in upwards if place not in places]
    return places


def read(*path: str) -> str:
    """What a file of the kernel's says; nothing when it is not there."""
    try:
        with open(os.path.join(*path)) as file:
            return file.read()
    except OSError:
        return ""
