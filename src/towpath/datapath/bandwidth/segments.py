# SPDX-License-Identifier: Apache-2.0
"""How long the packets are that a slow pod's kernel hands over: IFLA_GSO_MAX_SIZE of its device.

A packet of 64 kB takes 52 ms at 10 Mbit/s, one of BIG TCP's up to 400 ms, and TCP has two or three
of each connection under way. Departure times are given to packets, not to their segments. So the
pod's end of its devices is told to divide them sooner: into what 2 ms take. New connections do.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from towpath.kernel.errors import KernelError
from towpath.kernel.net.messages import ROUTE, Netlink, attribute, attributes
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from towpath.kernel.bpf.notes import Notes

_GET, _SET = 18, 19  # RTM_*LINK
_IFINFOMSG = struct.Struct("=BxHiII")
_GSO_MAX_SIZE = 41  # IFLA_GSO_MAX_SIZE
_SHARE = 500
"""A packet may have what the rate allows in a second divided by this."""
LEAST, MOST = 3028, 65_536


def longest(rate: int) -> int:
    """Return bytes that a packet may have at so many bits a second."""
    return min(max(rate // 8 // _SHARE, LEAST), MOST)


class Segments:
    """Keeps the sizes of pods' packets. ``notes``: what they were. Not thread-safe."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    @property
    def noted(self) -> bool:
        """Whether some device has another size than it had."""
        return bool(self._notes.texts)

    def keep(self, where: Mapping[tuple[Path, int], int]) -> list[str]:
        """Have these sizes, by namespace and index there, and no others. What went wrong."""
        troubles = []
        wanted: dict[str, tuple[Path, int, int]] = {}
        for (path, index), size in where.items():
            with suppress(OSError):
                wanted[f"{path.stat().st_ino}-{index}"] = path, index, size
        for name, (path, index, size) in wanted.items():
            try:
                with in_netns(path):
                    self._keep(name, index, size)
            except (KernelError, OSError) as error:
                troubles.append(f"size of packets in {path}: {error}")
        return troubles

    def _keep(self, name: str, index: int, size: int) -> None:
        before = self._notes.texts.get(name)
        now = _size(index)
        if size == MOST:
            if before is not None:
                _set(index, int(before))
                self._notes.drop(name)
            return
        if now == size or (before is None and now < size):
            return
        if before is None:
            self._notes.put(name, str(now))
        _set(index, size)

    def restore_all(self, namespaces: Mapping[str, Path]) -> None:
        """Put back what all devices had that are still there. ``namespaces``: by inode number."""
        for name, before in self._notes.texts.items():
            inode, _, index = name.partition("-")
            if inode in namespaces:
                with suppress(KernelError, OSError), in_netns(namespaces[inode]):
                    _set(int(index), int(before))
            self._notes.drop(name)


def _size(index: int) -> int:
    with Netlink(ROUTE) as netlink:
        (body,) = netlink.ask(_GET, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0))
    found = attributes(body[_IFINFOMSG.size :]).get(_GSO_MAX_SIZE)
    return int(struct.unpack("=I", found)[0]) if found else MOST


def _set(index: int, size: int) -> None:
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0) + attribute(_GSO_MAX_SIZE, size)
    with Netlink(ROUTE) as netlink:
        netlink.ask(_SET, body)
