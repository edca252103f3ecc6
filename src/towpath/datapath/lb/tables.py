# SPDX-License-Identifier: Apache-2.0
"""The single steps that change the services in the kernel.

Each step leaves the tables consistent, so that an agent that dies between two of
them leaves a load balancer that works. What such a death can leave behind is put
right by :meth:`towpath.datapath.lb.kernel_tables.KernelTables.adopt`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from towpath.core.lb import routes, service_table
from towpath.core.lb.options import Options
from towpath.datapath.lb.extents import NoExtentError
from towpath.datapath.lb.services import Installed, Row
from towpath.model.rules import route_slots
from towpath.model.service import BackendState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from towpath.datapath.address import Address
    from towpath.datapath.lb.extents import Extents
    from towpath.datapath.lb.lookup import Endpoints
    from towpath.model.kinds import Prefix
    from towpath.model.service import Backend, Service, ServiceKey, SourceRoute

    Array = np.ndarray[Any, Any]


class Rows(Protocol):
    """Rows of services: see :class:`towpath.datapath.lb.services.ServiceRows`."""

    def take(self) -> int:
        """Return an index that no service has."""

    def give_back(self, index: int) -> None:
        """Free an index that no packet finds any more."""

    def set_table(self, index: int, base: int, size: int) -> None:
        """Swap a service's table in one store."""


class Backends(Protocol):
    """Records of backends: see :class:`towpath.datapath.lb.backends.BackendTable`."""

    def add(self, service: int, backends: Sequence[Backend]) -> list[int]:
        """Write records and return their handles."""

    def note(self, handle: int, backend: Backend) -> None:
        """Note weight, state and port."""

    def renew(self, handle: int) -> int:
        """Give a backend that is in no table another handle, and return it."""

    def remove(self, handle: int) -> None:
        """Give a record up."""


class Slots(Protocol):
    """The Maglev array: see :class:`towpath.datapath.lb.maglev_table.MaglevSlots`."""

    def fill(self, base: int, make: Callable[[], Array]) -> int:
        """Store the handles (uint32) that ``make`` returns, from slot ``base`` on; their sum."""


class OptionsOfServices(Protocol):
    """Options of services: see :class:`towpath.datapath.lb.options.ServiceOptions`."""

    def write(self, index: int, options: Options) -> None:
        """Store a service's options."""

    def route(self, index: int, rows: Mapping[Prefix, int]) -> None:
        """Have a service's new flows from these prefixes go by the tables of these rows."""

    def retire(self, index: int) -> None:
        """Let go of what a service has taken that packets find no more."""


class Ids(Protocol):
    """Which ids name backends: see :class:`towpath.datapath.lb.quic.ServerIds`."""

    def enter(self, service: int, ids: Iterable[int], handle: int) -> None:
        """Have ids of a service name a backend."""

    def leave(self, service: int, ids: Iterable[int], handles: Collection[int]) -> None:
        """Have ids name nobody, but those that are another backend's than that of these handles."""


