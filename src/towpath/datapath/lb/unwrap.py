# SPDX-License-Identifier: Apache-2.0
"""Tunnels to this node whose packets are balanced: to which addresses, and of which kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.decap.addresses import TunnelAddresses, between
from towpath.documents import UnwrappedCounters

if TYPE_CHECKING:
    from towpath.kernel.bpf.maps import Map
    from towpath.model.settings import Unwrap


def unwrap_constants(unwrap: Unwrap, *, translates: bool) -> dict[str, Any]:
    """Return what ``bpf/lb/unwrap.h`` and ``bpf/snat/fast.h`` want to know of the configuration.

    Without an address the program has none of it. ``translates``: some packets that are for no VIP
    are translated, too.
    """
    is_wanted = bool(unwrap.addresses)
    kinds = between(gre=is_wanted and unwrap.gre, udp_ports=unwrap.udp_ports if is_wanted else ())
    return kinds | {
        "unwraps": is_wanted,
        "pass_looks": translates or kinds["takes_udp"],
    }


class UnwrapAddresses(TunnelAddresses):
    """``unwrap_addresses`` of ``bpf/lb/maps.h``. Those that stay keep their counters."""

    def __init__(self, addresses: Map, unwrap: Unwrap) -> None:
        super().__init__(addresses)
        self._wanted = unwrap.addresses
        self._added = [each for each in self._wanted if each not in self.addresses]

    def begin(self) -> None:
        """Add those that are new. DecapError: there is no room."""
        for each in self._added:
            self.add(each)

    def give_up(self) -> None:
        """Take them away again: the program of before goes on."""
        there = self.addresses
        for each in self._added:
            if each in there:
                self.remove(each)

    def settle(self) -> None:
        """Remove those that aren't wanted any more."""
        for each in self.addresses:
            if each not in self._wanted:
                self.remove(each)

    def counters(self, cpu: int | None = None) -> tuple[UnwrappedCounters, ...]:
        """What was unwrapped for each, on all CPUs or on one."""
        if cpu is None:
            return tuple(
                UnwrappedCounters(address, each.packets, each.bytes)
                for address, each in self.unwrapped().items()
            )
        found = {self._address(key): np.asarray(cpus)[cpu] for key, cpus in self._map.items()}
        return tuple(
            UnwrappedCounters(address, int(found[address]["packets"]), int(found[address]["bytes"]))
            for address in sorted(found, key=lambda address: (address.version, int(address)))
        )
