# SPDX-License-Identifier: Apache-2.0
"""What a device's driver says of XDP, by generic netlink (6.3)."""

from __future__ import annotations

import struct
import sys
from enum import IntFlag

from towpath.kernel.messages import GENERIC, Netlink, attribute, attributes, text

_GENL_HEADER = struct.Struct("=BBxx")  # struct genlmsghdr: command, version
_CONTROLLER, _GETFAMILY = 16, 3  # GENL_ID_CTRL, CTRL_CMD_GETFAMILY
_FAMILY_ID, _FAMILY_NAME = 1, 2  # CTRL_ATTR_*
_DEV_GET, _IFINDEX, _XDP_FEATURES = 1, 1, 3  # NETDEV_CMD_DEV_GET, NETDEV_A_DEV_*


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
