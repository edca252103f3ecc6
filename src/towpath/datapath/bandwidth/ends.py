# SPDX-License-Identifier: Apache-2.0
"""Which devices lead to an address: pairs (veth, netkit) whose other end's namespace has it.

The kernel is asked about these namespaces by their numbers. Nobody enters them, looks for
processes, or asks a CNI plugin what it has made.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from towpath.kernel.errors import KernelError
from towpath.kernel.net import own_addresses
from towpath.kernel.net.messages import ROUTE, Netlink

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from towpath.datapath.address import Address
    from towpath.kernel.net.link_state import Device

log = logging.getLogger(__name__)

PAIRS = frozenset({"veth", "netkit"})
AGAIN_SECONDS = 1.0
"""After so long those are asked again that have none of the addresses looked for."""
ALL_SECONDS = 10.0
"""After so long all are: addresses may have gone from one to another."""


class Ends:
    """Looks for addresses at the other ends of pairs. Not thread-safe."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], frozenset[Address]] = {}
        self._missing: frozenset[Address] = frozenset()
        self._asked, self._asked_all = 0.0, 0.0

    def find(
        self, wanted: Collection[Address], devices: Mapping[int, Device]
    ) -> dict[Address, list[int]]:
        """The devices that lead to each of these addresses, as far as there are any."""
        if not wanted:
            self._known.clear()
            return {}
        there = {
            (each.index, each.lower, each.elsewhere): each
            for each in devices.values()
            if each.driver in PAIRS and each.elsewhere is not None
        }
        self._known = {key: each for key, each in self._known.items() if key in there}
        now = time.monotonic()
        anew = now >= self._asked_all + ALL_SECONDS
        if anew:
            self._asked_all = now
        self._ask(there if anew else there.keys() - self._known.keys())
        missing = frozenset(wanted) - self._found()
        if missing and (missing != self._missing or now >= self._asked + AGAIN_SECONDS):
            self._asked = now
            self._ask([key for key, has in self._known.items() if not has & set(wanted)])
        self._missing = frozenset(wanted) - self._found()
        leading: defaultdict[Address, list[int]] = defaultdict(list)
        for (index, _, _), has in sorted(self._known.items()):
            for address in has & set(wanted):
                leading[address].append(index)
        return dict(leading)

    def _found(self) -> set[Address]:
        return {address for has in self._known.values() for address in has}

    def _ask(self, keys: Collection[tuple[int, int, int]]) -> None:
        with Netlink(ROUTE, strict=True) as netlink:
            for key in keys:
                try:
                    self._known[key] = own_addresses.elsewhere(netlink, key[2])
                except KernelError as error:
                    log.debug("%s", error)  # it has just gone
                    self._known.pop(key, None)
