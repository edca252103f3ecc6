# SPDX-License-Identifier: Apache-2.0
"""Node ports where a process of this node listens as well: it isn't reached there any more."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from towpath.core.kubernetes.problems import Refusal
from towpath.kernel.errors import KernelError
from towpath.kernel.net.sockets import listening
from towpath.model.service import Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from towpath.core.kubernetes.cluster import NodePort
    from towpath.core.kubernetes.translate import Here

log = logging.getLogger(__name__)


class HeldPorts:
    """Which of the node ports that are served are held by processes, when somebody last looked."""

    def __init__(self) -> None:
        self.refusals: tuple[Refusal, ...] = ()
        self._refused = ""

    def look(self, served: Collection[NodePort], here: Here) -> None:
        """See who listens at these ports, at addresses of the node that have node ports."""
        try:
            self.refusals = tuple(_found(served, here))
        except KernelError as error:
            if str(error) != self._refused:
                log.warning("Kubernetes: which node ports processes hold isn't known: %s", error)
            self._refused = str(error)


def _found(served: Collection[NodePort], here: Here) -> Iterator[Refusal]:
    at, node = here.node_ports, here.node
    for protocol in Protocol:
        wanted = {each.port: each for each in served if each.protocol is protocol}
        if not wanted or not at:
            continue
        held = listening(protocol.number, min(wanted), max(wanted))
        for listener in sorted(held, key=lambda each: (each.port, str(each.address))):
            each = wanted.get(listener.port)
            where = listener.address
            if each is None or not (where in at or where.is_unspecified):
                continue
            what = (
                f"nodePort {each.port}/{protocol}: a process of node {node} listens at {where} as"
                " well; the Service gets what is for it"
            )
            yield Refusal("Service", each.namespace, each.name, "NodePortInUse", what)
