# SPDX-License-Identifier: Apache-2.0
"""The kernel's tables in memory of this process, and what packets would see in them."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any

import numpy as np
from tests.unit.datapath.harness_program import BTF, LINE, handle_of, service_of

from towpath.core.lb import maglev
from towpath.datapath.address import unpack
from towpath.datapath.lb.admission import check
from towpath.datapath.lb.backends import BackendTable
from towpath.datapath.lb.encap import Encaps
from towpath.datapath.lb.extents import Extents
from towpath.datapath.lb.grace import Reclaimer
from towpath.datapath.lb.kernel_tables import KernelTables
from towpath.datapath.lb.local import LocalBackends
from towpath.datapath.lb.lookup import Endpoints, Lengths, pack_key
from towpath.datapath.lb.marks import Marks
from towpath.datapath.lb.options import Flags, ServiceOptions
from towpath.datapath.lb.port_pages import PortPages
from towpath.datapath.lb.quic import Forms, ServerIds
from towpath.datapath.lb.quic_index import IdIndex
from towpath.datapath.lb.services import ServiceRows
from towpath.datapath.lb.sources import SourceSets
from towpath.datapath.lb.vips import VipIndex
from towpath.model import BackendState, Service, ServiceKey
from towpath.native.library import slot_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tests.unit.datapath.harness_program import Array

    from towpath.core.lb.plan import Transition
    from towpath.model import Address
    from towpath.model.kinds import Prefix

INDEX_BITS = int(BTF.enum("handle_bits")["HANDLE_INDEX_BITS"])
STATES = {state: int(BTF.enum("backend_state")[f"BACKEND_{state.name}"]) for state in BackendState}
PREFIX = int(BTF.enum("vip_kind")["VIP_PREFIX"])
WHOLE = int(BTF.enum("port_pages")["PORT_WHOLE"])
LENGTHS = int(BTF.enum("vip_families")["VIP_LENGTHS"])
PROBES = int(BTF.enum("vip_limits")["VIP_PROBES"])
NO_FLOW_TABLE = int(BTF.enum("service_flags")["SERVICE_NO_FLOW_TABLE"])
L2 = int(BTF.enum("service_flags")["SERVICE_L2"])
SNAT = int(BTF.enum("service_flags")["SERVICE_SNAT"])
LOCAL = int(BTF.enum("service_flags")["SERVICE_LOCAL"])
SOURCE_BITS = int(BTF.enum("source_limits")["SOURCE_BITS"])
ENCAPS = Encaps(lambda enum, name: int(BTF.enum(enum)[name]))
FORMS = Forms(lambda enum, name: int(BTF.enum(enum)[name]))
ROUTES_SHIFT = int(BTF.enum("service_flags")["SERVICE_ROUTES_SHIFT"])
MORE = (
    "SERVICE_ENCAP",
    "SERVICE_HASH_CLIENT",
    "SERVICE_HASH_PORT",
    "SERVICE_QUIC",
    "SERVICE_ROUTES_SHIFT",
)
FLAGS = Flags(
    NO_FLOW_TABLE, L2, SNAT, LOCAL, *(int(BTF.enum("service_flags")[each]) for each in MORE)
)
ID_PROBES = int(BTF.enum("quic_limits")["QUIC_PROBES"])
SOURCE_KEY = BTF.dtype("source_key")

View = list["Address | None"]
"""The backend that each slot of a service's table leads to."""


