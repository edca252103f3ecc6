# SPDX-License-Identifier: Apache-2.0
"""VLAN tags, which XDP sees in the frame or not at all.

A device that takes tags off the frames that come in (rx-vlan-offload) hands them over beside these,
where no program finds them: what came in a VLAN would be balanced as if it had come in none, and
leave without a tag. So that is switched off for as long as the load balancer is attached.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from towpath.kernel.errors import KernelError
from towpath.kernel.net.offloads import OFF, RX_VLAN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.datapath.program.switches import Switches
    from towpath.kernel.net.devices import Devices, Interface
    from towpath.kernel.net.offloads import Offload

log = logging.getLogger(__name__)

# It says of itself that it takes tags off, but it is its peer that puts them beside frames.
_SAYS_NOTHING = frozenset({"veth"})


class Tags:
    """Keeps tags in the frames of ``devices``, and has ``switches`` remember what was otherwise."""

    def __init__(self, devices: Devices, switches: Switches) -> None:
        self._devices = devices
        self._switches = switches
        self.troubles: tuple[str, ...] = ()
        """Devices whose packets of VLANs are taken for such without a tag."""

    def keep(self, device: Interface) -> None:
        """Keep them in the frames of a device, and of those that it is a bond of.

        KernelError: it can't be done, and there are VLAN devices on it, whose packets would be
        mistaken.
        """
        hidden = self._keep(device)
        trouble = self._trouble(device, hidden)
        if trouble:
            raise KernelError(f"attach to {device.name}", hint=trouble)
        for each in hidden:
            log.warning("%s: packets of VLANs would be taken for such without a tag", each)

    def follow(self, indexes: Iterable[int]) -> None:
        """Keep them in the frames of these devices, as they are now, and of no others.

        Where that can't be done ``troubles`` say so.
        """
        balanced = [each for each in map(self._devices.get, indexes) if each is not None]
        troubles = [self._trouble(each, self._keep(each)) for each in balanced]
        kept = {part.index for each in balanced for part in self._devices.parts(each.index)}
        for offload in RX_VLAN:
            for index in self._switches.where(offload):
                if index not in kept:
                    self._switches.unset(index, offload)
        found = tuple(filter(None, troubles))
        for trouble in found:
            if trouble not in self.troubles:
                log.warning("%s", trouble)
        self.troubles = found

    def _keep(self, device: Interface) -> list[str]:
        """Switch off what takes tags off; what can't be, in words."""
        parts = [each for each in self._devices.parts(device.index) if _says(each)]
        found = (self._switch_off(part, offload) for part in parts for offload in RX_VLAN)
        return list(filter(None, found))

    def _switch_off(self, part: Interface, offload: Offload) -> str:
        try:
            state = offload.state(part.name)
            if not state.on:
                return ""
            if state.fixed:
                return f"{offload} of {part.name} is on and can't be switched off"
            self._switches.set(part.index, offload, OFF)
        except KernelError as error:
            return str(error)
        return ""

    def _trouble(self, device: Interface, hidden: list[str]) -> str:
        """Why packets of VLANs aren't balanced rightly; empty if there are no VLANs."""
        on_it = [each.name for each in self._devices.interfaces if _is_vlan_on(each, device)]
        if not on_it or not hidden:
            return ""
        return (
            f"{', '.join(hidden)}: packets of {', '.join(on_it)} would be balanced as if they had"
            " no tag"
        )


def _says(part: Interface) -> bool:
    return part.kind not in _SAYS_NOTHING


def _is_vlan_on(each: Interface, device: Interface) -> bool:
    return each.vlan is not None and each.lower == device.index
