# SPDX-License-Identifier: Apache-2.0
"""The services that are in the kernel, and the single steps that change them.

Each step leaves the tables consistent, so that an agent that dies between two of
them leaves a load balancer that works. What such a death can leave behind is
found and put right by :meth:`Tables.adopt`:

* backends of a service that no VIP leads to: given up;
* backends that take flows by their record and that no table knows: given up;
* a table that isn't the one that its backends make: made again, but if it would be
  empty, they are noted as the table has them.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from towpath.core.lb import sharing
from towpath.core.lb.options import Options
from towpath.datapath.errors import CapacityError
from towpath.model.service import BackendState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from towpath.datapath.address import Address
    from towpath.datapath.lb.backends import BackendTable
    from towpath.datapath.lb.extents import Heap
    from towpath.datapath.lb.grace import Reclaimer
    from towpath.datapath.lb.lookup import Endpoints
    from towpath.datapath.lb.options import ServiceOptions
    from towpath.model.service import Backend, Service, ServiceKey

    Array = np.ndarray[Any, Any]

_SIZE_SHIFT = 32


class Slots(Protocol):
    """Reads and writes ranges of the Maglev array."""

    def write(self, base: int, handles: Array) -> None:
        """Store handles from slot ``base`` on."""

    def read(self, base: int, count: int) -> Array:
        """Return a copy of ``count`` handles from slot ``base`` on."""


@dataclass
class Installed:
    """One service as it is in the kernel."""

    key: ServiceKey
    index: int
    options: Options
    base: int = 0
    size: int = 0
    """Slots of the table in use; 0 while there is no backend that takes flows."""
    handles: dict[Address, int] = field(default_factory=dict)
    also: set[ServiceKey] = field(default_factory=set)
    """Other keys that packets find it by: left by a process that died while it moved it."""
    records: dict[Address, Backend] = field(default_factory=dict)
    """Backends as they are noted in the kernel."""

    @property
    def table_size(self) -> int:
        """Slots that its table is to have."""
        return self.options.table_size

    def backends(self) -> tuple[Backend, ...]:
        """Return the backends that have a record."""
        return tuple(self.records.values())


class Tables:
    """Everything that user space writes and the program reads."""

    def __init__(
        self,
        endpoints: Endpoints,
        backends: BackendTable,
        heap: Heap,
        slots: Slots,
        services: Array,
        options: ServiceOptions,
        reclaimer: Reclaimer,
        forget_service: Callable[[int], None],
    ) -> None:
        self.endpoints = endpoints
        self._backends = backends
        self._heap = heap
        self._slots = slots
        self._rows = services
        self._options = options
        self._reclaimer = reclaimer
        self._forget = forget_service
        self._free_indexes = deque(range(1, len(services)))
        self.services: dict[ServiceKey, Installed] = {}

    # ---- steps ----------------------------------------------------------

    def create(self, service: Service) -> None:
        """Prepare a service that nothing leads to yet."""
        if not self._free_indexes:
            self._reclaimer.flush()
        if not self._free_indexes:
            limit = len(self._rows) - 1
            raise CapacityError("services", limit + 1, limit, "services")
        index = self._free_indexes.popleft()
        self._forget(index)
        self._rows[index]["table"] = 0
        self.services[service.key] = Installed(service.key, index, Options())
        self.set_options(service.key, Options.of(service))

    def publish(self, key: ServiceKey) -> None:
        """Let packets find the service."""
        self.endpoints.publish(key, self.services[key].index)

    def move(self, key: ServiceKey, to: ServiceKey) -> None:
        """Let packets find the service by other ports."""
        service = self.services.pop(key)
        self.services[to] = service
        service.key = to
        self.endpoints.move(key, to, service.index)

    def withdraw(self, key: ServiceKey) -> None:
        """Let packets to this VIP pass to the kernel."""
        self.endpoints.withdraw(key, self.services[key].index)

    def discard(self, key: ServiceKey) -> None:
        """Give up a withdrawn service that has no backends left."""
        service = self.services.pop(key)
        self._replace_table(service, 0, 0)
        self._options.give_up(service.index)
        self._reclaimer.defer(lambda: self._free_indexes.append(service.index))

    def set_options(self, key: ServiceKey, options: Options) -> None:
        """Change how a service works; a new size holds from the next table on."""
        service = self.services[key]
        self._options.write(service.index, options)
        service.options = options

    def add_backend(self, key: ServiceKey, backend: Backend) -> None:
        """Write a backend's record. Flows reach it by the next table."""
        service = self.services[key]
        service.handles[backend.address] = self._backends.add(service.index, backend)
        service.records[backend.address] = backend

    def set_backend(self, key: ServiceKey, backend: Backend) -> None:
        """Note a backend's weight and state, which take effect by the next table; and its port.

        One that goes down, and is in no table, gets a new handle: its flows move at once.
        """
        service = self.services[key]
        handle = service.handles[backend.address]
        down = backend.state is BackendState.DOWN
        if down and service.records[backend.address].state is not BackendState.DOWN:
            handle = self._backends.renew(handle)
        self._backends.note(handle, backend)
        service.handles[backend.address] = handle
        service.records[backend.address] = backend

    def remove_backend(self, key: ServiceKey, address: Address) -> None:
        """Give up a backend that is in no table: its flows move at once."""
        service = self.services[key]
        self._backends.remove(service.handles.pop(address))
        del service.records[address]

    def set_table(self, key: ServiceKey, members: Iterable[Backend]) -> None:
        """Make ``members``, which have records, share the service's new flows."""
        service = self.services[key]
        handles = self._table(service, members)
        if not len(handles):
            self._replace_table(service, 0, 0)
            return
        base = self._allocate(len(handles))
        self._slots.write(base, handles)
        self._replace_table(service, base, len(handles))

    # ---- after a restart ------------------------------------------------

    def adopt(self) -> None:
        """Take over what the kernel holds, and put right what was left half done."""
        used: dict[int, Installed] = {}
        for key, index in self.endpoints.adopt():
            if index in used:
                # A move was begun. Packets find it by both until the next apply has said which.
                used[index].also.add(key)
                continue
            used[index] = Installed(key, index, Options())
        for index, options in self._options.adopt(used).items():
            used[index].options = options
        self._free_indexes = deque(i for i in self._free_indexes if i not in used)

        records: defaultdict[int, list[tuple[int, Backend]]] = defaultdict(list)
        for index, handle, backend in list(self._backends):
            if index in used:
                records[index].append((handle, backend))
            else:
                self._backends.remove(handle)
        # All ranges in use first: a table that is made again must not get one of them.
        for service in used.values():
            self._adopt_range(service)
        for index, service in used.items():
            self.services[service.key] = service
            self._adopt_service(service, records[index])

    def _adopt_range(self, service: Installed) -> None:
        word = int(self._rows[service.index]["table"])
        service.base, service.size = word & (1 << _SIZE_SHIFT) - 1, word >> _SIZE_SHIFT
        if service.size:
            self._heap.reserve(service.base, service.size)

    def _adopt_service(self, service: Installed, records: list[tuple[int, Backend]]) -> None:
        found = self._slots.read(service.base, service.size)
        known = set(np.unique(found).tolist())
        for handle, backend in records:
            if handle in known or not backend.takes_flows:
                service.handles[backend.address] = handle
                service.records[backend.address] = backend
            else:
                self._backends.remove(handle)
        if known and not any(each.takes_flows for each in service.backends()):
            self._believe_table(service, known)
        if not np.array_equal(self._table(service, service.backends()), found):
            self.set_table(service.key, service.backends())

    def _believe_table(self, service: Installed, known: set[int]) -> None:
        """Note as active whatever the table has, where by the records it would be empty.

        Either the records were to follow the table or the table the records; until the
        next apply has said which, new flows go on.
        """
        for backend in service.backends():
            if service.handles[backend.address] in known:
                active = replace(backend, weight=backend.weight or 1, state=BackendState.ACTIVE)
                self.set_backend(service.key, active)

    def settle(self) -> None:
        """Withdraw the keys that a death has left and that no service has taken since."""
        for service in self.services.values():
            for key in service.also:
                if key not in self.services:
                    self.endpoints.withdraw(key, service.index)
            service.also.clear()

    # ---- within ---------------------------------------------------------

    def _table(self, service: Installed, members: Iterable[Backend]) -> Array:
        """Return the handles of the service's table, slot by slot."""
        members = tuple(members)
        handles = np.array([service.handles[b.address] for b in members], np.uint32)
        return handles[sharing.table(members, service.table_size)]

    def _allocate(self, count: int) -> int:
        base = self._heap.allocate(count)
        if base is None:
            largest = self._heap.largest
            raise CapacityError("Maglev slots in one piece", count, largest, "table_slots")
        return base

    def _replace_table(self, service: Installed, base: int, size: int) -> None:
        """Swap the table in one store; the old one rests."""
        self._rows["table"][service.index] = base | size << _SIZE_SHIFT
        old_base, old_size = service.base, service.size
        service.base, service.size = base, size
        if old_size:
            self._heap.rest(old_base, old_size)
