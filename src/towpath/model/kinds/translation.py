# SPDX-License-Identifier: Apache-2.0
"""What packets are translated to: addresses, and a range of ports."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

from towpath.model.kinds.addresses import Address, Prefix, UnicastAddress, not_unicast, prefix_of
from towpath.model.kinds.base import FieldError, Kind, shown
from towpath.model.kinds.ports import LAST_PORT, PortRange

MAX_ADDRESSES = 16
FIRST_PORT = 1024
MIN_PORTS = 16
_OWN = (IPv4Address(0), IPv6Address(0))
"""This node's, whichever that is."""
_RANGE = re.compile(r"\s*(0|[1-9][0-9]{0,4})\s*-\s*(0|[1-9][0-9]{0,4})\s*")


class TranslationAddresses(Kind):
    """A list of addresses and prefixes of one family, of which every address is meant.

    The unspecified one stands for this node's.
    """

    def __init__(self, version: int) -> None:
        self._version = version
        own = next(each for each in _OWN if each.version == version)
        self._allowed = (
            f"allowed: up to {MAX_ADDRESSES} IPv{version} addresses, each by itself or in a prefix,"
            f" or {own} for the node's own"
        )

    def parse(self, raw: object) -> tuple[Address, ...]:
        """Return the addresses in the order given; one by itself is a list too."""
        items = raw if isinstance(raw, list | tuple) else [] if raw is None else [raw]
        found = [address for item in items for address in self._addresses(item)]
        if len(found) > MAX_ADDRESSES:
            raise FieldError(f"{len(found)} addresses are too many; {self._allowed}")
        for address in found:
            if found.count(address) > 1:
                raise FieldError(f"{address} is listed twice; allowed: once")
            if not address.is_unspecified and (reason := not_unicast(address)):
                raise FieldError(f"{address} {reason}; {self._allowed}")
        return tuple(found)

    def _addresses(self, item: object) -> list[Address]:
        prefix = self._prefix(item)
        if prefix.version != self._version:
            raise FieldError(f"{shown(item)} is IPv{prefix.version}; {self._allowed}")
        if prefix.num_addresses > MAX_ADDRESSES:
            raise FieldError(f"{prefix} is too wide; {self._allowed}")
        # Not hosts(): the first and the last address are as good as the others here.
        return list(prefix)

    def _prefix(self, item: object) -> Prefix:
        if isinstance(item, Prefix) or (isinstance(item, str) and "/" in item):
            return prefix_of(item, self._allowed)
        for own in _OWN:
            if item in (own, str(own)):
                return ip_network(own)
        try:
            return ip_network(UnicastAddress().parse(item))
        except FieldError as error:
            raise FieldError(f"{str(error).rpartition('; ')[0]}; {self._allowed}") from None

    def schema(self) -> dict[str, Any]:
        """Return a list of texts as JSON schema."""
        return {"type": "array", "items": {"type": "string"}, "description": self._allowed}


class PortSpan(Kind):
    """A range of ports that is wide enough to give one to every flow for a while."""

    allowed = (
        f"a range of at least {MIN_PORTS} ports from {FIRST_PORT} to {LAST_PORT}, "
        "such as 10000-32767"
    )

    def parse(self, raw: object) -> PortRange:
        """Return the range."""
        if isinstance(raw, PortRange):
            first, last = raw
        elif isinstance(raw, str) and (match := _RANGE.fullmatch(raw)):
            first, last = int(match[1]), int(match[2])
        else:
            raise FieldError(f"{shown(raw)} is not a range of ports; allowed: {self.allowed}")
        if first > last:
            raise FieldError(f"{shown(raw)} ends before it begins; allowed: {last}-{first}")
        if not FIRST_PORT <= first <= last <= LAST_PORT:
            raise FieldError(f"{first}-{last} is out of range; allowed: {self.allowed}")
        if last - first + 1 < MIN_PORTS:
            raise FieldError(f"{last - first + 1} ports are too few; allowed: {self.allowed}")
        return PortRange(first, last)

    def schema(self) -> dict[str, Any]:
        """Return a text's JSON schema."""
        return {"type": "string", "examples": ["10000-32767"], "description": self.allowed}
