# SPDX-License-Identifier: Apache-2.0
"""The load balancer, attached as it is in use, beside its oracle."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any

import numpy as np
from tests.prog.lb.fragments import Fragments
from tests.prog.lb.network import IN, OUT, Network
from tests.prog.lb.oracle import Outcome, Served, World
from tests.prog.lb.oracle_quic import Ids
from tests.prog.lb.told import note_length, run_on, standing_still, tellable

from towpath.core.lb import maglev
from towpath.core.lb.routes import prefixes_in_order
from towpath.datapath.balancer import Balancer
from towpath.datapath.maps.pins import HOST, NAMES
from towpath.datapath.observe.counters import verdict_names
from towpath.datapath.program.egress import AnyFrameEgress
from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.model import Backend, Device, Icmp, Limits, Protocol, Service, Snat, Source, Unwrap
from towpath.model.settings import NO_UNWRAP

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tests.prog.lb.oracle import Key
    from tests.prog.lb.oracle_parse import Address

    from towpath.datapath.neigh.wanted import Resolver
    from towpath.kernel.bpf.programs import TestRun
    from towpath.model.kinds import Ports
    from towpath.model.service import SourceRoute
    from towpath.model.settings import ForeignCheck

SMALL = Limits(services=64, backends=1000, flows=1 << 18, fragments=1 << 10, table_slots=1 << 18)
TABLE_SIZE = 1021
_SERVICE_UNITS = ("packets", "bytes", "flows", "drops")
_BACKEND_UNITS = ("packets", "bytes")
_INDEX_BITS = 20
_AS_ROUTED = Source()

COUNTERS = (
    "verdict_cpus",
    "service_cpus",
    "backend_cpus",
    "backend_flows",
    "flow_cpus",
    "quic_cpus",
)
"""Tables that packets write to, besides those of flows."""


class Rig:
    """Runs frames and compares everything that can be seen with what the oracle says."""

    def __init__(self, balancer: Balancer, network: Network, source: Source = _AS_ROUTED) -> None:
        self.balancer = balancer
        self.devices = network.devices
        program = self._program = balancer._program
        self.world = World(
            program.tables.seeds["hash_seed"],
            program.cookie,
            ways=dict(network.ways),
            shows_note=note_length() > 0,
        )
        for version, wish in ((4, source.ipv4), (6, source.ipv6)):
            if not isinstance(wish, str):
                self.world.vary[version] = _varied(wish)
        self.seen: Counter[str] = Counter()
        self.way = "towpath_lb"
        """The program; in still.bpf.c there are others."""
        self.linear: int | None = None
        """So many bytes of a frame are in its first fragment (6.18), if a test says so."""
        self.tables = {name: program.rows(name) for name in COUNTERS}
        self.fragments = Fragments(program.rows("fragments")["way"])
        self._verdicts = verdict_names(program)
        self._first_drop = min(n for n, name in self._verdicts.items() if name.startswith("drop"))
        self.told(balancer.observed())

    def serve(self, *services: Service) -> None:
        """Make these the services, of the load balancer and of the oracle."""
        self.balancer.apply(services)
        self.told(services)

    def told(self, services: Iterable[Service]) -> None:
        """Let the oracle know what the load balancer has been given."""
        self._read_sources()
        self.world.serve({key_of(service): served(service) for service in services})
        self._named = self._indexes()

    def refresh_devices(self) -> None:
        """Have the load balancer look at devices again, of which the oracle knows."""
        self.balancer.refresh_devices()
        self._read_sources()

    def _read_sources(self) -> None:
        """Note which source is in force where the look-up tells none.

        How it is chosen is for its own tests to prove.
        """
        if fib_lookup().source:
            return
        record = self._program.maps["settings"].lookup(0)
        for version, size in ((4, 4), (6, 16)):
            source = ip_address(record[f"source{version}"].tobytes()[-size:])
            if not source.is_unspecified:
                self.world.ways |= {
                    address: replace(way, source=way.source and source)
                    for address, way in self.world.ways.items()
                    if address.version == version
                }

    def run(
        self, frame: bytes, device: str = IN, *, new_jiffy: bool = True, metadata: bytes = b""
    ) -> TestRun:
        """Run the program on a frame as if it had come in on a device.

        A CPU learns only so many flows in a jiffy, and answers so many packets: `new_jiffy` has it
        count from 0 again. What a driver says of a frame is its `metadata`, which takes of the room
        in front of the frame.
        """
        if new_jiffy:
            self.tables["flow_cpus"]["tick"] = 0
            self.tables["flow_cpus"]["answer_tick"] = 0
        index = self.devices[device]
        return run_on(
            self._program, frame, index, way=self.way, metadata=metadata, linear=self.linear
        )

    def check(self, frame: bytes, device: str = IN) -> Outcome:
        """Assert action, every byte and every counter; returns what the oracle expected."""
        self.fragments.keep_young()
        expected = self.world.judge(frame, self.devices[device])
        before, known = self.counters(), self.fragments.copy()
        run = self.run(frame, device)
        moved = self.moved(before, self.counters())
        left = self.fragments.changed(known, self.address_of)
        if (run.retval, run.data, moved) != (expected.action, expected.frame, expected.counts()):
            raise AssertionError(_difference(frame, device, expected, run, moved))
        # What leaves the same again, in the same moment, changes nothing.
        leaves = expected.leaves
        again = leaves and left.new is None and self.world.fragments.get(leaves[0]) == leaves[1]
        assert left.new == leaves or again, (left, expected)
        self.world.fragments.pop(left.old, None)  # type: ignore[arg-type]
        self.world.remember(expected)
        self.seen[expected.verdict] += 1
        return expected

    def expect(self, frame: bytes, verdict: str, device: str = IN) -> Outcome:
        """The same, for a test that knows the verdict itself."""
        outcome = self.check(frame, device)
        assert outcome.verdict == verdict, outcome
        return outcome

    def address_of(self, handle: int) -> Address | None:
        """The backend of a handle, None for handle 0."""
        table = self.balancer._contents.tables.backends
        _, backends = self._indexes()
        return backends[table.index(handle)][1] if handle else None

    def counters(self) -> Any:
        """Every counter, summed over the CPUs, as one array."""
        verdicts = self.tables["verdict_cpus"]["packets"]
        cpus = len(verdicts)
        services = self.tables["service_cpus"].view(np.uint64).reshape(cpus, -1)
        backends = self.tables["backend_cpus"]
        by_unit = [
            each.reshape(cpus, -1).sum(axis=0)
            for each in (*(backends[unit] for unit in _BACKEND_UNITS), self.tables["backend_flows"])
        ]
        said = self.tables["quic_cpus"].reshape(cpus, -1)
        ids = [said[each].sum(axis=0) for each in said.dtype.names or ()]
        return np.concatenate(
            [verdicts.sum(axis=0), services.sum(axis=0), *by_unit, self._backend_drops(), *ids]
        )

    def _backend_drops(self) -> Any:
        """Packets that were dropped, for each reason and backend."""
        backends = len(self.tables["backend_flows"]) // len(self.tables["verdict_cpus"])
        drops = np.zeros((len(self._reasons), backends), np.uint64)
        for key, packets in self._program.maps["backend_drops"].items():
            index = int(key["handle"]) & (1 << _INDEX_BITS) - 1
            drops[int(key["verdict"]) - self._first_drop, index] += packets.sum()
        return drops.reshape(-1)

    @cached_property
    def _reasons(self) -> list[object]:
        """What each counter of dropped packets counts; a number where no reason has it yet."""
        count = self.tables["service_cpus"]["dropped"].shape[1]
        numbers = range(self._first_drop, self._first_drop + count)
        return [self._verdicts.get(number, number) for number in numbers]

    def moved(self, before: Any, after: Any) -> dict[object, int]:
        """Counters that changed, by what they count, and by how much."""
        difference = (after - before).astype(np.int64)
        return {self._owner(int(at)): int(difference[at]) for at in np.flatnonzero(difference)}

    def _owner(self, at: int) -> object:
        """What an element of `counters` counts; a number where it is no one's."""
        services, backends = self._named
        verdicts, by_service, by_backend, _ = self._sizes
        if at < verdicts:
            return self._verdicts.get(at, at)
        at -= verdicts
        if at < by_service:
            units = (*_SERVICE_UNITS, *self._reasons)
            index, unit = divmod(at, len(units))
            return services.get(index, index), units[unit]
        at -= by_service
        if at >= by_backend:
            said = self.tables["quic_cpus"].dtype.names
            unit, index = divmod(at - by_backend, by_service // self._service_units)
            return services.get(index, index), "id", said[unit]
        units = (*_BACKEND_UNITS, "flows", *self._reasons)
        unit, index = divmod(at, by_backend // len(units))
        return *backends.get(index, (index,)), units[unit]

    @cached_property
    def _sizes(self) -> tuple[int, int, int, int]:
        """How many of `counters` are of verdicts, of services, of backends, and of ids."""
        cpus, verdicts = self.tables["verdict_cpus"]["packets"].shape
        reasons = len(self._reasons)
        services = len(self.tables["service_cpus"]) // cpus
        backends = len(self.tables["backend_cpus"]) // cpus
        return (
            verdicts,
            services * self._service_units,
            backends * (len(_BACKEND_UNITS) + 1 + reasons),
            services * len(self.tables["quic_cpus"].dtype.names),
        )

    @property
    def _service_units(self) -> int:
        """How many of `counters` a service has."""
        return len(_SERVICE_UNITS) + len(self._reasons)

    def _indexes(self) -> tuple[dict[int, object], dict[int, tuple[Key, Address]]]:
        """Services and their routes by their index, and backends by theirs."""
        table = self.balancer._contents.tables.backends
        installed = self.balancer._contents.tables.services.values()
        services: dict[int, object] = {each.index: plain_key(each.key) for each in installed}
        services |= {
            row.index: (plain_key(each.key), row.sources)
            for each in installed
            for row in each.routes
        }
        backends = {
            table.index(handle): (plain_key(each.key), address)
            for each in installed
            for address, handle in each.handles.items()
        }
        return services, backends

    def forget_ways(self) -> None:
        """Have the kernel asked again for every next hop."""
        self.tables["backend_cpus"]["hop"]["tick"] = 0


@contextmanager
def rigged(
    network: Network,
    *,
    devices: Iterable[str] = (IN, OUT),
    source: Source | None = None,
    icmp: Icmp | None = None,
    limits: Limits = SMALL,
    pins: Path | None = None,
    next_hops: Resolver | None = None,
    still: bool = False,
    unwrap: Unwrap = NO_UNWRAP,
    snat: Snat | None = None,
    foreign: Sequence[ForeignCheck] = (),
) -> Iterator[Rig]:
    """A load balancer on some devices of the network; ``still``: in a jiffy that doesn't end."""
    source = source or Source()
    on = [Device(name) for name in devices]
    with standing_still() if still else tellable():
        balancer = Balancer(
            on,
            source=source,
            icmp=icmp,
            limits=limits,
            pins=pins,
            next_hops=next_hops,
            egress=AnyFrameEgress,
            unwrap=unwrap,
            snat=snat,
            foreign=foreign,
        )
    with balancer:
        yield Rig(balancer, network, source)


def pin_directories(pins: Path) -> list[str]:
    """The directories of tables and links; what is noted of devices is beside them."""
    return sorted(path.name for path in pins.iterdir() if path.name not in {NAMES, HOST})


def service(
    vip: Address | IPv4Network | IPv6Network,
    *backends: Address | Backend,
    port: int | Ports = 80,
    protocol: Protocol = Protocol.TCP,
    table_size: int = TABLE_SIZE,
    **options: Any,
) -> Service:
    """A service whose backends have weight 1 where nothing else is said."""
    weighted = tuple(b if isinstance(b, Backend) else Backend(b) for b in backends)
    name = re.sub("[^a-z0-9.:-]", "_", f"{protocol}-{port}-{vip}")
    return Service(name, vip, port, protocol, weighted, table_size=table_size, **options)


def plain_key(key: Any) -> Key:
    """A key as the oracle has it."""
    port = key.port if isinstance(key.port, int) else tuple(map(tuple, key.port.ranges))
    return key.vip, port, key.protocol.number


def key_of(service: Service) -> Key:
    """The key of a service, as the oracle has it."""
    return plain_key(service.key)


def served(service: Service) -> Served:
    """A service as the oracle has it: what the slots hold is for Maglev's own tests to prove."""
    addresses = [backend.address for backend in service.backends]
    members = [(backend.address.packed, backend.weight) for backend in service.backends]
    away = [at for at, backend in enumerate(service.backends) if backend.state != "active"]
    slots = [addresses[at] for at in maglev.table(members, service.table_size, away)]
    return Served(
        slots,
        service.flow_table,
        frozenset(each.address for each in service.backends if each.state != "down"),
        unchanged=service.forwarding == "l2",
        keeps=service.affinity.timeout if service.affinity else 0,
        sources=service.allow_from,
        drained=frozenset(each.address for each in service.backends if not each.takes_flows),
        lasts=service.flow_timeout or 300,
        hash_by=service.hash_by,
        encap=service.encap,
        encap_port=service.encap_port or 6080,
        ids=_ids(service) if service.quic else None,
        routes=tuple(
            (prefixes_in_order(each.sources), _routed(service, each)) for each in service.route_from
        ),
    )


def _ids(service: Service) -> Ids:
    assert service.quic is not None
    return Ids(
        service.quic.server_ids == "katran",
        service.quic.length or 0,
        service.quic.rotation,
        service.quic.length_self_description,
        {number: each.address for each in service.backends for number in each.server_id},
        frozenset(each.address for each in service.backends if each.state == "down"),
    )


def _routed(service: Service, route: SourceRoute) -> list[Address]:
    """The table of a route: of one backend it is that, if it takes flows."""
    chosen = tuple(each for each in service.backends if each.address in route.backends)
    if len(chosen) == 1:
        return [each.address for each in chosen if each.takes_flows]
    return list(served(replace(service, backends=chosen, route_from=())).slots)


def _difference(
    frame: bytes, device: str, expected: Outcome, run: TestRun, moved: dict[object, int]
) -> str:
    """What was foretold and what came."""
    return "\n".join(
        (
            f"{expected} of {frame[:160].hex()}, {len(frame)} bytes on {device}",
            f"action   {run.retval}, expected {expected.action}",
            f"out      {run.data[:160].hex()}, {len(run.data)} bytes",
            f"expected {expected.frame[:160].hex()}, {len(expected.frame)} bytes",
            f"moved    {moved}",
            f"expected {expected.counts()}",
        )
    )


def _varied(wish: Any) -> tuple[Address, int]:
    if isinstance(wish, IPv4Network | IPv6Network):
        return wish.network_address, min(wish.max_prefixlen - wish.prefixlen, 32)
    return wish, 0
