# SPDX-License-Identifier: Apache-2.0
"""Bandwidth that follows the node, with a thread of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.datapath.bandwidth.node import Node
from towpath.datapath.bandwidth.wanted import NOTHING
from towpath.datapath.follow import NodeFollower

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from towpath.model.bandwidth import Section, Sourced


class Follower(NodeFollower[Node]):
    """Bandwidth in the calling thread's network namespace, until it is closed.

    KernelError, OSError: as for `Node`.
    """

    name = "bandwidth"
    settle_seconds = 0.02
    resync_seconds = 10.0

    def __init__(
        self,
        section: Section,
        pins: Path,
        changes: Mapping[str, Mapping[str, Any]] | None = None,
        sourced: Sourced = NOTHING,
    ) -> None:
        super().__init__(lambda: Node(section, pins, changes, sourced))

    def replace(
        self, section: Section, changes: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Have other limits from now on. KernelError: there is no room for them."""
        self.asked(lambda node: node.replace(section, changes))

    def replace_sourced(self, sourced: Sourced) -> None:
        """Have other limits of a source from now on. KernelError, OSError."""
        self.asked(lambda node: node.replace(sourced=sourced))

    def _sync(self) -> None:
        self._node.sync(anew=False)
        self._node.read()  # what was told of our own changes
