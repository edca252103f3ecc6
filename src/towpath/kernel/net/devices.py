# SPDX-License-Identifier: Apache-2.0
"""The devices and addresses of a network namespace as they are, kept by what the kernel tells."""

from __future__ import annotations

import logging
import struct
import sys
from dataclasses import dataclass
from ipaddress import ip_interface
from itertools import count
from socket import AF_INET, AF_INET6, AF_UNSPEC, inet_ntop
from typing import TYPE_CHECKING, NamedTuple

from towpath.closeable import Closeable
from towpath.kernel.net.messages import attribute, attributes, each_attribute, text
from towpath.kernel.net.watch import Change, Group, Watch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Interface, IPv6Interface
    from pathlib import Path

log = logging.getLogger(__name__)

_GROUPS = (
    Group.LINK,
    Group.IPV4_ADDRESS,
    Group.IPV6_ADDRESS,
    Group.IPV4_NETCONF,
    Group.IPV6_NETCONF,
)
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18  # RTM_*
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22

_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, changed flags
_IFNAME, _LOWER, _MASTER, _LINKINFO, _LOWER_NETNSID = 3, 5, 10, 18, 37  # IFLA_*
_EXT_MASK, _NEW_NETNSID, _PROPERTIES, _ALTNAME = 29, 45, 52, 53
_SKIP_STATS = 1 << 3  # RTEXT_FILTER_SKIP_STATS
_KIND, _DATA, _SLAVE_KIND = 1, 2, 4  # IFLA_INFO_*
_VLAN_ID, _VLAN_PROTOCOL = 1, 5  # IFLA_VLAN_*
_8021Q = 0x8100
_ARPHRD_ETHER = 1

_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_FAMILIES = {4: AF_INET, 16: AF_INET6}  # by the length of an address
_IFA_F_SECONDARY = 0x01  # of IPv6: temporary
_IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x08, 0x20, 0x40


@dataclass(frozen=True, slots=True)
class Interface:
    """A device."""

    index: int
    name: str
    serial: int = 0
    """Another one for each device, also for one that has got the index of one that is gone."""
    altnames: tuple[str, ...] = ()
    master: int = 0
    """The device that it is a part of, 0 for none."""
    bonded: bool = False
    """It is a part of a bond."""
    lower: int = 0
    """The device in this namespace that it is on top of, 0 for none."""
    vlan: int | None = None
    """Its 802.1Q id on that device, None if it is no such device."""
    kind: str = ""
    """Such as veth or bridge; empty for one of a driver that makes no other devices."""
    ethernet: bool = True
    """Its frames have Ethernet headers."""


class Owned(NamedTuple):
    """An address of a device."""

    device: int
    """Its index."""
    interface: IPv4Interface | IPv6Interface
    """With its prefix length."""
    flags: int = 0
    """IFA_F_* of <linux/if_addr.h>."""

    @property
    def usable(self) -> bool:
        """Others can be spoken to from it: it isn't being looked whether somebody else has it."""
        return not self.flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED)

    @property
    def deprecated(self) -> bool:
        """Nothing new should be begun from it."""
        return bool(self.flags & _IFA_F_DEPRECATED)

    @property
    def secondary(self) -> bool:
        """It is there besides another one of its network; of IPv6: it is temporary."""
        return bool(self.flags & _IFA_F_SECONDARY)


