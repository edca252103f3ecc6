# SPDX-License-Identifier: Apache-2.0
"""Packets from this node's own addresses, which come in where a VIP is one of them."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from towpath.kernel.errors import KernelError
from towpath.kernel.net.sysctl import ACCEPT_LOCAL, RP_FILTER

if TYPE_CHECKING:
    from collections.abc import Collection

    from towpath.datapath.address import Address
    from towpath.datapath.program.switches import Switches
    from towpath.kernel.net.devices import Devices

log = logging.getLogger(__name__)

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_STRICT, _LOOSE = "1", "2"


class LocalSources:
    """Lets devices take IPv4 packets that come from an address of this node's own.

    That is what answers look like where a VIP is also an address of the load balancer,
    such as on lo for a routing daemon to announce it; the kernel takes them for forged.
    What was changed is set back.
    """

    def __init__(self, devices: Devices, switches: Switches) -> None:
        self._devices = devices
        self._switches = switches
        self._told: frozenset[str] = frozenset()

    def allow(self, indexes: Collection[int]) -> None:
        """Have it so on these devices and no others; again, when others changed it.

        Where that can't be done it stays as it is.
        """
        for setting in (RP_FILTER, ACCEPT_LOCAL):
            for index in self._switches.where(setting):
                if index not in indexes:
                    self._switches.unset(index, setting)
        failed = []
        for index in indexes:
            try:
                self._allow(index)
            except KernelError as error:
                failed.append(str(error))
        for each in failed:
            if each not in self._told:
                log.warning("%s; checks of VIPs that this node has too may fail", each)
        self._told = frozenset(failed)

    def _allow(self, index: int) -> None:
        device = self._devices.get(index)
        if device is None:
            return
        self._switches.set(index, ACCEPT_LOCAL, "1")
        # A filter that is off, or looser, is fine. The larger of the device's and all's counts.
        if max(RP_FILTER.read(device.name), RP_FILTER.read("all")) == _STRICT:
            self._switches.set(index, RP_FILTER, _LOOSE)

    def restore(self) -> None:
        """Set back what was changed, by whichever process. Twice is once."""
        self.allow(())


def is_local(address: Address) -> bool:
    """Whether an address is this node's own."""
    with socket.socket(_FAMILIES[address.version], socket.SOCK_DGRAM) as asking:
        try:
            asking.bind((str(address), 0))
        except OSError:
            return False
    return True
