# SPDX-License-Identifier: Apache-2.0
"""Addresses as ``struct address`` of ``bpf/abi.h`` has them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from towpath.model.service import Protocol, ServiceKey

Address = IPv4Address | IPv6Address

FAMILY_V4 = 2
FAMILY_V6 = 10
_FAMILIES = {4: FAMILY_V4, 6: FAMILY_V6}
_PROTOCOLS = {protocol.number: protocol for protocol in Protocol}


def family(address: Address) -> int:
    """Return the ``enum family`` of an address."""
    return _FAMILIES[address.version]


def pack(address: Address) -> bytes:
    """Return 16 bytes in network order: an IPv4 address is the last four."""
    return address.packed.rjust(16, b"\0")


def unpack(raw: bytes, of_family: int) -> Address:
    """Return the address that 16 bytes and an ``enum family`` stand for."""
    return IPv4Address(raw[12:]) if of_family == FAMILY_V4 else IPv6Address(raw)


def pack_key(key: ServiceKey) -> bytes:
    """Return a service's key as the 20 bytes of ``struct vip_key``."""
    tail = key.port.to_bytes(2, "big") + bytes((key.protocol.number, family(key.vip)))
    return pack(key.vip) + tail


def unpack_key(raw: bytes) -> ServiceKey:
    """Return the service's key that 20 bytes of ``struct vip_key`` stand for."""
    port = int.from_bytes(raw[16:18], "big")
    return ServiceKey(unpack(raw[:16], raw[19]), port, _PROTOCOLS[raw[18]])
