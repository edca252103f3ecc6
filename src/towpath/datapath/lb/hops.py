# SPDX-License-Identifier: Apache-2.0
"""Has next hops towards backends kept resolved: of all of them, and first of those with traffic."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from towpath.datapath.lb.destinations import Destinations

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy as np

    from towpath.datapath.lb.contents import Contents
    from towpath.datapath.local.node import LocalNode
    from towpath.datapath.maps.source import TableSource
    from towpath.datapath.neigh.wanted import Resolver
    from towpath.model.service import ServiceKey
    from towpath.model.settings import Source

BUSY_SECONDS = 10.0
"""So often it is looked which backends get packets."""


class BackendHops:
    """Those of the services in ``contents``, wanted of ``resolver``; None: nobody keeps them."""

    def __init__(
        self,
        resolver: Resolver | None,
        source: Source,
        contents: Contents,
        local: LocalNode,
        tables: TableSource,
    ) -> None:
        self._resolver = resolver
        self._contents = contents
        self._local = local
        self._tables = tables
        self._destinations = Destinations(source, local.locality.is_here)
        self._seen: object = None
        self._busy_at = 0.0
        self._packets: np.ndarray[Any, Any] | None = None
        self.prefer_busy()
        self.follow(())

    def follow(self, changed: Collection[ServiceKey]) -> None:
        """Want those that services need by now, of which these have changed."""
        if self._resolver is None:
            return
        services = self._contents.tables.services
        # Tables that were read again may hold anything, and who is here is another question then.
        seen = self._contents.tables, self._local.seen
        if seen != self._seen:
            self._seen = seen
            self._destinations.begin(services)
        elif not self._destinations.change(services, changed):
            return
        self._resolver.want("services", self._destinations)

    def prefer_busy(self) -> None:
        """Have next hops of backends that get packets made first, when all have to be."""
        if self._resolver is None or time.monotonic() < self._busy_at:
            return
        self._busy_at = time.monotonic() + BUSY_SECONDS
        table = self._contents.tables.backends
        # As long as it is mapped it counts as memory of this process.
        with self._tables.maps["backend_cpus"].mmap(writable=False) as mapped:
            packets = mapped.array["packets"].reshape(self._tables.layout.cpus, -1).sum(axis=0)
        before, self._packets = self._packets, packets
        moved = packets != (0 if before is None else before)
        busy = (
            address
            for service in self._contents.installed
            if service.key.scope == "all"
            for address, handle in service.noted.items()
            if moved[table.index(handle)]
        )
        self._resolver.prefer(busy if moved.any() else ())
