# SPDX-License-Identifier: Apache-2.0
"""The tables that the program reads: changed step by step, and taken over after a death.

What a death between two steps can leave behind is found and put right:

* backends of a service that no VIP leads to: given up;
* backends that take flows by their record and that no table knows: given up;
* a table that isn't the one that its backends make: made again, but if it would be
  empty, they are noted as the table has them.

A service that has its mark (:mod:`towpath.datapath.lb.marks`) is as it was meant to be, and isn't
looked at any closer.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from towpath.core.lb.options import Options
from towpath.core.lb.routes import prefixes_in_order
from towpath.datapath.lb.noted import Noted
from towpath.datapath.lb.services import Installed, Row
from towpath.datapath.lb.tables import Tables
from towpath.model.service import BackendState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from towpath.datapath.address import Address
    from towpath.datapath.lb.backends import BackendTable, Records
    from towpath.datapath.lb.extents import Extents
    from towpath.datapath.lb.local import LocalBackends
    from towpath.datapath.lb.lookup import Endpoints
    from towpath.datapath.lb.maglev_table import Slots
    from towpath.datapath.lb.marks import Marks
    from towpath.datapath.lb.options import ServiceOptions
    from towpath.datapath.lb.quic import ServerIds
    from towpath.datapath.lb.services import ServiceRows
    from towpath.model.kinds import Prefix
    from towpath.model.service import Backend, Service, ServiceKey


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
        marks: Marks,
    ) -> None:
        super().__init__(endpoints, backends, extents, slots, rows, options, server_ids)
        self.endpoints = endpoints
        self.backends = backends
        self.extents = extents
        self.slots = slots
        self.rows = rows
        self.options = options
        self.local = local
        self.server_ids = server_ids
        self.marks = marks
        self._moved: list[Installed] = []
        """Those that packets find by other keys, too."""

    def set_options(self, key: ServiceKey, options: Options) -> None:
        """Change how a service works, and with it which backends are delivered here."""
        super().set_options(key, options)
        self.local.sync((self.services[key],))

    def add_backends(self, key: ServiceKey, backends: Sequence[Backend]) -> None:
        """Write backends' records, which ids name them, and whether they are here."""
        super().add_backends(key, backends)
        self.local.enter(self.services[key], backends)

    def set_backend(self, key: ServiceKey, backend: Backend) -> None:
        """Note weight, state and port; of one with another handle also whether it is here."""
        super().set_backend(key, backend)
        self.local.note(self.services[key], backend.address)

    def adopt(self, known: Mapping[ServiceKey, Service] | None = None) -> set[ServiceKey]:
        """Take over what the kernel holds, and put right what was left half done.

        ``known``: services that may be there. Returns those that are there, all of their backends
        and options: these backends are then what is in ``services``.
        """
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

        # All ranges in use first: a table that is made again must not get one of them.
        self._adopt_ranges(used)
        records, others = self.backends.records(list(used))
        for handle in others:
            self.backends.remove(handle)
        ids = self.server_ids.adopt({*records.handles})
        as_meant = self._as_meant(used, records, ids)
        as_known = self._as_known(used.values(), as_meant, records, known or {})
        for at, service in enumerate(used.values()):
            self.services[service.key] = service
            if at in as_known:
                service.noted = Noted(as_known[at], records.handles[records.of(at)])
            elif at in as_meant:
                self._take_over(service, records.read(at))
            else:
                named = [
                    (handle, replace(each, server_id=ids[handle]) if handle in ids else each)
                    for handle, each in records.read(at)
                ]
                self._put_right(service, named)
        every = list(used.values())
        self.marks.write(each for at, each in enumerate(every) if at not in as_meant)
        return {every[at].key for at in as_known}

    def _adopt_rows(self, service: Installed) -> None:
        """Find the routes of a service; which backends they have their tables say."""
        sources: defaultdict[int, list[Prefix]] = defaultdict(list)
        for prefix, index in self.options.rows_of(service.index).items():
            sources[index].append(prefix)
        service.routes = tuple(
            [Row(prefixes_in_order(found), frozenset(), index) for index, found in sources.items()]
        )

    def _adopt_ranges(self, used: Mapping[int, Installed]) -> None:
        having: list[Installed | Row] = [*used.values()]
        having += [row for service in used.values() for row in service.routes]
        tables = self.rows.tables([each.index for each in having])
        for service, table in zip(having, tables, strict=True):
            service.base, service.size = table
        # In the order of where they are, each leaves one range free behind it.
        for service in sorted(having, key=lambda each: each.base):
            if service.size:
                self.extents.reserve(service.base, service.size)

    def _as_meant(
        self, used: Mapping[int, Installed], records: Records, ids: Mapping[int, object]
    ) -> frozenset[int]:
        """Return the places of those that are as the process left them which changed them last.

        Ids of servers, and tables of routes, are in no mark: who has some is looked at. Ids outlive
        the option that has packets go by them until their backends' records are written.
        """
        having = [each for each in used.values() if each.size]
        sums = self.slots.sums([(each.base, each.size) for each in having])
        for service, found in zip(having, sums, strict=True):
            service.sum = found
        marked = self.marks.found(list(used), records, [each.sum for each in used.values()])
        # What a change of the size has not come to yet isn't in a mark.
        sized = [
            each.size in {0, each.table_size} and not each.routes and each.options.quic is None
            for each in used.values()
        ]
        places: list[int] = np.flatnonzero(marked & np.array(sized, bool)).tolist()
        if ids:
            places = [at for at in places if ids.keys().isdisjoint(records.handles[records.of(at)])]
        return frozenset(places)

    def _as_known(
        self,
        used: Iterable[Installed],
        as_meant: Collection[int],
        records: Records,
        known: Mapping[ServiceKey, Service],
    ) -> dict[int, tuple[Backend, ...]]:
        """Return, of those that are as meant, the places and backends of those that are known."""
        wanted = {}
        for at, service in enumerate(used):
            found = known.get(service.key) if at in as_meant else None
            # Those that are as meant have no routes.
            if found is None or found.route_from:
                continue
            if Options.of(found) == service.options:
                wanted[at] = found.backends
        entered = self.local.handles()
        return {
            at: wanted[at]
            for at in records.equal(wanted)
            # Of one that is here as it may be told why.
            if not entered or entered.isdisjoint(records.handles[records.of(at)])
        }

    def _take_over(self, service: Installed, records: list[tuple[int, Backend]]) -> None:
        """Believe what is there."""
        backends = [self.local.as_told(service, backend, handle) for handle, backend in records]
        service.noted = Noted(backends, [handle for handle, _ in records])

    def _put_right(self, service: Installed, records: list[tuple[int, Backend]]) -> None:
        """Look at all that is there."""
        found = self.slots.read(service.base, service.size)
        known = set(np.unique(found).tolist())
        kept: dict[Address, tuple[int, Backend]] = {}
        for handle, backend in records:
            if handle in known or not backend.takes_flows:
                kept[backend.address] = handle, backend
            else:
                self.backends.remove(handle)
                self.server_ids.leave(service.index, backend.server_id, (handle,))
        self._take_over(service, list(kept.values()))
        if known and not any(each.takes_flows for each in service.backends()):
            self._believe_table(service, known)
        whole = np.array_equal(self._table(service, service.backends()), found)
        if not all([*(self._adopt_row(service, row) for row in service.routes), whole]):
            self.set_table(service.key, service.backends())

    def _adopt_row(self, service: Installed, row: Row) -> bool:
        """Learn which backends a route has; whether its table is the one that they make."""
        found = self.slots.read(row.base, row.size)
        there = set(np.unique(found).tolist())
        row.backends = frozenset(a for a, handle in service.noted.items() if handle in there)
        return np.array_equal(self._row_table(service, row, service.backends()), found)

    def _believe_table(self, service: Installed, known: set[int]) -> None:
        """Note as active whatever the table has, where by the records it would be empty.

        Either the records were to follow the table or the table the records; until the
        next apply has said which, new flows go on.
        """
        for backend in service.backends():
            if service.noted.handle(backend.address) in known:
                active = replace(backend, weight=backend.weight or 1, state=BackendState.ACTIVE)
                self.set_backend(service.key, active)

    def mark(self, keys: Iterable[ServiceKey]) -> None:
        """Say of those of these services that are there that they are as they are to be."""
        self.marks.write(self.services[key] for key in keys if key in self.services)

    def withdraw_leftovers(self) -> None:
        """Withdraw the keys that a death has left and that no service has taken since."""
        for service in self._moved:
            for key in service.also:
                if key not in self.services:
                    self.endpoints.withdraw(key, service.index)
            service.also = frozenset()
        self._moved.clear()
