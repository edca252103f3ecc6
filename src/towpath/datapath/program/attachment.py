# SPDX-License-Identifier: Apache-2.0
"""The program's place on its devices, and what a device needs for it.

Each device gets the XDP program and, behind it, the tc program that takes the
packets whose next hop XDP could not resolve. Both are links: where there is a
pin directory they are pinned and outlive the process, and the next process puts
its program in their place without a packet between the two.
"""

from __future__ import annotations

import atexit
import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from towpath.datapath.program.forwarding import Forwarding
from towpath.kernel.bpf import links
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.links import attach_tc_ingress, attach_xdp
from towpath.kernel.errors import KernelError
from towpath.kernel.net import interfaces

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from towpath.datapath.program.program import LoadedProgram
    from towpath.kernel.bpf.programs import Program
    from towpath.model.settings import Device

log = logging.getLogger(__name__)

_GONE = frozenset((errno.ENOLINK, errno.ENODEV))


@dataclass
class _Place:
    """A program's place on a device."""

    link: links.Attachment
    pin: Path | None
    adopted: bool
    program: str


class Attachment:
    """The program on ``devices``, which must exist.

    KernelError: one can't be attached to, and what was attached to the others is not
    any more, except what was pinned before.
    """

    def __init__(
        self, program: LoadedProgram, devices: Iterable[Device], pins: Path | None = None
    ) -> None:
        self._program = program
        self._pins = pins / "links" if pins else None
        self._places: list[_Place] = []
        self._forwarding = Forwarding()
        if not pins:
            # A script may end without closing what it made.
            atexit.register(self._forwarding.restore)
        self.devices: dict[int, str] = {}
        self._current = program.object.programs["towpath_lb"]
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
        if not self._adopt(f"tc-{index}", "towpath_handoff"):
            handoff = attach_tc_ingress(programs["towpath_handoff"], index)
            self._keep(handoff, f"tc-{index}", "towpath_handoff")
        if not self._adopt(f"xdp-{index}", "towpath_lb"):
            balancer = attach_xdp(programs["towpath_lb"], index, device.mode)
            self._keep(balancer, f"xdp-{index}", "towpath_lb")
        self.devices[index] = device.name

    def _allow_forwarding(self, index: int) -> None:
        # The FIB wants it of the device that it is told a packet came in on.
        for name in interfaces.entrances(index):
            self._forwarding.allow(name)

    def _adopt(self, name: str, program: str) -> bool:
        """Put our program into a pinned link. False if there is none that still works."""
        if self._pins is None or not (self._pins / name).exists():
            return False
        path = self._pins / name
        try:
            link = links.from_pin(path)
            self._places.append(_Place(link, path, adopted=True, program=program))
            link.update(self._program.object.programs[program])
        except KernelError as error:
            # The device went away and with it what the link was attached to.
            log.info("link %s is of no use any more: %s", path, error)
            path.unlink()
            return False
        return True

    def _keep(self, link: links.Attachment, name: str, program: str) -> None:
        place = _Place(link, None, adopted=False, program=program)
        self._places.append(place)
        if self._pins is not None:
            self._pins.mkdir(parents=True, exist_ok=True)
            link.pin(self._pins / name)
            place.pin = self._pins / name

    def _drop_other_devices(self) -> None:
        """Detach from devices that an earlier configuration named."""
        if self._pins is None or not self._pins.is_dir():
            return
        for path in list(self._pins.iterdir()):
            if int(path.name.rpartition("-")[2]) not in self.devices:
                try:
                    links.from_pin(path).detach()
                except KernelError as error:
                    log.info("link %s has nothing to detach from: %s", path, error)
                path.unlink()

    def replace(self, program: Program | None) -> None:
        """Put another program in the place of the one that balances; None: that one again.

        A device that is gone has no place any more, and is left out. KernelError: a device
        can't have it; then all have what they had.
        """
        wanted = program or self._program.object.programs["towpath_lb"]
        done: list[_Place] = []
        for place in self._places:
            if place.program != "towpath_lb":
                continue
            try:
                place.link.update(wanted)
            except KernelError as error:
                if error.errno in _GONE:
                    log.info("%s", error)
                    continue
                for each in done:
                    each.link.update(self._current)
                raise
            done.append(place)
        self._current = wanted

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
        self._end(self._places)
        self._restore_forwarding()
        if self._pins is not None:
            remove_pins(self._pins)

    def close(self) -> None:
        """Let go. What isn't pinned is detached, and the devices are as they were."""
        if self._pins is None:
            self.detach()
        self._let_go()

    def _give_up(self) -> None:
        """Leave what was there before this object, and no more."""
        self._end(place for place in self._places if not place.adopted)
        self._restore_forwarding()
        self._let_go()

    def _end(self, places: Iterable[_Place]) -> None:
        # XDP before tc: what it has handed over is still taken.
        for place in reversed(list(places)):
            try:
                place.link.detach()
            except KernelError as error:
                log.warning("%s", error)
            if place.pin is not None:
                place.pin.unlink(missing_ok=True)

    def _let_go(self) -> None:
        for place in self._places:
            place.link.close()
        self._places.clear()

    def _restore_forwarding(self) -> None:
        atexit.unregister(self._forwarding.restore)
        self._forwarding.restore()
