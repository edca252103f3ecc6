# SPDX-License-Identifier: Apache-2.0
"""Control groups of version 1: which controllers have a hierarchy, and tags of sockets.

Nothing is written: on some kernels the first tag makes sockets forget their cgroup of version 2.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.cgroup import mounts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

TAGGING = ("net_cls", "net_prio")
"""The controllers whose tags are stored in sockets."""
_CONTROLLERS = Path("/proc/cgroups")
_CLASS, _PRIORITIES = "net_cls.classid", "net_prio.ifpriomap"


class Controller(NamedTuple):
    """A controller that this kernel has, and that isn't switched off."""

    name: str
    hierarchy: int
    """The number of its hierarchy of version 1; 0: it has none, and is version 2's."""
    cgroups: int
    """How many there are of it."""
    mounted: tuple[str, ...]
    """Where its hierarchy is to be seen by this process; it may be mounted elsewhere as well."""


class Tag(NamedTuple):
    """A tag that sockets of a cgroup get."""

    controller: str
    cgroup: str
    """Its path."""
    value: str
    """net_cls: the class. net_prio: priorities by device, such as ``eth0 5``."""


def controllers() -> list[Controller]:
    """All of them; none where the kernel knows no version 1."""
    where = [(options.split(","), point) for _, point, options in mounts_of("cgroup")]
    found: list[Controller] = []
    if not _CONTROLLERS.exists():
        return found
    for line in _CONTROLLERS.read_text(encoding="ascii").splitlines():
        if line.startswith("#"):
            continue
        name, hierarchy, cgroups, enabled = line.split()
        if enabled == "1":
            points = tuple(point for options, point in where if name in options)
            found.append(Controller(name, int(hierarchy), int(cgroups), points))
    return found


def tags() -> list[Tag]:
    """The tags other than 0, of hierarchies that are mounted here."""
    found: list[Tag] = []
    for controller in controllers():
        if controller.name in TAGGING:
            for point in controller.mounted[:1]:
                found += _tags(controller.name, point)
    return found


def _tags(controller: str, point: str) -> Iterator[Tag]:
    for directory, _, files in os.walk(point):
        if controller == "net_cls" and _CLASS in files:
            value = Path(directory, _CLASS).read_text(encoding="ascii").strip()
            if value != "0":
                yield Tag(controller, directory, value)
        elif controller == "net_prio" and _PRIORITIES in files:
            rows = Path(directory, _PRIORITIES).read_text().splitlines()
            tagged = [row for row in rows if not row.endswith(" 0")]
            if tagged:
                yield Tag(controller, directory, ", ".join(tagged))
