# SPDX-License-Identifier: Apache-2.0
"""Where packets of services are sent to, kept in step with the services."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from typing import TYPE_CHECKING

from towpath.datapath.lb.local import nobody
from towpath.datapath.neigh.next_hops import Destination

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from towpath.datapath.address import Address
    from towpath.datapath.lb.local import IsHere
    from towpath.datapath.lb.services import Installed
    from towpath.model.service import ServiceKey
    from towpath.model.settings import Source


class Destinations:
    """Each backend of some services, but those that ``is_here`` says are on this node.

    From the address that the tunnel to it has, if that is one and the same.

    In a new frame (l2) a packet keeps its client's address, and has to go to that very host. A
    translated one has an address out of several. What is for this node only is sent by its stack.
    """

    def __init__(self, source: Source, is_here: IsHere = nobody) -> None:
        self._source = source
        self._is_here = is_here
        self._found: dict[ServiceKey, tuple[Destination, ...]] = {}

    def __iter__(self) -> Iterator[Destination]:
        """Yield all of them, those of several services as often."""
        return chain.from_iterable(self._found.values())

    def begin(self, services: Mapping[ServiceKey, Installed]) -> None:
        """Be those of these services and of no others."""
        self._found = {}
        self.change(services, services)

    def change(self, services: Mapping[ServiceKey, Installed], keys: Iterable[ServiceKey]) -> bool:
        """Follow the services that were or are at these keys; whether anything is otherwise."""
        changed = False
        for key in keys:
            service = services.get(key)
            found = () if service is None or key.scope == "node" else tuple(self._of(service))
            if found == self._found.get(key, ()):
                continue
            changed = True
            if found:
                self._found[key] = found
            else:
                del self._found[key]
        return changed

    def _of(self, service: Installed) -> Iterator[Destination]:
        towards, forwarding = destinations(service, self._source), service.options.forwarding
        for backend in service.backends():
            if not self._is_here(forwarding, backend):
                yield towards(backend.address)


def destinations(service: Installed, source: Source) -> Callable[[Address], Destination]:
    """Return what says where packets of a service go for one of its backends."""
    forwarding = service.options.forwarding
    if forwarding != "dsr":
        on_link = forwarding == "l2"
        return lambda address: Destination(address, None, on_link)
    v4, v6 = map(_one, (source.ipv4, source.ipv6))
    return lambda address: Destination(address, v4 if isinstance(address, IPv4Address) else v6)


def _one(outer: object) -> Address | None:
    """The address that all tunnels of a family have, if it is one and the same."""
    return outer if isinstance(outer, IPv4Address | IPv6Address) else None
