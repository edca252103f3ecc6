# SPDX-License-Identifier: Apache-2.0
"""Tunnels to this node whose packets are balanced: to which addresses, and of which kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from towpath.datapath.decap.addresses import TunnelAddresses, between
from towpath.documents import UnwrappedCounters

if TYPE_CHECKING:
    from contextlib import ExitStack

    from towpath.kernel.bpf.maps import Map
    from towpath.model.settings import Unwrap


def unwrap_constants(unwrap: Unwrap) -> dict[str, Any]:
    """Return what ``bpf/lb/unwrap.h`` wants to know of the configuration.

    Without an address the program has none of it.
    """
    is_wanted = bool(unwrap.addresses)
    kinds = between(gre=is_wanted and unwrap.gre, udp_ports=unwrap.udp_ports if is_wanted else ())
    return kinds | {"unwraps": is_wanted}


class UnwrapAddresses(TunnelAddresses):
    """``unwrap_addresses`` of ``bpf/lb/maps.h``. Those that stay keep their counters.

    Made before the program is attached; `settle` is for after that. ``on_failure`` takes away again
    what is added: the program of before goes on. DecapError: there is no room.
    """

    def __init__(self, addresses: Map, unwrap: Unwrap, on_failure: ExitStack) -> None:
        super().__init__(addresses)
        self._wanted = unwrap.addresses
        there = self.addresses
        for each in self._wanted:
            if each not in there:
                self.add(each)
                on_failure.callback(self.remove, each)

    def settle(self) -> None:
        """Remove those that aren't wanted any more."""
        for each in self.addresses:
            if each not in self._wanted:
                self.remove(each)

    def counters(self, cpu: int | None = None) -> tuple[UnwrappedCounters, ...]:
        """What was unwrapped for each, on all CPUs or on one."""
        return tuple(
            UnwrappedCounters(address, each.packets, each.bytes)
            for address, each in self.unwrapped(cpu).items()
        )
