# SPDX-License-Identifier: Apache-2.0
"""The program's place on its devices, and what a device needs for it.

Each device gets the XDP program and, behind it, the tc program that takes the
packets whose next hop XDP could not resolve. Both are links: where there is a
pin directory they are pinned and outlive the process, and the next process puts
its program in their place without a packet between the two.
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING

import numpy as np

from towpath.datapath.attach.places import Places
from towpath.datapath.program.forwarding import Forwarding
from towpath.kernel.bpf.hooks import Tc, Xdp
from towpath.kernel.net import interfaces

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from towpath.datapath.program.program import LoadedProgram
    from towpath.kernel.bpf.programs import Program
    from towpath.model.settings import Device

_XDP = "xdp-"
"""What the names of the places begin with where packets are balanced."""


class Attachment:
    """The program on ``devices``, which must exist.

    KernelError: one can't be attached to, and what was attached to the others is not
    any more, except what was pinned before.
    """

    def __init__(
        self, program: LoadedProgram, devices: Iterable[Device], pins: Path | None = None
    ) -> None:
        self._program = program
        self._pinned = pins is not None
        self._places = Places(pins / "links" if pins else None)
        self._forwarding = Forwarding()
        if not pins:
            # A script may end without closing what it made.
            atexit.register(self._forwarding.restore)
        self.devices: dict[int, str] = {}
        try:
            for device in devices:
                self._attach(device)
            self.refresh_vlans()
            self._drop_other_devices()
        except BaseException:
            self._give_up()
            raise

    def _attach(self, device: Device) -> None:
        index = interfaces.device_index(device.name)
        self._allow_forwarding(index)
        programs = self._program.object.programs
        # tc first: from its first packet on, XDP may hand packets over.
        self._places.take(f"tc-{index}", programs["towpath_handoff"], Tc(index, "ingress"))
        self._places.take(f"{_XDP}{index}", programs["towpath_lb"], Xdp(index, device.mode))
        self.devices[index] = device.name

    def _allow_forwarding(self, index: int) -> None:
        # The FIB wants it of the device that it is told a packet came in on.
        for name in interfaces.entrances(index):
            self._forwarding.allow(name)

    def _drop_other_devices(self) -> None:
        """Detach from devices that an earlier configuration named."""
        for name in self._places.pinned():
            if int(name.rpartition("-")[2]) not in self.devices:
                self._places.drop(name)

    def replace(self, program: Program | None) -> None:
        """Put another program in the place of the one that balances; None: that one again.

        A device that is gone has no place any more, and is left out. KernelError: a device
        can't have it; then all have what they had.
        """
        wanted = program or self._program.object.programs["towpath_lb"]
        balancing = [place for place in self._places if place.name.startswith(_XDP)]
        self._places.replace(balancing, wanted)

    def refresh_vlans(self) -> None:
        """Tell the program which VLAN devices there are on top of which devices."""
        maps = self._program.maps
        by_tag, by_device = maps["vlan_devices"], maps["egress_devices"]
        found_tags, found_devices = set(), set()
        for upper, lower, vid in interfaces.vlan_devices():
            tag = np.zeros((), by_tag.key_dtype)
            tag["ifindex"], tag["vid"] = lower, vid
            way = np.zeros((), by_device.value_dtype)
            way["ifindex"], way["vlan"] = lower, vid
            by_device.update(upper, way)
            by_tag.update(tag, upper)
            if lower in self.devices:
                # A tagged packet comes in on this one, as far as the FIB is concerned.
                self._forwarding.allow(interfaces.device_name(upper))
            found_tags.add(tag.tobytes())
            found_devices.add(upper)
        for key in [key for key, _ in by_tag.items() if key.tobytes() not in found_tags]:
            by_tag.delete(key, missing_ok=True)
        for key in [key for key, _ in by_device.items() if int(key) not in found_devices]:
            by_device.delete(key, missing_ok=True)

    def detach(self) -> None:
        """Take the program off every device, pinned or not, and leave them as they were."""
        self._places.detach()
        self._restore_forwarding()

    def close(self) -> None:
        """Let go. What isn't pinned is detached, and the devices are as they were."""
        if self._pinned:
            self._places.close()
        else:
            self.detach()
            self._places.close()

    def _give_up(self) -> None:
        """Leave what was there before this object, and no more."""
        self._places.give_up()
        self._restore_forwarding()

    def _restore_forwarding(self) -> None:
        atexit.unregister(self._forwarding.restore)
        self._forwarding.restore()
