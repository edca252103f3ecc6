# SPDX-License-Identifier: Apache-2.0
"""Addresses of hosts, prefixes to take source addresses from, places to listen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TYPE_CHECKING, Any

from towpath.model.kinds.base import FieldError, Kind, shown, text
from towpath.model.kinds.scalars import Integer

if TYPE_CHECKING:
    from collections.abc import Iterable

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

PORT = Integer(1, 65535)

_BROADCAST = IPv4Address("255.255.255.255")
_DOTTED = re.compile(r"(?:(?:0|[1-9][0-9]{0,2})\.){3}(?:0|[1-9][0-9]{0,2})")
_BYTE = 255
_THIS_NETWORK = IPv4Network("0.0.0.0/8")


def address_of(text: str) -> Address:
    """Return what ``ip_address`` does of a text, of IPv4 faster."""
    if _DOTTED.fullmatch(text):
        a, b, c, d = map(int, text.split("."))
        if max(a, b, c, d) <= _BYTE:
            return IPv4Address(a << 24 | b << 16 | c << 8 | d)
    return ip_address(text)


def numbers(addresses: Iterable[Address]) -> list[int]:
    """Return a number for each, by which those without a zone are told apart.

    Of a number the hash is there at once. That of an address takes longer than most that is done
    with it, and so does whether two are equal.
    """
    return [int(each) if isinstance(each, IPv4Address) else ~int(each) for each in addresses]


def _is_common(address: Address) -> bool:
    """Whether it is in 1/8 to 126/8, 128/8 to 223/8, 2000::/3 or fc00::/7: nearly all are."""
    if isinstance(address, IPv4Address):
        first = int(address) >> 24
        return 0 < first < 224 and first != 127  # noqa: PLR2004 - as above
    number = int(address)
    return (number >> 125 == 1 or number >> 121 == 0x7E) and address.scope_id is None  # noqa: PLR2004


def not_unicast(address: Address) -> str | None:
    """Say why no packet on a wire can be for ``address`` alone, or return None."""
    if _is_common(address):
        return None
    reasons = {
        "is the unspecified address": address.is_unspecified,
        "is a multicast address": address.is_multicast,
        "is a loopback address, which no packet on a wire has": address.is_loopback,
        "is the broadcast address": address == _BROADCAST,
        "is in 0.0.0.0/8, which no host has": address in _THIS_NETWORK,
    }
    if isinstance(address, IPv6Address):
        reasons |= {
            "has a zone, which means something on one host only": address.scope_id is not None,
            "is link-local, which means something on one link only": address.is_link_local,
            f"is IPv4 inside IPv6, write {address.ipv4_mapped}": address.ipv4_mapped is not None,
        }
    return next((reason for reason, applies in reasons.items() if applies), None)


@dataclass(frozen=True)
class UnicastAddress(Kind):
    """The address of one host, reachable through the network."""

    allowed = "a unicast IPv4 or IPv6 address"

    def parse(self, raw: object) -> Address:
        """Return the address."""
        address = raw if isinstance(raw, Address) else self._address(text(raw, self.allowed))
        if reason := not_unicast(address):
            raise FieldError(f"{address} {reason}; allowed: {self.allowed}")
        return address

    def _address(self, raw: str) -> Address:
        try:
            return address_of(raw)
        except ValueError:
            message = f"{shown(raw)} is not an address; allowed: {self.allowed}"
            raise FieldError(message) from None

    def schema(self) -> dict[str, Any]:
        """Return the two formats as JSON schema."""
        return {"anyOf": [{"type": "string", "format": family} for family in ("ipv4", "ipv6")]}


@dataclass(frozen=True)
class UnicastAddresses(Kind):
    """A list of such addresses."""

    allowed = "a list of unicast IPv4 and IPv6 addresses, each once"

    def parse(self, raw: object) -> tuple[Address, ...]:
        """Return the addresses in the order given; one by itself is a list too."""
        items = raw if isinstance(raw, list | tuple) else [] if raw is None else [raw]
        found = tuple(UnicastAddress().parse(item) for item in items)
        for address in found:
            if found.count(address) > 1:
                raise FieldError(f"{address} is listed twice; allowed: {self.allowed}")
        return found

    def schema(self) -> dict[str, Any]:
        """Return a list of texts as JSON schema."""
        return {"type": "array", "items": UnicastAddress().schema(), "description": self.allowed}


@dataclass(frozen=True)
class Vip(Kind):
    """The address that clients connect to, or a prefix of such addresses."""

    allowed = "a unicast IPv4 or IPv6 address, or a prefix of them such as 203.0.113.0/28"
    _shortest = {4: 8, 6: 32}  # noqa: RUF012 - read only

    def parse(self, raw: object) -> Address | Prefix:
        """Return the address, also for a prefix of one, or the prefix."""
        if isinstance(raw, Prefix) or (isinstance(raw, str) and "/" in raw):
            return self._prefix(raw)
        try:
            return UnicastAddress().parse(raw)
        except FieldError as error:
            raise FieldError(f"{str(error).rpartition('; ')[0]}; allowed: {self.allowed}") from None

    def _prefix(self, raw: str | Prefix) -> Address | Prefix:
        prefix = prefix_of(raw, f"allowed: {self.allowed}")
        shortest = self._shortest[prefix.version]
        if prefix.prefixlen < shortest:
            raise FieldError(f"{prefix} is too wide; allowed: /{shortest} or longer")
        for address in (prefix.network_address, prefix.broadcast_address):
            if reason := not_unicast(address):
                raise FieldError(f"{prefix}: {address} {reason}; allowed: {self.allowed}")
        return prefix if prefix.num_addresses > 1 else prefix.network_address

    def schema(self) -> dict[str, Any]:
        """Return the two formats and a text as JSON schema."""
        formats = [{"type": "string", "format": family} for family in ("ipv4", "ipv6")]
        return {"anyOf": [*formats, {"type": "string", "examples": ["203.0.113.0/28"]}]}


def prefix_of(raw: str | Prefix, allowed: str) -> Prefix:
    """Return a prefix without host bits, or raise FieldError that ends with what is allowed."""
    try:
        prefix = ip_network(raw, strict=False)
    except ValueError:
        raise FieldError(f"{shown(raw)} is not a prefix; {allowed}") from None
    host = ip_address(str(raw).partition("/")[0])
    if host != prefix.network_address:
        raise FieldError(f"{shown(raw)} has host bits set; allowed: {prefix}, or {host} alone")
    return prefix


class SourceAddress(Kind):
    """``node``, an address, or a prefix whose host bits vary with the flow.

    At most the last 24 bits of an IPv4 address vary, and the last 32 of an IPv6
    address: the flow's hash has 32. A prefix of one address is that address.
    """

    _shortest = {4: 8, 6: 96}  # noqa: RUF012 - read only

    def __init__(self, version: int) -> None:
        self._version = version
        self._allowed = (
            f"allowed: node, an IPv{version} address, "
            f"or an IPv{version} prefix of /{self._shortest[version]} or longer"
        )

    def parse(self, raw: object) -> str | Address | Prefix:
        """Return ``node``, the address or the prefix."""
        if raw == "node":
            return "node"
        if isinstance(raw, Prefix) or (isinstance(raw, str) and "/" in raw):
            return self._prefix(raw)
        try:
            address = UnicastAddress().parse(raw)
        except FieldError as error:
            raise FieldError(f"{str(error).rpartition('; ')[0]}; {self._allowed}") from None
        self._check_version(raw, address.version)
        return address

    def _prefix(self, raw: str | Prefix) -> Address | Prefix:
        try:
            prefix = ip_network(raw, strict=False)
        except ValueError:
            raise FieldError(f"{shown(raw)} is not a prefix; {self._allowed}") from None
        self._check_version(raw, prefix.version)
        host = ip_address(str(raw).partition("/")[0])
        if host != prefix.network_address:
            raise FieldError(
                f"{shown(raw)} has host bits set; "
                f"allowed: {prefix}, or {host} for an address that doesn't vary"
            )
        if prefix.prefixlen < self._shortest[self._version]:
            raise FieldError(f"{prefix} is too wide; {self._allowed}")
        if reason := not_unicast(host):
            raise FieldError(f"{prefix} {reason}; {self._allowed}")
        return prefix if prefix.num_addresses > 1 else host

    def _check_version(self, raw: object, version: int) -> None:
        if version != self._version:
            raise FieldError(f"{shown(raw)} is IPv{version}; {self._allowed}")

    def schema(self) -> dict[str, Any]:
        """Return a text's JSON schema; what it may be is in its description."""
        return {"type": "string", "examples": ["node"], "description": self._allowed}


