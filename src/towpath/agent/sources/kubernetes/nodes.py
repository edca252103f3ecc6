# SPDX-License-Identifier: Apache-2.0
"""Tells others what Nodes say: next hops to keep resolved, and what masquerade goes by."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from towpath.agent.errors import REFUSALS
from towpath.core.kubernetes.nodes import believed, networks, rules
from towpath.datapath.neigh.next_hops import Destination

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from towpath.agent.sources.intake import Surroundings
    from towpath.model.kinds import Address
    from towpath.model.sources.kubernetes import Section, objects

log = logging.getLogger(__name__)


class NodeFeed:
    """Hands it on whenever it changes. The event loop's."""

    def __init__(self, section: Section, node: str, given: Surroundings) -> None:
        self._section, self._node, self._given = section, node, given
        self._wanted: tuple[Address, ...] | None = None
        self._told = False
        self._fault: str | None = None
        self.listed = True
        """All Nodes were listed since: it may lack some that are there."""
        self.accepting = False
        """Whatever the list lacks is believed."""
        self._held = ""

    async def hand_on(self, nodes: Iterable[objects.Node]) -> None:
        """These are all Nodes."""
        if not (self._section.node_neighbours or self._section.masquerades):
            return
        found = networks(nodes, self._node)
        if self._section.node_neighbours and found.others != self._wanted:
            self._wanted = found.others
            hops = tuple(Destination(each) for each in found.others)
            self._given.next_hops.want("kubernetes nodes", hops)
        prefixes = self._given.shared.prefixes
        if not self._section.masquerades or prefixes is None:
            return
        before = prefixes.sourced
        wanted = rules(self._section, found)
        if not self.accepting:
            share = self._section.lost_share
            listed = self.listed or bool(self._held)
            wanted, held = believed(before, wanted, share, listed=listed)
            if held and held != self._held:
                log.error("Kubernetes: a list lacks %s; they stay until this is accepted", held)
            self._held = held
        else:
            self._held = ""
        self.listed = self.accepting = False
        if wanted == before and self._told:
            return
        try:
            await self._given.change(prefixes.masquerade_pods, wanted)
        except (*REFUSALS, OSError) as error:
            self._fault = f"prefixes for masquerade could not be put into force: {error}"
            self._told = False
            log.warning("%s", self._fault)
            return
        self._told, self._fault = True, None

    @property
    def withholds(self) -> bool:
        """Whether something of a list isn't believed."""
        return bool(self._held)

    def troubles(self) -> Iterator[str]:
        """What keeps it from its work."""
        if self._fault:
            yield self._fault
        if self._held:
            yield (
                f"a list lacks {self._held}, which stay as they were; `towpath source accept"
                " kubernetes` takes it over"
            )
