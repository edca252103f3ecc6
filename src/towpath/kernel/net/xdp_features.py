# SPDX-License-Identifier: Apache-2.0
"""What a device's driver says of XDP, by generic netlink (6.3)."""

from __future__ import annotations

import ctypes
import errno as errnos
import os
import struct
import sys
from enum import IntFlag
from typing import TYPE_CHECKING

from towpath.kernel.bpf._structs import LinkCreateOpts
from towpath.kernel.bpf.attach_types import AttachType
from towpath.kernel.bpf.libbpf import lib
from towpath.kernel.bpf.probe import fragments, tiny
from towpath.kernel.bpf.programs import BPF_F_XDP_HAS_FRAGS, ProgramType
from towpath.kernel.net.generic import GENL_HEADER, family
from towpath.kernel.net.messages import (
    DUMP,
    GENERIC,
    ROUTE,
    Netlink,
    attribute,
    attributes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_DEV_GET, _IFINDEX, _XDP_FEATURES = 1, 1, 3  # NETDEV_CMD_DEV_GET, NETDEV_A_DEV_*

_LINK = struct.Struct("=xxHiII")  # struct ifinfomsg: type, index, flags, changed flags
_RTM_GETLINK, _IFF_UP, _IFLA_LINKINFO = 18, 1, 18
_XDP_NATIVE = 1 << 2


class XdpFeatures(IntFlag):
    """NETDEV_XDP_ACT_*, those that are used here."""

    BASIC = 1 << 0
    """Programs run in the driver, and may send packets back out of the device."""
    REDIRECT = 1 << 1
    """They may send packets out of other devices."""
    TARGET = 1 << 2
    """Other devices' programs may send packets out of this one (ndo_xdp_xmit)."""
    FRAGMENTS = 1 << 5
    """Frames that come in may be in fragments, if the program takes these."""
    TARGET_FRAGMENTS = 1 << 6
    """Frames that other devices' programs send out of this one, too."""


def xdp_features(ifindex: int) -> XdpFeatures | None:
    """What the driver of a device says it can; None when the kernel has no way to tell.

    OSError: no such device.
    """
    with Netlink(GENERIC) as netlink:
        netdev = family(netlink, "netdev")
        if netdev is None:
            return None
        body = GENL_HEADER.pack(_DEV_GET, 1) + attribute(_IFINDEX, ifindex)
        return _told(netlink.ask(netdev, body)).get(ifindex)


def all_xdp_features() -> dict[int, XdpFeatures] | None:
    """The same of all devices, by their indexes; None when the kernel has no way to tell."""
    with Netlink(GENERIC) as netlink:
        netdev = family(netlink, "netdev")
        if netdev is None:
            return None
        return _told(netlink.ask(netdev, GENL_HEADER.pack(_DEV_GET, 1), DUMP))


def _told(answers: Iterable[bytes]) -> dict[int, XdpFeatures]:
    found = {}
    for answer in answers:
        each = attributes(answer[GENL_HEADER.size :])
        if _XDP_FEATURES in each:
            number = int.from_bytes(each[_IFINDEX], sys.byteorder)
            found[number] = XdpFeatures(int.from_bytes(each[_XDP_FEATURES], sys.byteorder))
    return found


def try_native(ifindex: int) -> int | None:
    """Attach a program to a device in native mode, and detach it at once: the error number or 0.

    One that takes frames in fragments, where the kernel has such. None: the device has a program.
    Attaching resets many a device of hardware. KernelError: no program can be loaded.
    """
    opts = LinkCreateOpts(flags=_XDP_NATIVE)
    flags = BPF_F_XDP_HAS_FRAGS if fragments() else 0
    with tiny(ProgramType.XDP, flags) as program:
        fd: int = lib.bpf_link_create(program, ifindex, AttachType.XDP, ctypes.byref(opts))
    if -fd in (errnos.EBUSY, errnos.EEXIST):
        return None
    if fd >= 0:
        os.close(fd)
    return -min(fd, 0)


def is_disturbed(ifindex: int) -> bool:
    """Whether attaching a program may disturb a device: it is up, and no software's.

    OSError: no such device.
    """
    with Netlink(ROUTE) as netlink:
        message = netlink.ask(_RTM_GETLINK, _LINK.pack(0, ifindex, 0, 0))[0]
    up = _LINK.unpack_from(message)[2] & _IFF_UP
    return bool(up) and _IFLA_LINKINFO not in attributes(message[_LINK.size :])
