# SPDX-License-Identifier: Apache-2.0
"""Addresses as ``struct address`` of ``bpf/abi/base.h`` has them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

FAMILY_V4 = 2
FAMILY_V6 = 10
_FAMILIES = {4: FAMILY_V4, 6: FAMILY_V6}


def family(address: Address) -> int:
    """Return the ``enum family`` of an address."""
    return _FAMILIES[address.version]


def pack(address: Address) -> bytes:
    """Return 16 bytes in network order: an IPv4 address is the last four."""
    return address.packed.rjust(16, b"\0")


def unpack(raw: bytes, of_family: int) -> Address:
    """Return the address that 16 bytes and an ``enum family`` stand for."""
    return IPv4Address(raw[12:]) if of_family == FAMILY_V4 else IPv6Address(raw)
