# SPDX-License-Identifier: Apache-2.0
"""The program's place on its devices, and what a device needs for it.

Each device gets the XDP program and, behind it, the tc program that takes the
packets whose next hop XDP could not resolve. Both are links: where there is a
pin directory they are pinned and outlive the process, and the next process puts
its program in their place without a packet between the two.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from towpath.kernel import links, netlink
from towpath.kernel.bpffs import remove_pins
from towpath.kernel.errors import KernelError
from towpath.kernel.links import attach_tc_ingress, attach_xdp

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from towpath.datapath.program import LoadedProgram
    from towpath.model.settings import Device

log = logging.getLogger(__name__)

_FAMILIES: tuple[netlink.Family, ...] = ("ipv4", "ipv6")


class Attachment:
    """The program on ``devices``, which must exist. KernelError if one can't be attached to."""

    def __init__(
        self, program: LoadedProgram, devices: Iterable[Device], pins: Path | None = None
    ) -> None:
        self._program = program
        self._pins = pins / "links" if pins else None
        self._links: list[links.Attachment] = []
        self._restore = ExitStack()
        self.devices: dict[int, str] = {}
        try:
            for device in devices:
                self._attach(device)
            self._drop_other_devices()
        except BaseException:
            self.close()
            raise
        self.refresh_vlans()

    def _attach(self, device: Device) -> None:
        index = netlink.device_index(device.name)
        self._allow_forwarding(device.name)
        programs = self._program.object.programs
        # tc first: from its first packet on, XDP may hand packets over.
        handoff = self._adopt(f"tc-{index}", "towpath_handoff")
        if handoff is None:
            handoff = attach_tc_ingress(programs["towpath_handoff"], index)
            self._keep(handoff, f"tc-{index}")
        self._links.append(handoff)
        balancer = self._adopt(f"xdp-{index}", "towpath_lb")
        if balancer is None:
            balancer = attach_xdp(programs["towpath_lb"], index, device.mode)
            self._keep(balancer, f"xdp-{index}")
        self._links.append(balancer)
        self.devices[index] = device.name

    def _adopt(self, name: str, program: str) -> links.Attachment | None:
        """Put our program into a pinned link. None if there is none that still works."""
        if self._pins is None or not (self._pins / name).exists():
            return None
        path = self._pins / name
        try:
            link = links.from_pin(path)
            link.update(self._program.object.programs[program])
        except KernelError as error:
            # The device went away and with it what the link was attached to.
            log.info("link %s is of no use any more: %s", path, error)
            path.unlink()
            return None
        return link

    def _keep(self, link: links.Attachment, name: str) -> None:
        if self._pins is not None:
            self._pins.mkdir(parents=True, exist_ok=True)
            link.pin(self._pins / name)

    def _drop_other_devices(self) -> None:
        """Detach from devices that an earlier configuration named."""
        if self._pins is None or not self._pins.is_dir():
            return
        for path in self._pins.iterdir():
            if int(path.name.rpartition("-")[2]) not in self.devices:
                with links.from_pin(path) as link:
                    path.unlink()
                    link.detach()

    def _allow_forwarding(self, device: str) -> None:
        """The FIB answers only for devices that may forward; undone on close."""
        for family in _FAMILIES:
            try:
                was = netlink.set_forwarding(device, family, on=True)
            except KernelError as error:
                log.info("%s: %s forwarding can't be set: %s", device, family, error)
                continue
            if not was and self._pins is None:
                self._restore.callback(netlink.set_forwarding, device, family, on=False)

    def refresh_vlans(self) -> None:
        """Tell the program which VLAN devices there are on top of which devices."""
        maps = self._program.maps
        by_tag, by_device = maps["vlan_devices"], maps["egress_devices"]
        found_tags, found_devices = set(), set()
        for upper, lower, vid in netlink.vlan_devices():
            tag = np.zeros((), by_tag.key_dtype)
            tag["ifindex"], tag["vid"] = lower, vid
            way = np.zeros((), by_device.value_dtype)
            way["ifindex"], way["vlan"] = lower, vid
            by_device.update(upper, way)
            by_tag.update(tag, upper)
            found_tags.add(tag.tobytes())
            found_devices.add(upper)
        for key in [key for key, _ in by_tag.items() if key.tobytes() not in found_tags]:
            by_tag.delete(key, missing_ok=True)
        for key in [key for key, _ in by_device.items() if int(key) not in found_devices]:
            by_device.delete(key, missing_ok=True)

    def detach(self) -> None:
        """Take the program off every device, pinned or not."""
        for link in self._links:
            link.detach()
        if self._pins is not None:
            remove_pins(self._pins)

    def close(self) -> None:
        """Let go. What isn't pinned is detached, and the devices are as they were."""
        for link in reversed(self._links):
            link.close()
        self._links.clear()
        self._restore.close()
