# SPDX-License-Identifier: Apache-2.0
"""The program that counts, on its device."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from towpath.closeable import Closeable
from towpath.datapath.attach.places import Places
from towpath.datapath.maps.pins import held
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.hooks import Tc
from towpath.kernel.bpf.maps import Map
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.interfaces import device_index

if TYPE_CHECKING:
    from pathlib import Path

MAPS = ("wanted", "counted")
LINKS, PLACE = "links", "ingress"


class PacketCounter(Closeable):
    """Counts packets on a device, also after this is closed; the next one goes on counting.

    KernelError: there is no such device, or something else has ``pins``.
    """

    def __init__(self, device: str, pins: Path) -> None:
        index = device_index(device)
        self.pins = pins
        with ExitStack() as undo:
            undo.enter_context(held(pins))
            self._object = undo.enter_context(BpfObject.packaged("packets"))
            pinned = [name for name in MAPS if (pins / name).exists()]
            for name in pinned:
                self._object.reuse(name, undo.enter_context(Map.from_pin(pins / name)))
            self._object.load()
            for name in MAPS:
                if name not in pinned:
                    self._object.maps[name].pin(pins / name)
            self._attach(index)
            self._undo = undo.pop_all()

    def _attach(self, index: int) -> None:
        # Where an earlier agent's program is, no packet goes by uncounted: it is replaced there.
        places = Places(self.pins / LINKS)
        places.take(PLACE, self._object.programs["packets_count"], Tc(index, "ingress"))
        places.close()

    def count_ports(self, first: int, last: int) -> None:
        """Count packets to these ports from now on."""
        record = np.zeros((), self._object.maps["wanted"].value_dtype)
        record["first"], record["last"] = first, last
        self._object.maps["wanted"].update(0, record)

    def packets(self) -> int:
        """Return how many packets have been counted."""
        return int(self._object.maps["counted"].lookup(0).sum())

    def detach(self) -> None:
        """Take it out of the kernel."""
        detach(self.pins)

    def close(self) -> None:
        """Let go of it: it counts on."""
        self._undo.close()


def detach(pins: Path) -> None:
    """Take out of the kernel what is pinned."""
    Places(pins / LINKS).drop(PLACE)
    remove_pins(pins)
