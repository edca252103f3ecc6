# SPDX-License-Identifier: Apache-2.0
"""Addresses and prefixes as the API stores them, some from before it checked them.

Read as the API server and kube-proxy read what is stored: white space around them is nothing,
leading zeros are decimal, bits of the host are ignored, IPv4 in IPv6 is IPv4.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeAlias

from towpath.model.kinds import Address, Prefix, address_of, not_unicast

_ZEROS = re.compile(r"(?<![\d.])(?:\d{1,10}\.){3}\d{1,10}")
_MAPPED = 96

Family: TypeAlias = int
"""4 or 6."""


def _decimal(text: str) -> str:
    return ".".join(str(int(each)) for each in text.split("."))


def _clean(text: str) -> str:
    text = text.strip()
    return _ZEROS.sub(lambda found: _decimal(found.group()), text)


def read_address(text: str) -> Address:
    """Return an address that the API has stored. ValueError: it is none."""
    try:
        found = address_of(text)
    except ValueError:
        found = address_of(_clean(text))
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        return IPv4Address(found.ipv4_mapped)
    return found


@lru_cache(maxsize=1 << 10)
def read_unicast(text: str) -> Address:
    """Return an address that packets can be sent to. ValueError."""
    found = read_address(text)
    if why := not_unicast(found):
        raise ValueError(f"{found} {why}")
    return found


def read_prefix(text: str) -> Prefix:
    """Return a prefix that the API has stored. ValueError: it is none."""
    found = ip_network(_clean(text), strict=False)
    mapped = None if isinstance(found, IPv4Network) else found.network_address.ipv4_mapped
    if mapped is not None and found.prefixlen >= _MAPPED:
        return IPv4Network((mapped, found.prefixlen - _MAPPED))
    return found


def is_plain(text: str, found: Address | Prefix) -> bool:
    """Whether whoever reads a text takes it for this, and for nothing else."""
    try:
        if isinstance(found, IPv4Network | IPv6Network):
            return ip_network(text) == found
        return address_of(text) == found
    except ValueError:
        return False
