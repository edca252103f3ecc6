# SPDX-License-Identifier: Apache-2.0
"""What is set inside pods' namespaces: congestion control, and how long packets are.

Whatever a pod's namespace had is noted, and put back. A namespace that can't be found, because
nothing but an open file keeps it, is left as it is.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from towpath.datapath.bandwidth.congestion import BBR, CUBIC, CongestionControl
from towpath.datapath.bandwidth.segments import MOST, Segments, longest
from towpath.kernel.bpf.notes import Notes
from towpath.kernel.errors import KernelError
from towpath.kernel.net import link_state
from towpath.kernel.net.namespaces import namespaces
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from towpath.kernel.net.link_state import Device

CONGESTION, SEGMENTS = "congestion", "segments"
_CONTROLS = {"on": BBR, "off": CUBIC, "host": None}
_AGAIN = 10.0
"""Seconds after which a namespace that wasn't found is looked for again, and all are looked at."""


class Inside:
    """Looks after pods' namespaces. ``pins``: where it is noted what they had. Not thread-safe."""

    def __init__(self, pins: Path | None) -> None:
        self._congestion = CongestionControl(Notes(pins and pins / CONGESTION))
        self._segments = Segments(Notes(pins and pins / SEGMENTS))
        self.homes: dict[int, Path] = {}
        """Where the other ends of pods' devices are, by the devices' indexes."""
        self._looked: tuple[float, frozenset[int]] = (0.0, frozenset())
        self._kept: dict[int, tuple[Path, int, str | None]] = {}
        """What was seen to be so, by the devices' indexes: where, how long packets are, by whom."""
        self._all_at = 0.0

    def sync(
        self,
        devices: Mapping[int, Device],
        rates: Mapping[int, int],
        bbr: str,
        *,
        anew: bool = True,
    ) -> list[str]:
        """Have both as they are to be; what isn't, in words.

        ``rates``: bits a second that pods may send, by their devices' indexes, 0: as many as there
        are. ``bbr``: on, off or host. Not ``anew``: what was seen to be so lately isn't looked at,
        since a pod's limit must not wait for all others' namespaces.
        """
        now = time.monotonic()
        if anew or now >= self._all_at + _AGAIN:
            self._kept, self._all_at = {}, now
        control = _CONTROLS[bbr]
        sizes = {index: longest(rate) if rate else MOST for index, rate in rates.items()}
        if control is None and all(size == MOST for size in sizes.values()) and not self._noted:
            return []
        self._find(devices, rates)
        wanted = {
            index: (self.homes[index], size, control)
            for index, size in sizes.items()
            if index in self.homes
        }
        new = {index: each for index, each in wanted.items() if self._kept.get(index) != each}
        troubles = self._congestion.keep(dict.fromkeys(path for path, *_ in new.values()), control)
        troubles += self._segments.keep(
            {(path, devices[index].lower): size for index, (path, size, _) in new.items()}
        )
        self._kept = {} if troubles else wanted
        lost = sorted(devices[each].name for each in rates.keys() - self.homes.keys())
        if control is not None:
            troubles += [f"{each}: its pod's namespace isn't found, for {control}" for each in lost]
        return troubles

    @property
    def _noted(self) -> bool:
        return self._congestion.noted or self._segments.noted

    def _find(self, devices: Mapping[int, Device], pods: Iterable[int]) -> None:
        """Look for those that aren't known, all together and not too often."""
        wanted = {each for each in pods if each in devices and devices[each].lower_elsewhere}
        self.homes = {
            index: path
            for index, path in self.homes.items()
            if index in wanted and (index in self._kept or path.exists())
        }
        missing = frozenset(wanted - self.homes.keys())
        at, before = self._looked
        now = time.monotonic()
        if not missing or (missing == before and now < at + _AGAIN):
            return
        self._looked = now, missing
        # Most likely it is one in which nothing was found so far.
        known, left = set(self.homes.values()), set(missing)
        for path in sorted(namespaces(), key=known.__contains__):
            if not left:
                return
            with suppress(KernelError), in_netns(path):
                inside = link_state.devices()
                for index in missing:
                    other = inside.get(devices[index].lower)
                    if other is not None and other.lower == index and other.lower_elsewhere:
                        self.homes[index] = path
                        left.discard(index)

    def restore_all(self) -> None:
        """Put back what all namespaces had that are still there."""
        self._congestion.restore_all()
        found = {}
        for path in namespaces() if self._segments.noted else ():
            with suppress(OSError):
                found[str(path.stat().st_ino)] = path
        self._segments.restore_all(found)