@dataclass
class Memory:
    """What outlives a process, with room for all that the tests' services need at one time."""

    services_limit: int = 20
    backends_limit: int = 24
    table_slots: int = 72 * LINE
    port_pages: int = 8
    ids_limit: int = 20
    sources_limit: int = 32
    sources: dict[bytes, int] = field(default_factory=dict)
    """The trie of source prefixes."""
    vips: Array = field(init=False)
    lengths: Array = field(init=False)
    pages: Array = field(init=False)
    services: Array = field(init=False)
    backends: Array = field(init=False)
    local: Array = field(init=False)
    marks: Array = field(init=False)
    slots: Array = field(init=False)
    quic_forms: Array = field(init=False)
    ids: Array = field(init=False)

    def __post_init__(self) -> None:
        self.vips = np.zeros(128, BTF.dtype("vip_slot"))
        self.lengths = np.zeros(1, BTF.dtype("vip_lengths"))
        self.pages = np.zeros(self.port_pages + 1, BTF.dtype("port_page"))
        self.services = np.zeros(self.services_limit + 1, BTF.dtype("service"))
        self.ids = np.zeros(128, BTF.dtype("quic_server"))
        self.quic_forms = np.zeros(self.services_limit + 1, np.uint64)
        self.backends = np.zeros(self.backends_limit + 1, BTF.dtype("backend"))
        self.local = np.zeros(self.backends_limit + 1, np.uint64)
        self.marks = np.zeros(self.services_limit + 1, np.uint64)
        self.slots = np.zeros(self.table_slots, np.uint32)

    def copy(self) -> Memory:
        """The same memory, to be changed apart."""
        return deepcopy(self)

    def snapshot(self) -> tuple[Array, Array]:
        """Return all keys of the trie, and their values."""
        keys = np.frombuffer(b"".join(sorted(self.sources)), SOURCE_KEY)
        return keys, np.array([self.sources[key] for key in sorted(self.sources)], np.uint32)

    def update_batch(self, keys: Array, values: Array) -> None:
        """Store keys in the trie."""
        assert len(keys) == len(values)
        self.sources |= {key.tobytes(): int(value) for key, value in zip(keys, values, strict=True)}
        assert len(self.sources) <= self.sources_limit

    def delete_batch(self, keys: Array) -> None:
        """Remove keys from the trie."""
        for key in keys:
            del self.sources[key.tobytes()]

    def allowed(self, index: int) -> tuple[Prefix, ...] | None:
        """Whom the service at an index is for, as packets see it; None: everyone."""
        number = int(self.services["sources"][index])
        if not number:
            return None
        found = [key for key in self.snapshot()[0] if key["set"] == number]
        return tuple(sorted(map(prefix_of_key, found), key=lambda each: (each.version, each)))

    def routed(self, key: ServiceKey) -> dict[Prefix, View]:
        """Where new flows from each prefix of a service's routes go, as packets see it."""
        found = self.rows(self.service(key))
        return {prefix: self.view_of(row) for prefix, row in found.items()}

    def rows(self, index: int) -> dict[Prefix, int]:
        """The rows that new flows of a service go by, by the prefixes that they are from."""
        number = int(self.services["flags"][index]) >> ROUTES_SHIFT
        keys, rows = self.snapshot()
        return {
            prefix_of_key(each): int(row)
            for each, row in zip(keys, rows, strict=True)
            if each["set"] == number and number
        }

    def fill(self, base: int, make: Callable[[], Array]) -> int:
        """Store handles from slot ``base`` on; their sum."""
        handles = make()
        assert base + len(handles) <= len(self.slots)
        self.slots[base : base + len(handles)] = handles
        return slot_sum(handles)

    def read(self, base: int, count: int) -> Array:
        """Return a copy of ``count`` handles from slot ``base`` on."""
        return self.slots[base : base + count].copy()

    def sums(self, ranges: Sequence[tuple[int, int]]) -> list[int]:
        """Return the sums of ranges."""
        return [slot_sum(self.read(*each)) for each in ranges]

    def published(self) -> list[int]:
        """The services that the index leads to: exact keys, not what is known of their VIPs."""
        exact = (self.vips["service"] != 0) & (self.vips["key"]["family"] & PREFIX == 0)
        return [int(service) for service in self.vips["service"][exact]]

    # What a packet sees

    def service(self, key: ServiceKey) -> int:
        """The service that packets for a key find, 0 for none."""
        return service_of(self.vips, self.lengths, self.pages, pack_key(key))

    def view(self, key: ServiceKey) -> View | None:
        """Where packets for ``key`` go, by slot; None: to the kernel."""
        index = self.service(key)
        return self.view_of(index) if index else None

    def view_of(self, index: int) -> View:
        """Where packets go by the table of a row of services, by slot."""
        row = self.services[index : index + 1]
        size = int(row["table"][0]) >> 32
        # The lowest hash of each slot.
        hashes = [-(-(slot << 32) // size) for slot in range(size)]
        return [self.address(handle_of(row, self.slots, self.backends, each)) for each in hashes]

    def named(self, service: int) -> dict[int, Address]:
        """Whom ids name, of a service by its index."""
        found = {
            int(slot["id"]): self.address(int(slot["handle"]))
            for slot in self.ids[self.ids["service"] == service]
        }
        return {number: address for number, address in found.items() if address is not None}

    def address(self, handle: int) -> Address | None:
        """The backend of a handle, None if it is stale: what a flow's entry leads to."""
        row = self.backends[handle & (1 << INDEX_BITS) - 1]
        if not handle or row["handle"] != handle:
            return None
        return unpack(row["addr"].tobytes(), int(row["family"]))


class Process:
    """What a process knows of the memory; makes its changes as the load balancer does.

    ``known``: services that it knows to be desired as it begins; of these ``alike`` are there.
    """

    def __init__(
        self,
        memory: Memory,
        wait_for_readers: Callable[[], None] = lambda: None,
        known: Iterable[Service] = (),
    ) -> None:
        self.memory = memory
        self.forgotten: Counter[int] = Counter()
        """Services whose counters were zeroed, by index."""
        reclaimer = Reclaimer(wait_for_readers)
        self.extents = Extents(len(memory.slots), wait_for_readers)
        self.backends = BackendTable(memory.backends, INDEX_BITS, reclaimer, lambda _: None, STATES)
        self.sources = SourceSets(memory, SOURCE_KEY, SOURCE_BITS, memory.sources_limit, reclaimer)
        self.tables = KernelTables(
            Endpoints(
                VipIndex(memory.vips, PROBES, reclaimer, PREFIX),
                PortPages(memory.pages, WHOLE, reclaimer),
                Lengths(memory.lengths[0]["ports"], LENGTHS),
                Lengths(memory.lengths[0]["known"], LENGTHS),
                PREFIX,
            ),
            self.backends,
            self.extents,
            memory,
            ServiceRows(memory.services, reclaimer, self.forgotten.update),
            ServiceOptions(memory.services, FLAGS, self.sources, ENCAPS, FORMS, memory.quic_forms),
            LocalBackends(memory.local, memory.services, LOCAL, INDEX_BITS),
            ServerIds(
                IdIndex(memory.ids, ID_PROBES, reclaimer, memory.ids_limit), memory.ids_limit
            ),
            Marks(memory.marks, STATES),
        )
        self.alike = self.tables.adopt(by_key(known))

    def observed(self) -> tuple[Service, ...]:
        """The services that are in force."""
        return tuple(
            Service(
                "any",
                *key[:3],
                backends=each.backends(),
                route_from=each.route_from(),
                **each.options.fields(),
            )
            for key, each in self.tables.services.items()
        )

    def check_room(self, plan: Transition) -> None:
        """Raise CapacityError if a plan is foretold not to fit."""
        check(self.tables, plan.steps)


def prefix_of_key(key: Any) -> Prefix:
    """The prefix that a key of the trie stands for: its address's bits that count."""
    raw, bits = key["addr"].tobytes(), int(key["prefixlen"]) - SOURCE_BITS
    if key["family"] == 2:
        assert raw[:12] == bytes(12)
        return IPv4Network((raw[12:], bits - 96))
    return IPv6Network((raw, bits))


def view_of(service: Service | None) -> View | None:
    """What packets ought to see of a service."""
    if service is None:
        return None
    identities = [(backend.address.packed, backend.weight) for backend in service.backends]
    away = [i for i, each in enumerate(service.backends) if each.state != "active"]
    slots = maglev.table(identities, service.table_size, away)
    return [service.backends[i].address for i in slots]


def routed_of(service: Service, routes: Service | None = None) -> dict[Prefix, View]:
    """What packets ought to see of a service's routes, or of another one's with its backends."""
    found: dict[Prefix, View] = {}
    for route in (routes or service).route_from:
        chosen = tuple(each for each in service.backends if each.address in route.backends)
        view: View = []
        if len(route.backends) > 1:
            view = view_of(replace(service, backends=chosen)) or []
        elif any(each.takes_flows for each in chosen):
            view = list(route.backends)
        found |= dict.fromkeys(route.sources, view)
    return found


def by_key(services: Iterable[Service]) -> dict[ServiceKey, Service]:
    """Services by what identifies them."""
    return {service.key: service for service in services}


def assert_sound(memory: Memory) -> None:
    """Ranges don't overlap, and every handle in them is a backend's of that service."""
    owners = Counter[int]()
    for index in memory.published():
        for row in {index, *memory.rows(index).values()}:
            table = int(memory.services[row]["table"])
            base, size = table & 0xFFFFFFFF, table >> 32
            owners.update(range(base, base + size))
            handles = memory.read(base, size)
            rows = memory.backends[handles & (1 << INDEX_BITS) - 1]
            assert handles.all()
            assert np.array_equal(rows["handle"], handles)
            assert (rows["service"] == index).all()
    assert max(owners.values(), default=1) == 1
