# SPDX-License-Identifier: Apache-2.0
"""Outer source addresses, as the program's ``struct settings`` has them."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import Address, pack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.model.settings import Source

Interface = IPv4Interface | IPv6Interface
Wish = str | IPv4Address | IPv4Network | IPv6Address | IPv6Network
_WORD_BITS = 32


def node_address(interfaces: Iterable[Interface], version: int) -> Address | None:
    """Return the first address of a family that others can answer to."""
    found = (i.ip for i in interfaces if i.version == version and not i.ip.is_link_local)
    return next(found, None)


def vary_mask(network: IPv4Network | IPv6Network) -> int:
    """Return the host bits of a prefix within the address's last 32 bits."""
    host_bits = min(network.max_prefixlen - network.prefixlen, _WORD_BITS)
    return (1 << host_bits) - 1


def fill_settings(record: Any, source: Source, interfaces: Iterable[Interface]) -> None:
    """Write the sources of both families to a ``struct settings``.

    "node" leaves the choice to the route; the device's own address, written
    beside it, is for kernels whose FIB look-up doesn't tell a source (before 6.7).
    """
    interfaces = tuple(interfaces)
    for version, wish in ((4, source.ipv4), (6, source.ipv6)):
        address, vary = _resolve(wish, interfaces, version)
        record[f"fib_source{version}"] = wish == "node"
        record[f"vary{version}"] = vary
        record[f"source{version}"]["word"] = np.frombuffer(
            pack(address) if address else bytes(16), ">u4"
        )


def _resolve(
    wish: Wish, interfaces: tuple[Interface, ...], version: int
) -> tuple[Address | None, int]:
    if isinstance(wish, IPv4Network | IPv6Network):
        return wish.network_address, vary_mask(wish)
    if isinstance(wish, IPv4Address | IPv6Address):
        return wish, 0
    return node_address(interfaces, version), 0
