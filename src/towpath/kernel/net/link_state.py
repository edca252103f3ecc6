# SPDX-License-Identifier: Apache-2.0
"""All network devices of the calling thread's network namespace, in one question."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from towpath.kernel.errors import KernelError
from towpath.kernel.net.messages import DUMP, ROUTE, Netlink, attributes

# <linux/rtnetlink.h>, <linux/if_link.h>
_GET_LINK = 18
_IFINFOMSG = struct.Struct("=BxHiII")  # family, ARPHRD_*, ifindex, flags, change
_IFNAME, _MTU, _LINK, _MASTER, _CARRIER_UPS = 3, 4, 5, 10, 47
_LINKINFO, _LINK_NETNSID = 18, 37
_KIND, _SLAVE_KIND = 1, 4  # IFLA_INFO_*
_ETHERNET = 1  # ARPHRD_ETHER

UP, LOOPBACK, POINT_TO_POINT, RUNNING, NO_ARP = 1 << 0, 1 << 3, 1 << 4, 1 << 6, 1 << 7
CARRIER = 1 << 16
"""``IFF_*``; CARRIER is IFF_LOWER_UP."""
_ON = UP | RUNNING | CARRIER


@dataclass(frozen=True, slots=True)
class Device:
    """A device as it was when it was asked for."""

    index: int
    name: str
    flags: int
    """``IFF_*``."""
    kind: int
    """``ARPHRD_*``: what its link-layer header is."""
    mtu: int
    """In bytes."""
    lower: int = 0
    """Interface index of the device below, as a VLAN device has one; 0: none."""
    master: int = 0
    """Interface index of the bridge, bond or VRF that it belongs to; 0: none."""

    carriers: int = 0
    """How often it has found a carrier."""
    driver: str = ""
    """What kind of virtual device it is, as ``ip link add type`` calls it; "": none."""
    part_of: str = ""
    """What kind of device ``master`` is."""
    lower_elsewhere: bool = False
    """Of a device in pairs: the other one is in another network namespace."""
    elsewhere: int | None = None
    """That namespace's number in this one, by which the kernel can be asked about it."""

    @property
    def up(self) -> bool:
        """It is switched on, has its carrier, and the kernel has begun to send by it.

        Which it does up to a second after it has found the carrier (``linkwatch``); until then it
        drops what is sent.
        """
        return self.flags & _ON == _ON

    @property
    def ethernet(self) -> bool:
        """Its packets have Ethernet's header."""
        return self.kind == _ETHERNET

    @property
    def resolves(self) -> bool:
        """Whether next hops on it have MAC addresses to be found out: Ethernet, with ARP and ND."""
        unresolved = LOOPBACK | POINT_TO_POINT | NO_ARP
        return self.ethernet and not self.flags & unresolved


def devices() -> dict[int, Device]:
    """All devices by interface index. KernelError: the kernel refuses to tell."""
    with Netlink(ROUTE) as netlink:
        return dump(netlink)


def dump(netlink: Netlink) -> dict[int, Device]:
    """The same by a socket that is there."""
    try:
        found = netlink.ask(_GET_LINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0), DUMP)
    except OSError as error:
        raise KernelError("list network devices", error.errno or 0) from error
    return {each.index: each for each in map(read, found)}


def read(body: bytes) -> Device:
    """Read a device from the body of RTM_NEWLINK or RTM_DELLINK."""
    _, kind, index, flags, _ = _IFINFOMSG.unpack_from(body)
    found = attributes(body[_IFINFOMSG.size :])
    info = attributes(found.get(_LINKINFO, b""))
    return Device(
        index=index,
        name=_text(found.get(_IFNAME)),
        flags=flags,
        kind=kind,
        mtu=_number(found.get(_MTU)),
        lower=_number(found.get(_LINK)),
        master=_number(found.get(_MASTER)),
        carriers=_number(found.get(_CARRIER_UPS)),
        driver=_text(info.get(_KIND)),
        part_of=_text(info.get(_SLAVE_KIND)),
        lower_elsewhere=_LINK_NETNSID in found,
        elsewhere=_signed(found.get(_LINK_NETNSID)),
    )


def _number(value: bytes | None) -> int:
    return int(struct.unpack("=I", value)[0]) if value else 0


def _signed(value: bytes | None) -> int | None:
    """None: it isn't told, or the namespace has no number here."""
    number = struct.unpack("=i", value)[0] if value else -1
    return None if number < 0 else int(number)


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")