class Tables:
    """The steps, over the kernel's tables or over what stands in for them."""

    def __init__(
        self,
        endpoints: Endpoints,
        backends: Backends,
        extents: Extents,
        slots: Slots,
        rows: Rows,
        options: OptionsOfServices,
        server_ids: Ids,
    ) -> None:
        self._endpoints = endpoints
        self._backends = backends
        self._extents = extents
        self._rows = rows
        self._options = options
        self._slots = slots
        self._server_ids = server_ids
        self.services: dict[ServiceKey, Installed] = {}

    # ---- steps ----------------------------------------------------------

    def create(self, service: Service) -> None:
        """Prepare a service that nothing leads to yet."""
        key = service.key
        self.services[key] = Installed(key, self._rows.take(), Options())
        self.set_options(key, Options.of(service))

    def publish(self, key: ServiceKey) -> None:
        """Let packets find the service."""
        self._endpoints.publish(key, self.services[key].index)

    def move(self, key: ServiceKey, to: ServiceKey) -> None:
        """Let packets find the service by other ports."""
        service = self.services.pop(key)
        self.services[to] = service
        service.key = to
        self._endpoints.move(key, to, service.index)

    def withdraw(self, key: ServiceKey) -> None:
        """Let packets to this VIP pass to the kernel."""
        self._endpoints.withdraw(key, self.services[key].index)

    def discard(self, key: ServiceKey) -> None:
        """Give up a withdrawn service that has no backends left."""
        service = self.services.pop(key)
        self._replace_table(service, 0, 0)
        self._options.retire(service.index)
        self._rows.give_back(service.index)

    def set_options(self, key: ServiceKey, options: Options) -> None:
        """Change how a service works; a new size holds from the next table on."""
        service = self.services[key]
        self._options.write(service.index, options)
        service.options = options

    def add_backends(self, key: ServiceKey, backends: Sequence[Backend]) -> None:
        """Write backends' records, and have ids name them. Flows reach them by the next table."""
        service = self.services[key]
        handles = self._backends.add(service.index, backends)
        service.noted.add(backends, handles)
        for backend, handle in zip(backends, handles, strict=True):
            if backend.server_id:
                self._server_ids.enter(service.index, backend.server_id, handle)

    def set_server_ids(self, key: ServiceKey, backends: Sequence[Backend]) -> None:
        """Have ids name backends as these say, which are there.

        All that they are to have are written before one that they had goes.
        """
        service = self.services[key]
        noted = service.noted
        for each in backends:
            self._server_ids.enter(service.index, each.server_id, noted.handle(each.address))
        for each in backends:
            before, handle = noted.backend(each.address), noted.handle(each.address)
            gone = [number for number in before.server_id if number not in each.server_id]
            self._server_ids.leave(service.index, gone, (handle,))
            noted.set(replace(before, server_id=each.server_id), handle)

    def set_backend(self, key: ServiceKey, backend: Backend) -> None:
        """Note a backend's weight and state, which take effect by the next table; and its port.

        One that goes down, and is in no table, gets a new handle: its flows move at once. Its ids
        are those that it has.
        """
        service = self.services[key]
        handle = service.noted.handle(backend.address)
        down = backend.state is BackendState.DOWN
        if down and service.noted.backend(backend.address).state is not BackendState.DOWN:
            handle = self._backends.renew(handle)
        self._backends.note(handle, backend)
        service.noted.set(backend, handle)
        if down and backend.server_id:
            self._server_ids.enter(service.index, backend.server_id, handle)

    def remove_backend(self, key: ServiceKey, address: Address) -> None:
        """Give up a backend that is in no table, and its ids: its flows move at once."""
        service = self.services[key]
        ids, handle = service.noted.backend(address).server_id, service.noted.handle(address)
        self._backends.remove(handle)
        service.noted.remove(address)
        self._server_ids.leave(service.index, ids, (handle,))

    def set_table(self, key: ServiceKey, members: Iterable[Backend]) -> None:
        """Make ``members``, which have records, share the service's new flows."""
        service, members = self.services[key], tuple(members)
        for row in service.routes:
            self._fill_row(service, row, members)
        if not any(each.takes_flows for each in members):
            self._replace_table(service, 0, 0)
            return
        base = self._allocate(service.table_size)
        made = self._slots.fill(base, lambda: self._table(service, members))
        self._replace_table(service, base, service.table_size)
        service.sum = made

    def set_routes(
        self, key: ServiceKey, wanted: Iterable[SourceRoute], members: Iterable[Backend]
    ) -> None:
        """Have new flows of some sources go to some of ``members``, which have records.

        A route whose sources stay keeps its row, and has another table. The others are there when
        the service names them, all in one store, and those that go are given up after that.
        """
        service, members = self.services[key], tuple(members)
        before = {each.sources: each for each in service.routes}
        service.routes = ()
        for route in wanted:
            row = before.pop(route.sources, None) or Row(
                route.sources, frozenset(), self._rows.take()
            )
            row.backends = frozenset(route.backends)
            service.routes = (*service.routes, row)
            self._fill_row(service, row, members)
        rows = {prefix: row.index for row in service.routes for prefix in row.sources}
        self._options.route(service.index, rows)
        for row in before.values():
            self._replace_table(row, 0, 0)
            self._rows.give_back(row.index)

    # ---- within ---------------------------------------------------------

    def _table(self, service: Installed, members: Iterable[Backend]) -> Array:
        """Return the handles of the service's table, slot by slot."""
        members = tuple(members)
        handles = np.array(service.noted.handles_of(members), np.uint32)
        return np.take(handles, service_table.table(members, service.table_size))

    def _allocate(self, count: int) -> int:
        base = self._extents.allocate(count)
        if base is None:
            what = "Maglev slots in one piece"
            raise NoExtentError(what, count, self._extents.largest, "table_slots")
        return base

    def _row_table(self, service: Installed, row: Row, members: Sequence[Backend]) -> Array:
        """Return the handles of a route's table, slot by slot."""
        chosen, slots = routes.table(members, row.backends, service.table_size)
        return np.array(service.noted.handles_of(chosen), np.uint32)[slots]

    def _fill_row(self, service: Installed, row: Row, members: Sequence[Backend]) -> None:
        chosen = [each for each in members if each.address in row.backends]
        if not any(each.takes_flows for each in chosen):
            self._replace_table(row, 0, 0)
            return
        size = route_slots(len(row.backends), service.table_size)
        base = self._allocate(size)
        made = self._slots.fill(base, lambda: self._row_table(service, row, members))
        self._replace_table(row, base, size)
        row.sum = made

    def _replace_table(self, service: Installed | Row, base: int, size: int) -> None:
        """Swap the table in one store; the old one is retired."""
        self._rows.set_table(service.index, base, size)
        old_base, old_size = service.base, service.size
        service.base, service.size, service.sum = base, size, 0
        if old_size:
            self._extents.retire(old_base, old_size)
