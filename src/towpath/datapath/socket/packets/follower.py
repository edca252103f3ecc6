# SPDX-License-Identifier: Apache-2.0
"""Services in packets that follow the node's devices, with a thread of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.datapath.follow import NodeFollower
from towpath.datapath.socket.packets.node import Node

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from towpath.datapath.lb.contents import Contents
    from towpath.datapath.maps.shared import SharedMaps
    from towpath.model.socket import Packets


class Follower(NodeFollower[Node]):
    """A `Node` with a thread that keeps it in step, until it is closed.

    Changes are followed at once: a new pod's first packets come soon. KernelError, OSError: as for
    `Node`.
    """

    name = "socket-packets"

    def __init__(
        self,
        tables: SharedMaps,
        contents: Contents,
        section: Packets,
        epoch: int,
        pins: Path | None = None,
        *,
        tracks: bool = False,
    ) -> None:
        super().__init__(lambda: Node(tables, contents, section, epoch, pins, tracks=tracks))

    def replace_devices(self, devices: Sequence[str]) -> None:
        """Be on these devices from now on. KernelError, OSError."""
        self.asked(lambda node: node.replace_devices(devices))
