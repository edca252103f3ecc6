# SPDX-License-Identifier: Apache-2.0
"""Outer source addresses, as the program's ``struct settings`` has them.

"node" means what the route to a backend prefers. From Linux 6.7 on the look-up in the FIB tells it.
For older kernels one address of each family is chosen here: the one that the kernel itself takes
towards most backends, asked again as routes and addresses change. It is never a VIP: a backend has
that on itself, and its kernel takes packets that come from there for forged. Where the route would
have a VIP, the address that is chosen here is used on all kernels. Of prefixes that services are
for it keeps away as long as there is another address.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import Address, pack
from towpath.kernel.net.own_routes import preferred_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from towpath.kernel.net.devices import Owned
    from towpath.model.settings import Source

Network = IPv4Network | IPv6Network
Wish = str | Address | Network
_WORD_BITS = 32
_HOST_BITS = {4: 8, 6: 64}
"""Backends whose addresses differ in no more than so many bits are taken to be behind one route."""
MOST_ROUTES = 32
"""Such routes that the kernel is asked about."""


class Vips:
    """The addresses that services are for."""

    def __init__(self, vips: Iterable[Address | Network] = ()) -> None:
        self._single: set[Address] = set()
        self._networks: set[Network] = set()
        for each in vips:
            self.add(each)

    def add(self, vip: Address | Network) -> None:
        """Have one more."""
        if isinstance(vip, IPv4Address | IPv6Address):
            self._single.add(vip)
        else:
            self._networks.add(vip)

    def remove(self, vip: Address | Network) -> None:
        """Have one no more."""
        if isinstance(vip, IPv4Address | IPv6Address):
            self._single.remove(vip)
        else:
            self._networks.remove(vip)

    def with_more(self, vips: Iterable[Address | Network]) -> Vips:
        """Return these and others."""
        return Vips((*self._single, *self._networks, *vips))

    @property
    def exact(self) -> Vips:
        """Those that are single addresses, as long as these are as they are."""
        made = Vips()
        made._single = self._single
        return made

    def __contains__(self, address: Address) -> bool:
        """Whether some service is for an address."""
        return address in self._single or any(address in each for each in self._networks)


def node_address(owned: Iterable[Owned], version: int, vips: Vips | None = None) -> Address | None:
    """Return the address of a family that others can best answer to; None: there is none.

    As RFC 6724 would have it, without knowing to whom: not a deprecated one if there is another,
    nor one that is temporary or secondary; the first of those that are as good.
    """
    usable = [
        each
        for each in owned
        if each.interface.version == version
        and each.usable
        and not each.interface.ip.is_link_local
        and (vips is None or each.interface.ip not in vips)
    ]
    best = min(usable, key=lambda each: (each.deprecated, each.secondary), default=None)
    return best.interface.ip if best else None


def route_of(backend: Address) -> tuple[int, int]:
    """Return what those backends have in common that are taken to be behind one route."""
    version = 4 if isinstance(backend, IPv4Address) else 6
    return version, int(backend) >> _HOST_BITS[version]


def alike(backends: Iterable[Address]) -> list[Address]:
    """Return one of those backends that are taken to be behind one route, of a few routes."""
    found: dict[tuple[int, int], Address] = {}
    for each in backends:
        if len(found) == MOST_ROUTES:
            break
        found.setdefault(route_of(each), each)
    return list(found.values())


def choose(
    version: int, backends: Iterable[Address], vips: Vips, owned: Sequence[Owned]
) -> tuple[bool, Address | None]:
    """Whether routes may choose the source of packets to backends, and the one that else is.

    ``owned``: addresses to choose from where no route tells; may be gone through twice. None: there
    is none that will do.
    """
    towards = (each for each in backends if each.version == version)
    found = Counter(each for each in map(preferred_source, towards) if each is not None)
    # An address within a prefix that a service is for may be nobody else's: it is the last choice.
    for avoided in (vips, vips.exact):
        routed = not any(each in avoided for each in found)
        best = (
            each
            for each, _ in found.most_common()
            if not (each in avoided or each.is_link_local or each.is_loopback)
        )
        address = next(best, None) or node_address(owned, version, avoided)
        if routed or address:
            return routed, address
    return False, None


def vary_mask(network: Network) -> int:
    """Return the host bits of a prefix within the address's last 32 bits."""
    host_bits = min(network.max_prefixlen - network.prefixlen, _WORD_BITS)
    return (1 << host_bits) - 1


def fill_settings(
    record: Any, source: Source, backends: Sequence[Address], vips: Vips, owned: Iterable[Owned]
) -> None:
    """Write the sources of both families to a ``struct settings``."""
    owned = tuple(owned)
    for version, wish in ((4, source.ipv4), (6, source.ipv6)):
        routed, address, vary = _resolve(wish, version, backends, vips, owned)
        record[f"fib_source{version}"] = routed
        record[f"vary{version}"] = vary
        record[f"source{version}"]["word"] = np.frombuffer(
            pack(address) if address else bytes(16), ">u4"
        )


def _resolve(
    wish: Wish, version: int, backends: Sequence[Address], vips: Vips, owned: Sequence[Owned]
) -> tuple[bool, Address | None, int]:
    if isinstance(wish, IPv4Network | IPv6Network):
        return False, wish.network_address, vary_mask(wish)
    if isinstance(wish, IPv4Address | IPv6Address):
        return False, wish, 0
    routed, address = choose(version, backends, vips, owned)
    return routed, address, 0
