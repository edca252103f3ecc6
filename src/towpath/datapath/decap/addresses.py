# SPDX-License-Identifier: Apache-2.0
"""Addresses that tunnels end at, and what was unwrapped for each; and what is taken for tunnels."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import Address, family, pack, unpack
from towpath.datapath.errors import DatapathError
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.kernel.bpf.maps import Map


MAX_PORT = 65535
UDP_PORTS = 4
"""Of enum between_limits in ``bpf/decap/between.h``."""


class DecapError(DatapathError):
    """An address that can't be unwrapped for, a full table, or pins that are there or aren't."""


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """What was unwrapped for one address. Bytes are those of the inner IP packets."""

    packets: int
    bytes: int


def tunnel_address(text: str | Address) -> Address:
    """Return the address that ``text`` is. DecapError: it isn't one that packets are sent to."""
    try:
        address = ip_address(text)
    except ValueError:
        raise DecapError(
            f"address {str(text)!r}: not an IPv4 or IPv6 address; "
            "allowed: one without prefix length or port, such as 192.0.2.11 or 2001:db8::11"
        ) from None
    reason = _unusable(address)
    if reason:
        raise DecapError(f"address {text}: {reason}; allowed: one of this machine's own")
    return address


def between(*, gre: bool, udp_ports: Iterable[int]) -> dict[str, Any]:
    """Return the program's constants for what may be between outer header and packet.

    DecapError: too many ports, or none that UDP has.
    """
    ports = tuple(dict.fromkeys(udp_ports))
    for port in ports:
        if not 0 < port <= MAX_PORT:
            raise DecapError(f"udp port {port}: allowed: 1 to {MAX_PORT}")
    if len(ports) > UDP_PORTS:
        raise DecapError(f"udp ports {', '.join(map(str, ports))}: allowed: {UDP_PORTS} at most")
    filled = np.array([*ports, *[0] * (UDP_PORTS - len(ports))], ">u2")
    return {"takes_gre": gre, "takes_udp": bool(ports), "udp_ports": filled}


def _unusable(address: Address) -> str:
    if address.is_unspecified:
        return "stands for no address at all"
    if address.is_multicast:
        return "is a multicast address"
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return "has a zone, which packets don't carry"
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return "is IPv4-mapped, which packets never are"
    return ""


class TunnelAddresses:
    """A per-CPU map from ``struct decap_key`` to ``struct decap_counters``."""

    def __init__(self, addresses: Map) -> None:
        self._map = addresses

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses unwrapped for: IPv4 first, in order."""
        return tuple(self.unwrapped())

    def add(self, address: str | Address) -> None:
        """Unwrap for this address too, from now on. One that is there already stays as it is.

        DecapError: not an address, or no room for it.
        """
        wanted = tunnel_address(address)
        key = self._key(wanted)
        if self._map.lookup(key) is not None:
            return
        try:
            self._map.update(key, np.zeros((), self._map.value_dtype))
        except KernelError as error:
            if error.errno != errno.E2BIG:
                raise
            limit = self._map.max_entries
            raise DecapError(f"address {wanted}: no room; {limit} addresses at most") from error

    def remove(self, address: str | Address) -> None:
        """Pass packets for this address untouched from now on, and forget its counters.

        DecapError: it is not one of those unwrapped for.
        """
        wanted = tunnel_address(address)
        there = self.addresses
        if wanted not in there:
            known = ", ".join(map(str, there)) or "none"
            raise DecapError(f"address {wanted}: not unwrapped for; those that are: {known}")
        self._map.delete(self._key(wanted), missing_ok=True)

    def unwrapped(self, cpu: int | None = None) -> dict[Address, Unwrapped]:
        """What was unwrapped for each, on one CPU or on all: IPv4 first, in order."""
        chosen = slice(None) if cpu is None else slice(cpu, cpu + 1)
        found = {self._address(key): _sum(cpus[chosen]) for key, cpus in self._map.items()}
        order = sorted(found, key=lambda address: (address.version, int(address)))
        return {address: found[address] for address in order}

    def _key(self, address: Address) -> np.ndarray[Any, Any]:
        key = np.zeros((), self._map.key_dtype)
        key["addr"]["word"] = np.frombuffer(pack(address), ">u4")
        key["family"] = family(address)
        return key

    def _address(self, key: Any) -> Address:
        return unpack(key["addr"].tobytes(), int(key["family"]))


def _sum(cpus: np.ndarray[Any, Any]) -> Unwrapped:
    return Unwrapped(int(cpus["packets"].sum()), int(cpus["bytes"].sum()))
