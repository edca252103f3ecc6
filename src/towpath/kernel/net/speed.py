# SPDX-License-Identifier: Apache-2.0
"""How fast a device's link is, as ethtool has it."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946  # <linux/sockios.h>
_GSET = 1  # ETHTOOL_GSET
_COMMAND = struct.Struct("=I8xH14xH14x")
"""struct ethtool_cmd: the command, and the speed in two halves."""
_REQUEST = struct.Struct("16sP16x")  # struct ifreq: the device's name, where the command is
_UNKNOWN = {0, 0xFFFF, 0xFFFFFFFF}


def speed(device: str) -> int | None:
    """Return bits a second; None: it doesn't tell, or there is none of that name."""
    command = ctypes.create_string_buffer(_COMMAND.pack(_GSET, 0, 0))
    request = _REQUEST.pack(device.encode(), ctypes.addressof(command))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            fcntl.ioctl(asking, _SIOCETHTOOL, request)
        except OSError:
            return None
    _, low, high = _COMMAND.unpack(command.raw[: _COMMAND.size])
    megabits = low | high << 16
    return None if megabits in _UNKNOWN else megabits * 1_000_000
