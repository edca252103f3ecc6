# SPDX-License-Identifier: Apache-2.0
"""The tables that the program reads: changed step by step, and taken over after a death.

What a death between two steps can leave behind is found and put right:

* backends of a service that no VIP leads to: given up;
* backends that take flows by their record and that no table knows: given up;
* a table that isn't the one that its backends make: made again, but if it would be
  empty, they are noted as the table has them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from towpath.core.lb.options import Options
from towpath.core.lb.routes import prefixes_in_order
from towpath.datapath.lb.services import Installed, Row
from towpath.datapath.lb.tables import Tables
from towpath.model.service import BackendState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from towpath.datapath.address import Address
    from towpath.datapath.lb.backends import BackendTable
    from towpath.datapath.lb.extents import Extents
    from towpath.datapath.lb.local import LocalBackends
    from towpath.datapath.lb.lookup import Endpoints
    from towpath.datapath.lb.maglev_table import Slots
    from towpath.datapath.lb.options import ServiceOptions
    from towpath.datapath.lb.quic import ServerIds
    from towpath.datapath.lb.services import ServiceRows
    from towpath.model.kinds import Prefix
    from towpath.model.service import Backend, ServiceKey


class KernelTables(Tables):
    """Everything that user space writes and the program reads."""

    def __init__(
        self,
        endpoints: Endpoints,
        backends: BackendTable,
        extents: Extents,
        slots: Slots,
        rows: ServiceRows,
        options: ServiceOptions,
        local: LocalBackends,
        server_ids: ServerIds,
    ) -> None:
        super().__init__(endpoints, backends, extents, slots, rows, options)
        self.endpoints = endpoints
        self.backends = backends
        self.extents = extents
        self.slots = slots
        self.rows = rows
        self.options = options
        self.local = local
        self.server_ids = server_ids
        self._moved: list[Installed] = []
        """Those that packets find by other keys, too."""

    def set_options(self, key: ServiceKey, options: Options) -> None:
        """Change how a service works, and with it which backends are delivered here."""
        super().set_options(key, options)
        self.local.sync((self.services[key],))

    def add_backends(self, key: ServiceKey, backends: Sequence[Backend]) -> None:
        """Write backends' records, whether they are here, and which ids name them."""
        super().add_backends(key, backends)
        self.local.enter(self.services[key], backends)
        for backend in backends:
            self.server_ids.enter(self.services[key], backend.address)

    def set_backend(self, key: ServiceKey, backend: Backend) -> None:
        """Note weight, state and port; of one with another handle also whether it is here."""
        service, address = self.services[key], backend.address
        before, handle = service.records[address].server_id, service.handles[address]
        super().set_backend(key, backend)
        self.local.note(service, address)
        self.server_ids.enter(service, address)
        if before != backend.server_id:
            self.server_ids.leave(service.index, before, (handle, service.handles[address]))

    def remove_backend(self, key: ServiceKey, address: Address) -> None:
        """Give up a backend that is in no table, and its id."""
        service = self.services[key]
        server_id, handle = service.records[address].server_id, service.handles[address]
        super().remove_backend(key, address)
        self.server_ids.leave(service.index, server_id, (handle,))

    def adopt(self) -> None:
        """Take over what the kernel holds, and put right what was left half done."""
        used: dict[int, Installed] = {}
        for key, index in self.endpoints.adopt():
            if index in used:
                # A move was begun. Packets find it by both until the next apply has said which.
                used[index].also |= {key}
                self._moved.append(used[index])
                continue
            used[index] = Installed(key, index, Options())
        for index, options in self.options.adopt(used).items():
            used[index].options = options
        for service in used.values():
            self._adopt_rows(service)
        rows = {row.index for service in used.values() for row in service.routes}
        self.rows.reserve(used.keys() | rows)

        records: defaultdict[int, list[tuple[int, Backend]]] = defaultdict(list)
        there = list(self.backends)
        ids = self.server_ids.adopt({handle for index, handle, _ in there if index in used})
        for index, handle, backend in there:
            if index in used:
                named = replace(backend, server_id=ids[handle]) if handle in ids else backend
                records[index].append((handle, named))
            else:
                self.backends.remove(handle)
        # All ranges in use first: a table that is made again must not get one of them.
        for service in used.values():
            self._adopt_range(service)
            for row in service.routes:
                self._adopt_range(row)
        for index, service in used.items():
            self.services[service.key] = service
            self._adopt_service(service, records[index])

    def _adopt_rows(self, service: Installed) -> None:
        """Find the routes of a service; which backends they have their tables say."""
        sources: defaultdict[int, list[Prefix]] = defaultdict(list)
        for prefix, index in self.options.rows_of(service.index).items():
            sources[index].append(prefix)
        service.routes = [
            Row(prefixes_in_order(found), frozenset(), index) for index, found in sources.items()
        ]

    def _adopt_range(self, service: Installed | Row) -> None:
        service.base, service.size = self.rows.table(service.index)
        if service.size:
            self.extents.reserve(service.base, service.size)

    def _adopt_service(self, service: Installed, records: list[tuple[int, Backend]]) -> None:
        found = self.slots.read(service.base, service.size)
        known = set(np.unique(found).tolist())
        for handle, backend in records:
            if handle in known or not backend.takes_flows:
                service.handles[backend.address] = handle
                service.records[backend.address] = self.local.as_told(service, backend, handle)
            else:
                self.backends.remove(handle)
                self.server_ids.leave(service.index, backend.server_id, (handle,))
        if known and not any(each.takes_flows for each in service.backends()):
            self._believe_table(service, known)
        whole = np.array_equal(self._table(service, service.backends()), found)
        if not all([*(self._adopt_row(service, row) for row in service.routes), whole]):
            self.set_table(service.key, service.backends())

    def _adopt_row(self, service: Installed, row: Row) -> bool:
        """Learn which backends a route has; whether its table is the one that they make."""
        found = self.slots.read(row.base, row.size)
        there = set(np.unique(found).tolist())
        row.backends = frozenset(a for a, handle in service.handles.items() if handle in there)
        return np.array_equal(self._row_table(service, row, service.backends()), found)

    def _believe_table(self, service: Installed, known: set[int]) -> None:
        """Note as active whatever the table has, where by the records it would be empty.

        Either the records were to follow the table or the table the records; until the
        next apply has said which, new flows go on.
        """
        for backend in service.backends():
            if service.handles[backend.address] in known:
                active = replace(backend, weight=backend.weight or 1, state=BackendState.ACTIVE)
                self.set_backend(service.key, active)

    def withdraw_leftovers(self) -> None:
        """Withdraw the keys that a death has left and that no service has taken since."""
        for service in self._moved:
            for key in service.also:
                if key not in self.services:
                    self.endpoints.withdraw(key, service.index)
            service.also = frozenset()
        self._moved.clear()
