# SPDX-License-Identifier: Apache-2.0
"""What a device's driver says of XDP, by generic netlink (6.3)."""

from __future__ import annotations

import ctypes
import errno as errnos
import os
import struct
import sys
from enum import IntFlag

from towpath.kernel.bpf._structs import LinkCreateOpts
from towpath.kernel.bpf.attach_types import AttachType
from towpath.kernel.bpf.libbpf import lib
from towpath.kernel.bpf.probe import tiny
from towpath.kernel.bpf.programs import ProgramType
from towpath.kernel.net.messages import GENERIC, ROUTE, Netlink, attribute, attributes, text

_GENL_HEADER = struct.Struct("=BBxx")  # struct genlmsghdr: command, version
_CONTROLLER, _GETFAMILY = 16, 3  # GENL_ID_CTRL, CTRL_CMD_GETFAMILY
_FAMILY_ID, _FAMILY_NAME = 1, 2  # CTRL_ATTR_*
_DEV_GET, _IFINDEX, _XDP_FEATURES = 1, 1, 3  # NETDEV_CMD_DEV_GET, NETDEV_A_DEV_*

_LINK = struct.Struct("=xxHiII")  # struct ifinfomsg: type, index, flags, changed flags
_RTM_GETLINK, _IFF_UP = 18, 1
_XDP_NATIVE = 1 << 2


class XdpFeatures(IntFlag):
    """NETDEV_XDP_ACT_*, those that are used here."""

    BASIC = 1 << 0
    """Programs run in the driver, and may send packets back out of the device."""
    REDIRECT = 1 << 1
    """They may send packets out of other devices."""
    TARGET = 1 << 2
    """Other devices' programs may send packets out of this one (ndo_xdp_xmit)."""


def xdp_features(ifindex: int) -> XdpFeatures | None:
    """What the driver of a device says it can; None when the kernel has no way to tell.

    OSError: no such device.
    """
    with Netlink(GENERIC) as netlink:
        family = _family(netlink, "netdev")
        if family is None:
            return None
        body = _GENL_HEADER.pack(_DEV_GET, 1) + attribute(_IFINDEX, ifindex)
        for answer in netlink.ask(family, body):
            features = attributes(answer[_GENL_HEADER.size :]).get(_XDP_FEATURES)
            if features is not None:
                return XdpFeatures(int.from_bytes(features, sys.byteorder))
    return None


def _family(netlink: Netlink, name: str) -> int | None:
    """The number of a generic netlink family, None when the kernel doesn't have it."""
    body = _GENL_HEADER.pack(_GETFAMILY, 1) + attribute(_FAMILY_NAME, text(name))
    try:
        answer = netlink.ask(_CONTROLLER, body)[0]
    except FileNotFoundError:
        return None
    number = attributes(answer[_GENL_HEADER.size :])[_FAMILY_ID]
    return int.from_bytes(number, sys.byteorder)


def try_native(ifindex: int) -> bool | None:
    """Whether a program can be attached to a device in native mode; it is detached at once.

    Attaching resets many a device, so this is tried only on one that is down: None for one that is
    up, or that has a program. KernelError: no program can be loaded. OSError: no such device.
    """
    with Netlink(ROUTE) as netlink:
        message = netlink.ask(_RTM_GETLINK, _LINK.pack(0, ifindex, 0, 0))[0]
    if _LINK.unpack_from(message)[2] & _IFF_UP:
        return None
    opts = LinkCreateOpts(flags=_XDP_NATIVE)
    with tiny(ProgramType.XDP) as program:
        fd = lib.bpf_link_create(program, ifindex, AttachType.XDP, ctypes.byref(opts))
    if -fd in (errnos.EBUSY, errnos.EEXIST):
        return None
    if fd >= 0:
        os.close(fd)
    return bool(fd >= 0)
