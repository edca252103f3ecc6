# SPDX-License-Identifier: Apache-2.0
"""Ranges of addresses, such as are given away one by one."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, NamedTuple

from towpath.model.kinds.addresses import Address, Prefix, not_unicast, prefix_of
from towpath.model.kinds.base import FieldError, Kind, shown, text


class AddressRange(NamedTuple):
    """Addresses of one family, the last one included."""

    first: Address
    last: Address

    def __str__(self) -> str:
        """As it is written in a configuration."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class AddressRanges(Kind):
    """A list of prefixes, ranges and addresses of either family."""

    allowed = (
        "a list of prefixes, ranges or addresses, such as [192.0.2.0/28, "
        "198.51.100.10-198.51.100.20, 2001:db8::/112]"
    )

    def parse(self, raw: object) -> tuple[AddressRange, ...]:
        """Return them as they are given; one by itself is a list too."""
        items = raw if isinstance(raw, list | tuple) else [raw]
        # A range is a tuple itself.
        items = [raw] if isinstance(raw, AddressRange) else items
        if not items:
            raise FieldError(f"an empty list has no address at all; allowed: {self.allowed}")
        return tuple(self._range(each) for each in items)

    def _range(self, raw: object) -> AddressRange:
        if isinstance(raw, AddressRange):
            return raw
        if isinstance(raw, Prefix):
            return self._checked(raw.network_address, raw.broadcast_address, raw)
        written = text(raw, self.allowed).strip()
        if "/" in written:
            prefix = prefix_of(written, f"allowed: {self.allowed}")
            return self._checked(prefix.network_address, prefix.broadcast_address, written)
        first, dash, last = written.partition("-")
        try:
            ends = ip_address(first.strip()), ip_address(last.strip() if dash else first.strip())
        except ValueError:
            raise FieldError(
                f"{shown(written)} is no range of addresses; allowed: {self.allowed}"
            ) from None
        return self._checked(*ends, written)

    def _checked(self, first: Address, last: Address, raw: object) -> AddressRange:
        if first.version != last.version:
            raise FieldError(f"{shown(raw)} has ends of two families; allowed: {self.allowed}")
        if int(last) < int(first):
            raise FieldError(f"{shown(raw)} ends before it begins; allowed: {last}-{first}")
        for each in (first, last):
            if why := not_unicast(each):
                raise FieldError(f"{shown(raw)}: {each} {why}; allowed: {self.allowed}")
        return AddressRange(first, last)

    def schema(self) -> dict[str, Any]:
        """Return a list of texts as JSON schema."""
        item = {"type": "string", "examples": ["192.0.2.0/28", "192.0.2.10-192.0.2.20"]}
        listed = {"type": "array", "items": item, "minItems": 1}
        return {"anyOf": [listed, item], "description": self.allowed}
