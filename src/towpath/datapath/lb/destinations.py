# SPDX-License-Identifier: Apache-2.0
"""Where packets of services are sent to."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from towpath.datapath.lb.local import nobody
from towpath.datapath.neigh.next_hops import Destination

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from towpath.datapath.address import Address
    from towpath.datapath.lb.local import IsHere
    from towpath.datapath.lb.services import Installed
    from towpath.model.settings import Source


def destinations(
    installed: Iterable[Installed], source: Source, is_here: IsHere = nobody
) -> Iterator[Destination]:
    """Each backend but those that ``is_here`` says are on this node.

    From the address that the tunnel to it has, if that is one and the same.

    In a new frame (l2) a packet keeps its client's address, and has to go to that very host. A
    translated one has an address out of several. What is for this node only is sent by its stack.
    """
    for service in installed:
        if service.key.scope == "node":
            continue
        for address, backend in service.records.items():
            if not is_here(service.options.forwarding, backend):
                yield destination(service, address, source)


def destination(service: Installed, address: Address, source: Source) -> Destination:
    """Where packets of a service go for one of its backends."""
    forwarding = service.options.forwarding
    tunnel = _outer(source, address) if forwarding == "dsr" else None
    return Destination(address, tunnel, on_link=forwarding == "l2")


def _outer(source: Source, to: Address) -> Address | None:
    found = source.ipv4 if isinstance(to, IPv4Address) else source.ipv6
    return found if isinstance(found, IPv4Address | IPv6Address) else None
