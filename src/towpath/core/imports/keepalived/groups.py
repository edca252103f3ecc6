# SPDX-License-Identifier: Apache-2.0
"""virtual_server_group: addresses, ranges of them and firewall marks of one virtual server."""

from __future__ import annotations

from ipaddress import ip_address, ip_network, summarize_address_range
from typing import TYPE_CHECKING, NamedTuple

from towpath.core.imports.keepalived.values import MAX_NUMBER, MAX_PORT, WrongValueError, number
from towpath.model.kinds import shown

if TYPE_CHECKING:
    from towpath.core.imports.imported import Place
    from towpath.core.imports.keepalived.blocks import Directive
    from towpath.model.kinds import Address, Prefix

_ALLOWED = (
    "allowed: ADDRESS, a range such as 203.0.113.10-20, 203.0.113.10-203.0.114.9 or "
    "203.0.113.8/29, with a PORT behind it, or fwmark NUMBER"
)


class Entry(NamedTuple):
    """What packets are for: an address or a prefix and a port (0: any), or a mark."""

    vip: Address | Prefix | None
    port: int
    mark: int
    place: Place


def entries(directive: Directive) -> list[Entry]:
    """Return what a line of a group, or a virtual server's own, stands for.

    A range is as many prefixes as it takes. WrongValueError.
    """
    words, place = [directive.name, *directive.values], directive.place
    if words[0] == "fwmark":
        mark = number("fwmark", (words[1:] or [""])[0], 0, MAX_NUMBER)
        return [Entry(None, 0, mark, place)]
    port = number("port", words[1], 0, MAX_PORT) if len(words) > 1 else 0
    return [Entry(vip, port, 0, place) for vip in _vips(words[0])]


def _vips(text: str) -> list[Address | Prefix]:
    try:
        if "/" in text:
            prefix = ip_network(text)
            return [prefix if prefix.num_addresses > 1 else prefix.network_address]
        first, dash, last = text.partition("-")
        begin = ip_address(first)
        if not dash:
            return [begin]
        return _range(begin, last)
    except (ValueError, TypeError) as error:
        raise WrongValueError(f"{shown(text)} is no address and no range; {_ALLOWED}") from error


def _range(first: Address, last: str) -> list[Address | Prefix]:
    """All from an address to another, or to the last number of it; IPv6 has that in hexadecimal."""
    if "." not in last and ":" not in last:
        separator = "." if first.version == 4 else ":"  # noqa: PLR2004 - IPv4
        written = str(first) if first.version == 4 else first.exploded  # noqa: PLR2004 - IPv4
        last = f"{written.rpartition(separator)[0]}{separator}{last}"
    found = summarize_address_range(first, ip_address(last))
    return [each if each.num_addresses > 1 else each.network_address for each in found]
