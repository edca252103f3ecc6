# SPDX-License-Identifier: Apache-2.0
"""VIPs and reals as Katran has them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from towpath.errors import Error
from towpath.model.kinds import ANY_PORT, shown
from towpath.model.quic import KATRAN_SERVER_IDS
from towpath.model.service import endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.core.imports.imported import Place
    from towpath.model.kinds import Address

VIP_FLAGS = ("NO_SPORT", "NO_LRU", "QUIC_VIP", "DPORT_HASH", "LOCAL_VIP")
REAL_FLAGS = ("LOCAL_REAL",)
MAX_PORT, MAX_WEIGHT = 65535, (1 << 31) - 1


class WrongLineError(Error):
    """A line that can't be carried out: what is wrong, and what is allowed."""


class Named(NamedTuple):
    """Whom an id in connection ids of QUIC names, of all VIPs."""

    address: Address
    place: Place


class Key(NamedTuple):
    """What identifies a VIP."""

    address: Address
    port: int
    protocol: str

    def __str__(self) -> str:
        return f"{endpoint(self.address, self.port or ANY_PORT)}/{self.protocol}"


@dataclass
class Real:
    """A backend; flags with where they were set."""

    address: Address
    weight: int
    flags: dict[str, Place] = field(default_factory=dict)


@dataclass
class Vip:
    """A virtual address and port, and its reals by address."""

    key: Key
    place: Place
    flags: dict[str, Place] = field(default_factory=dict)
    reals: dict[Address, Real] = field(default_factory=dict)

    @property
    def address(self) -> Address:
        """Where clients connect to."""
        return self.key.address

    @property
    def port(self) -> int:
        """0: any."""
        return self.key.port

    @property
    def protocol(self) -> str:
        """Either tcp or udp."""
        return self.key.protocol

    def __str__(self) -> str:
        return str(self.key)


@dataclass
class Table:
    """All VIPs, and who has which id."""

    vips: dict[Key, Vip] = field(default_factory=dict)
    ids: dict[int, Named] = field(default_factory=dict)


def id_of(text: str) -> int:
    """Return an id that connection ids can have. WrongLineError."""
    least, most = KATRAN_SERVER_IDS
    if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII) or not least <= int(text) <= most:
        raise WrongLineError(f"id {shown(text)} is not one; allowed: {least} to {most}")
    return int(text)


def address_of(text: str, what: str) -> Address:
    """Return an address. WrongLineError."""
    try:
        return ip_address(text)
    except ValueError:
        message = f"{what} {shown(text)} is not an address; allowed: IPv4 or IPv6"
        raise WrongLineError(message) from None


def number_of(text: str, what: str, most: int) -> int:
    """Return a number from 0. WrongLineError."""
    if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII) or int(text) > most:
        raise WrongLineError(f"{what} {shown(text)} is not a number; allowed: 0 to {most}")
    return int(text)


def flags_of(words: Iterable[str], known: Iterable[str], place: Place) -> dict[str, Place]:
    """Return flags and where they are. WrongLineError."""
    found = {}
    for word in words:
        if word not in known:
            message = f"flag {shown(word)} is not known; allowed: {', '.join(known)}"
            raise WrongLineError(message)
        found[word] = place
    return found
