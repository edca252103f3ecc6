# SPDX-License-Identifier: Apache-2.0
"""Generic netlink: families by their names."""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING

from towpath.kernel.net.messages import attribute, attributes, text

if TYPE_CHECKING:
    from towpath.kernel.net.messages import Netlink

GENL_HEADER = struct.Struct("=BBxx")
"""struct genlmsghdr: command, version."""
_CONTROLLER, _GETFAMILY = 16, 3  # GENL_ID_CTRL, CTRL_CMD_GETFAMILY
_FAMILY_ID, _FAMILY_NAME = 1, 2  # CTRL_ATTR_*


def family(netlink: Netlink, name: str) -> int | None:
    """The number of a generic netlink family, None when the kernel doesn't have it.

    It may load the module that has it.
    """
    body = GENL_HEADER.pack(_GETFAMILY, 1) + attribute(_FAMILY_NAME, text(name))
    try:
        answer = netlink.ask(_CONTROLLER, body)[0]
    except FileNotFoundError:
        return None
    number = attributes(answer[GENL_HEADER.size :])[_FAMILY_ID]
    return int.from_bytes(number, sys.byteorder)
