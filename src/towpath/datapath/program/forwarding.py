# SPDX-License-Identifier: Apache-2.0
"""Forwarding of devices, which the kernel's FIB wants before it answers for them.

It is switched on for the families that packets are sent on in, and for no other. Switching on
IPv6's has the kernel forget the default routes that routers have advertised, on every device
whose ``accept_ra`` isn't 2, and listen to no more advertisements on this one unless it is 2. So
that is set first, and stays for as long as forwarding is on.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from towpath.kernel.errors import KernelError
from towpath.kernel.net.sysctl import ACCEPT_RA, FAMILIES, FORWARDING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from towpath.datapath.program.switches import Switches
    from towpath.kernel.net.devices import Devices
    from towpath.kernel.net.sysctl import Family

log = logging.getLogger(__name__)

_OFF, _ON = "0", "1"
_UNLESS_FORWARDING, _ALWAYS = "1", "2"  # accept_ra


class Forwarding:
    """Switches forwarding on where it is needed, and back where it no longer is."""

    def __init__(self, devices: Devices, switches: Switches) -> None:
        self._devices = devices
        self._switches = switches
        # What an earlier process has switched on is needed until it is known not to be.
        self._needed = frozenset(
            (index, family) for family in FAMILIES for index in switches.where(FORWARDING[family])
        )
        self.troubles: tuple[str, ...] = ()
        """Where it can't be switched on: packets are dropped there."""

    def follow(self, indexes: Collection[int], families: Collection[Family]) -> None:
        """Have it on for these devices and families. May be called again, when others changed it.

        Where it can't be switched on it stays as it is, and ``troubles`` say so.
        """
        needed = frozenset((index, family) for index in indexes for family in families)
        for index, family in sorted(self._needed - needed):
            self._leave(index, family)
        troubles = []
        for index, family in sorted(needed):
            try:
                self._need(index, family)
            except KernelError as error:
                troubles.append(f"{error}; packets that come in there are dropped")
        for trouble in troubles:
            if trouble not in self.troubles:
                log.warning("%s", trouble)
        self._needed, self.troubles = needed, tuple(troubles)

    def _need(self, index: int, family: Family) -> None:
        device = self._devices.get(index)
        if device is None:
            return
        is_off = FORWARDING[family].read(device.name) == _OFF
        if family == "ipv6":
            self._keep_listening(index, device.name, is_off=is_off)
        if is_off:
            with _routes_kept(device.name) if family == "ipv6" else nullcontext():
                self._switches.set(index, FORWARDING[family], _ON)

    def _keep_listening(self, index: int, name: str, *, is_off: bool) -> None:
        """Let a device that is to forward listen to routers' advertisements as it did before."""
        listens = is_off and ACCEPT_RA.read(name) == _UNLESS_FORWARDING
        if listens or (index, ACCEPT_RA) in self._switches:
            self._switches.set(index, ACCEPT_RA, _ALWAYS)

    def _leave(self, index: int, family: Family) -> None:
        self._switches.unset(index, FORWARDING[family])
        if family == "ipv6":
            self._switches.unset(index, ACCEPT_RA)


@contextmanager
def _routes_kept(device: str) -> Iterator[None]:
    """Keep the default routes that other devices' routers have advertised, in the block.

    Forgetting them is how a host becomes a router; these devices don't. accept_ra 2 means the same
    as 1 to them.
    """
    changed = []
    try:
        for other in ACCEPT_RA.devices():
            with suppress(KernelError):  # it is gone meanwhile
                if other != device and _listens_as_host(other):
                    ACCEPT_RA.write(other, _ALWAYS)
                    changed.append(other)
        yield
    finally:
        for other in changed:
            with suppress(KernelError):
                ACCEPT_RA.write(other, _UNLESS_FORWARDING)


def _listens_as_host(device: str) -> bool:
    return ACCEPT_RA.read(device) == _UNLESS_FORWARDING and FORWARDING["ipv6"].read(device) == _OFF