@dataclass(frozen=True)
class Listen(Kind):
    """``ADDRESS:PORT`` to listen on, or None: don't."""

    allowed = "ADDRESS:PORT, an IPv6 address in brackets, port 1 to 65535"

    def parse(self, raw: object) -> str | None:
        """Return the text, as it was given."""
        if raw is None:
            return None
        listen = text(raw, self.allowed)
        split_endpoint(listen)
        return listen

    def schema(self) -> dict[str, Any]:
        """Return an optional text's JSON schema."""
        return {"anyOf": [{"type": "string"}, {"type": "null"}], "examples": ["127.0.0.1:9464"]}


def split_endpoint(endpoint: str) -> tuple[Address, int]:
    """Return address and port of ``127.0.0.1:9464`` or ``[::1]:9464``.

    Raises FieldError.
    """
    match = re.fullmatch(r"(?:\[([^]]*)\]|([^:]*)):(0|[1-9][0-9]{0,4})", endpoint)
    if match is None:
        raise FieldError(f"{shown(endpoint)} is not ADDRESS:PORT; allowed: {Listen.allowed}")
    v6, v4, port = match.groups()
    try:
        address = IPv4Address(v4) if v6 is None else IPv6Address(v6)
    except ValueError:
        given, family = (v4, "IPv4") if v6 is None else (v6, "IPv6")
        message = f"{shown(given)} is not an {family} address; allowed: {Listen.allowed}"
        raise FieldError(message) from None
    return address, PORT.parse(int(port))
