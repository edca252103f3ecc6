# SPDX-License-Identifier: Apache-2.0
"""Masquerade that follows the node, with a thread of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.datapath.follow import NodeFollower
from towpath.datapath.masquerade.node import Node

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from towpath.model.masquerade import Section


class Follower(NodeFollower[Node]):
    """Masquerade of pods, in the calling thread's network namespace, until it is closed.

    ``named_sources``, ``indirect``, KernelError, OSError: as for `Node`.
    """

    name = "masquerade"
    settle_seconds = 0.01

    def __init__(
        self,
        section: Section,
        pins: Path,
        *,
        named_sources: bool | None = None,
        indirect: Sequence[str] = (),
    ) -> None:
        super().__init__(
            lambda: Node(section, pins, named_sources=named_sources, indirect=indirect)
        )

    def replace_rules(self, section: Section) -> None:
        """Go by other rules from now on. KernelError: there is no room for them."""
        self.asked(lambda node: node.replace_rules(section))

    def replace_indirect(self, indirect: Sequence[str]) -> None:
        """Have others be indirect from now on. KernelError, OSError."""
        self.asked(lambda node: node.replace_indirect(indirect))

    def _look(self) -> None:
        self._node.watch_ports()
        super()._look()
