# SPDX-License-Identifier: Apache-2.0
"""Limits that grow: those of the configuration, or larger ones that a source has needed since.

A table of the kernel's can't be made larger. A larger one is made beside it, filled, and taken by
the programs in one step, which is what an agent does when it starts with other limits: packets go
on meanwhile. So the agent begins anew, in its own process.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.model.rules import needed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from towpath.model import Service
    from towpath.model.settings import Limits

log = logging.getLogger(__name__)

LIMITS = "limits.json"
"""The file's name in the state directory."""
GROWING = {
    "services": 1 << 20,
    "backends": (1 << 20) - 1,
    "sources": 1 << 24,
    "port_pages": 1 << 20,
    "table_slots": 1 << 28,
}
"""Limits that grow, and how large each may be."""
MEBIBYTE = 1 << 20
_BYTES = {"backends": 128, "sources": 64, "port_pages": 1024, "table_slots": 4, "services": 512}
_BYTES_EACH_CPU = {"backends": 32, "services": 128}


class Room:
    """The limits in force. ``path``: where those are noted that have grown."""

    def __init__(self, path: Path, configured: Limits) -> None:
        self._path = path
        noted = _noted(path)
        larger = {name: max(noted.get(name, 0), getattr(configured, name)) for name in GROWING}
        self.limits = replace(configured, **larger)

    def grow(self, short: str, used: Mapping[str, int], most: int) -> str | None:
        """Note limits that have room for what is ``used``, and for half as much more.

        ``short``: the one that was too small. ``most``: MiB that tables may take in all.
        Returns why they can't grow; None: they have, for the next start.
        """
        wanted = {name: used.get(name, 0) * 3 // 2 for name in GROWING}
        new = {
            name: min(GROWING[name], max(need, 2 * getattr(self.limits, name)))
            for name, need in wanted.items()
            if name == short or need > getattr(self.limits, name)
        }
        if getattr(self.limits, short) >= GROWING[short]:
            return f"limits.{short} is as large as it can be"
        limits = replace(self.limits, **new)
        size = kernel_bytes(limits)
        told = ", ".join(f"{name} {number}" for name, number in sorted(new.items()))
        if size > most * MEBIBYTE:
            return (
                f"{told} would take {size // MEBIBYTE} MiB of the kernel's memory;"
                f" allowed: {most} (kubernetes.grow_to)"
            )
        if size > (free := _available()):
            return (
                f"{told} would take {size // MEBIBYTE} MiB of the kernel's memory, beside the"
                f" tables that there are; free: {free // MEBIBYTE}"
            )
        try:
            self._save({name: getattr(limits, name) for name in GROWING})
        except OSError as error:
            return f"{self._path}: {error.strerror}"
        log.warning("limits grow: %s; the agent begins anew with larger tables", told)
        return None

    def _save(self, grown: Mapping[str, int]) -> None:
        new = self._path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(json.dumps(grown))
        new.rename(self._path)


def used_by(services: Collection[Service]) -> dict[str, int]:
    """Return what services need of the limits that grow."""
    return needed(services)


def kernel_bytes(limits: Limits) -> int:
    """Return about how much of the kernel's memory the tables take that grow."""
    cpus = os.cpu_count() or 1
    fixed = sum(int(getattr(limits, name)) * size for name, size in _BYTES.items())
    counters = sum(int(getattr(limits, name)) * size for name, size in _BYTES_EACH_CPU.items())
    return fixed + cpus * counters


def _noted(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text(encoding="ascii"))
        return {name: int(found[name]) for name in GROWING if name in found}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s: %s; limits are those of the configuration", path, error)
        return {}


def _available() -> int:
    """Bytes of memory that could be had; all there is if the kernel doesn't say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 1 << 63