class Devices(Closeable):
    """The devices and addresses of a namespace: the calling thread's, or ``netns``.

    As they are when this is made, and after each `read`. Not thread-safe, but for reading what
    `read` has found. A context manager, which closes. OSError, KernelError: as for `Watch`.
    """

    def __init__(self, netns: str | Path | int | None = None) -> None:
        self._watch = Watch(_GROUPS, netns)
        self._by_index: dict[int, Interface] = {}
        self._addresses: dict[tuple[int, bytes, int, bytes], Owned] = {}
        self._elsewhere: set[int] = set()
        self._counter = count(1)
        self._serials: dict[int, int] = {}
        self.resyncs = 0
        """How often all was asked for again, since messages were lost."""
        self._ask()

    def fileno(self) -> int:
        """The descriptor that is readable when something has changed."""
        return self._watch.fileno()

    def read(self) -> bool:
        """Take in what has changed; whether anything has. Waits for nothing. OSError."""
        changes = self._watch.read()
        if changes is None:
            self.resyncs += 1
            log.info("changes of devices were lost: all are asked for again")
            self._ask()
            return True
        for change in changes:
            self._take(change)
        return bool(changes)

    def _ask(self) -> None:
        self._by_index, self._addresses = {}, {}
        mask = attribute(_EXT_MASK, _SKIP_STATS)
        links = self._watch.ask(_GETLINK, _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + mask)
        addresses = self._watch.ask(_GETADDR, _ADDRESS.pack(AF_UNSPEC, 0, 0, 0, 0))
        for change in (*links, *addresses):
            self._take(change)
        self._serials = {index: each.serial for index, each in self._by_index.items()}

    def _take(self, change: Change) -> None:
        if change.kind in (_NEWLINK, _DELLINK):
            self._take_link(change)
        elif change.kind in (_NEWADDR, _DELADDR):
            self._take_address(change)

    def _take_link(self, change: Change) -> None:
        family, type_, index, _, _ = _LINK.unpack_from(change.body)
        if family != AF_UNSPEC:
            return  # of a bridge's ports, which tell more of a device in messages of their own
        values = attributes(change.body[_LINK.size :])
        if change.kind == _NEWLINK:
            self._elsewhere.discard(index)
            serial = self._serials.setdefault(index, next(self._counter))
            self._by_index[index] = _interface(index, serial, type_, values)
            return
        self._by_index.pop(index, None)
        self._serials.pop(index, None)
        for key in [key for key, each in self._addresses.items() if each.device == index]:
            del self._addresses[key]
        if _NEW_NETNSID in values:
            self._elsewhere.add(index)

    def _take_address(self, change: Change) -> None:
        _, length, flags, _, index = _ADDRESS.unpack_from(change.body)
        values = attributes(change.body[_ADDRESS.size :])
        # Of a point-to-point device the other end is IFA_ADDRESS; it has one address for each.
        other = values.get(_IFA_ADDRESS, b"")
        local = values.get(_IFA_LOCAL, other)
        key = index, local, length, other
        if change.kind == _DELADDR:
            self._addresses.pop(key, None)
            return
        text = inet_ntop(_FAMILIES[len(local)], local)
        flags = _number(values[_IFA_FLAGS]) if _IFA_FLAGS in values else flags
        self._addresses[key] = Owned(index, ip_interface(f"{text}/{length}"), flags)

    # ---- what there is ---------------------------------------------------------------------------

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """All devices."""
        return tuple(self._by_index.values())

    def get(self, index: int) -> Interface | None:
        """The device with that index, if there is one."""
        return self._by_index.get(index)

    def named(self, name: str) -> Interface | None:
        """The device of that name, or with that alternative name, if there is one. OSError."""
        for each in self._by_index.values():
            if each.name == name:
                return each
        # Of a device that is down the kernel doesn't tell when it gets, or loses, another name.
        body = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + attribute(_ALTNAME, text(name))
        try:
            found = self._watch.ask_one(_GETLINK, body)
        except OSError:
            return None
        self._take(found)
        return self._by_index.get(_LINK.unpack_from(found.body)[2])

    def became(self, index: int) -> str:
        """What became of a device that isn't there any more, in words."""
        if index in self._elsewhere:
            return "it was moved to another network namespace"
        return "it is gone"

    def addresses(self, indexes: Iterable[int] | None = None) -> list[Owned]:
        """The addresses of some devices in the order of these, or of all; the oldest first."""
        found = list(self._addresses.values())
        if indexes is None:
            return found
        return [each for index in indexes for each in found if each.device == index]

    def vlans(self) -> list[tuple[int, int, int]]:
        """All 802.1Q devices: index, index of the device below, VLAN id."""
        return [
            (each.index, each.lower, each.vlan)
            for each in self._by_index.values()
            if each.vlan is not None
        ]

    def parts(self, index: int) -> list[Interface]:
        """The devices whose drivers take in the packets of a device.

        Itself, and if it is a bond what it is made of.
        """
        itself = self._by_index.get(index)
        bonded = [each for each in self._by_index.values() if each.bonded and each.master == index]
        return ([itself] if itself else []) + bonded

    def entrances(self, index: int) -> list[int]:
        """The devices that packets of a device come in by, as routing sees it.

        Itself, its VLAN devices, and the devices that it is a bond of.
        """
        return [index, *self._others(index)]

    def _others(self, index: int) -> Iterator[int]:
        for each in self._by_index.values():
            tagged = each.vlan is not None and each.lower == index
            if tagged or (each.bonded and each.master == index):
                yield each.index

    def close(self) -> None:
        """Follow no longer. Twice is once."""
        self._watch.close()


def _interface(index: int, serial: int, type_: int, values: dict[int, bytes]) -> Interface:
    info = attributes(values.get(_LINKINFO, b""))
    here = _LOWER_NETNSID not in values
    lower = _number(values.get(_LOWER, b"")) if here else 0
    return Interface(
        index,
        _text(values[_IFNAME]),
        serial,
        tuple(
            _text(value)
            for kind, value in each_attribute(values.get(_PROPERTIES, b""))
            if kind == _ALTNAME
        ),
        _number(values.get(_MASTER, b"")),
        bonded=info.get(_SLAVE_KIND) == b"bond\0",
        lower=lower,
        vlan=_vlan(info) if lower else None,
        kind=_text(info.get(_KIND, b"")),
        ethernet=type_ == _ARPHRD_ETHER,
    )


def _vlan(info: dict[int, bytes]) -> int | None:
    data = attributes(info.get(_DATA, b""))
    if info.get(_KIND) != b"vlan\0" or int.from_bytes(data[_VLAN_PROTOCOL], "big") != _8021Q:
        return None
    return _number(data[_VLAN_ID])


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="surrogateescape")
