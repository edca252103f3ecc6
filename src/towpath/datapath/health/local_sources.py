# SPDX-License-Identifier: Apache-2.0
"""Packets from this node's own addresses, which come in where a VIP is one of them."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.kernel.net import interfaces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from towpath.datapath.address import Address

log = logging.getLogger(__name__)

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class LocalSources:
    """Lets devices take IPv4 packets that come from an address of this node's own.

    That is what answers look like where a VIP is also an address of the load balancer,
    such as on lo for a routing daemon to announce it; the kernel takes them for forged.
    What was changed is restored.
    """

    _WANTED = ("accept_local", "1"), ("rp_filter", "2")

    def __init__(self, devices: Sequence[int]) -> None:
        self._devices = devices
        self._before: dict[Path, str] = {}

    def allow(self) -> None:
        """Set what must be set. Where that can't be done it stays as it is."""
        for index in self._devices:
            for name, wanted in self._WANTED:
                path = Path("/proc/sys/net/ipv4/conf", interfaces.device_name(index), name)
                try:
                    before = path.read_text().strip()
                    # A filter that is off, or looser, is fine.
                    if path in self._before or before == wanted:
                        continue
                    if name == "rp_filter" and not self._is_strict(path):
                        continue
                    path.write_text(wanted)
                    self._before[path] = before
                except OSError as error:
                    log.warning("%s can't be set: %s", path, error)

    def _is_strict(self, path: Path) -> bool:
        """Whether the reverse path filter is: the larger of the device's and everyone's counts."""
        everyone = path.parent.parent / "all" / path.name
        return max(path.read_text().strip(), everyone.read_text().strip()) == "1"

    def restore(self) -> None:
        """Set what was changed to what it was. Twice is once."""
        for path, before in self._before.items():
            with suppress(OSError):  # the device is gone
                path.write_text(before)
        self._before.clear()


def is_local(address: Address) -> bool:
    """Whether an address is this node's own."""
    with socket.socket(_FAMILIES[address.version], socket.SOCK_DGRAM) as asking:
        try:
            asking.bind((str(address), 0))
        except OSError:
            return False
    return True
