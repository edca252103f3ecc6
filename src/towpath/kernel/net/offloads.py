# SPDX-License-Identifier: Apache-2.0
"""What ethtool has of devices: what they do for the stack that XDP then doesn't see, and speed."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from typing import NamedTuple

from towpath.kernel.errors import CAP_NET_ADMIN, KernelError, permission_hint

_SIOCETHTOOL = 0x8946  # <linux/sockios.h>
# <linux/ethtool.h>
_GSTRINGS, _GSSET_INFO, _GFEATURES, _SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
_FEATURE_NAMES, _NAME_LENGTH = 4, 32  # ETH_SS_FEATURES, ETH_GSTRING_LEN
_REQUEST = struct.Struct("16sP16x")  # struct ifreq: the device's name, where the command is
_GOT = struct.Struct("=IIII")  # struct ethtool_get_features_block: 32 features each
_WISH = struct.Struct("=II")  # struct ethtool_set_features_block: which, and on or off
_BLOCK_BITS = 32
ON, OFF = "on", "off"
_GSET = 1
_COMMAND = struct.Struct("=I8xH14xH14x")
"""struct ethtool_cmd: the command, and the speed in two halves."""
_UNKNOWN = {0, 0xFFFF, 0xFFFFFFFF}


class Offload(NamedTuple):
    """A feature that a device may have, by the name that the kernel has for it."""

    name: str

    @property
    def family(self) -> str:
        """Beside settings of other kinds: ethtool's."""
        return "ethtool"

    def __str__(self) -> str:
        return self.name

    def state(self, device: str) -> State:
        """How it is. KernelError: there is no such device."""
        number = _names(device).get(self.name)
        if number is None:
            return State(on=False, fixed=True)
        block, bit = divmod(number, _BLOCK_BITS)
        available, _, active, never = _GOT.unpack_from(_features(device), block * _GOT.size)
        return State(on=bool(active >> bit & 1), fixed=not available & ~never & 1 << bit)

    def read(self, device: str) -> str:
        """Whether it is `ON` or `OFF`. KernelError: there is no such device."""
        return ON if self.state(device).on else OFF

    def write(self, device: str, value: str) -> None:
        """Switch it `ON` or `OFF`. Some drivers reset the device for that.

        KernelError: it can't be switched there, there is no such device, or it isn't allowed.
        """
        number = _names(device).get(self.name, 0)
        block, bit = divmod(number, _BLOCK_BITS)
        blocks = len(_features(device)) // _GOT.size
        wishes = [_WISH.pack(0, 0)] * blocks
        wishes[block] = _WISH.pack(1 << bit, (value == ON) << bit)
        what = f"switch {self} of {device} {value}"
        _ask(device, struct.pack("=II", _SFEATURES, blocks) + b"".join(wishes), what)
        if self.read(device) != value:
            raise KernelError(what, hint="its driver doesn't")


_numbers: dict[str, int] = {}


class State(NamedTuple):
    """How a feature is."""

    on: bool
    fixed: bool
    """It can't be switched."""


RX_VLAN = (Offload("rx-vlan-hw-parse"), Offload("rx-vlan-stag-hw-parse"))
"""Tags of 802.1Q and of 802.1ad are taken off frames that come in."""


def _names(device: str) -> dict[str, int]:
    """The numbers of all features by their names, which are the same on all devices of a kernel."""
    if not _numbers:
        wish = struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _FEATURE_NAMES, 0)
        *_, count = struct.unpack("=IIQI", _ask(device, wish, f"count the features of {device}"))
        header = struct.pack("=III", _GSTRINGS, _FEATURE_NAMES, count)
        said = _ask(device, header + bytes(count * _NAME_LENGTH), f"read the features of {device}")
        names = said[len(header) :]
        found = (names[at : at + _NAME_LENGTH] for at in range(0, len(names), _NAME_LENGTH))
        _numbers.update({each.rstrip(b"\0").decode(): at for at, each in enumerate(found)})
    return _numbers


def _features(device: str) -> bytes:
    """How all features are: blocks of 32."""
    blocks = -(-len(_names(device)) // _BLOCK_BITS)
    wish = struct.pack("=II", _GFEATURES, blocks)
    said = _ask(device, wish + bytes(blocks * _GOT.size), f"read the features of {device}")
    return said[len(wish) :]


def _ask(device: str, command: bytes, what: str) -> bytes:
    """What the kernel writes over a command. KernelError."""
    buffer = ctypes.create_string_buffer(command, len(command))
    request = _REQUEST.pack(device.encode(), ctypes.addressof(buffer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            fcntl.ioctl(asking, _SIOCETHTOOL, request)
        except OSError as error:
            denied = isinstance(error, PermissionError)
            hint = permission_hint(CAP_NET_ADMIN) if denied else ""
            raise KernelError(what, error.errno or 0, hint) from error
    return buffer.raw


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
