# SPDX-License-Identifier: Apache-2.0
"""A load balancer that translates, beside its oracle."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import numpy as np
from scapy.layers.inet import TCP
from scapy.packet import Raw
from tests.prog.lb.frames import CLIENTS, PORT, TRANSPORTS, VIPS, ether, ip
from tests.prog.lb.harness import SMALL, Rig, key_of, service
from tests.prog.lb.network import (
    GATEWAY,
    HOST,
    IN,
    MACS,
    NEAR,
    OUT,
    neighbour,
    neighbour_mac,
    told_mtu,
)
from tests.prog.lb.network import ip as run_ip
from tests.prog.lb.oracle import TX, Way
from tests.prog.lb.oracle_flows import IDLE_SECONDS
from tests.prog.lb.told import STILL_JIFFIES, standing_still, tellable
from tests.prog.snat.oracle import NatOutcome, NatTable, NatWorld

from towpath.datapath.balancer import Balancer
from towpath.datapath.program.egress import AnyFrameEgress
from towpath.kernel.jiffies import Jiffies, per_second
from towpath.model import Backend, Device, Limits, Protocol, Service, Snat
from towpath.model.kinds import Address, PortRange

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.prog.lb.network import Network
    from tests.prog.lb.oracle import Outcome
    from tests.prog.lb.oracle_parse import Flow

    from towpath.datapath.neigh.wanted import Resolver

SOURCE4, SOURCE6 = IPv4Address("192.0.2.200"), IPv6Address("2001:db8:2::200")
SOURCES: dict[int, Address] = {4: SOURCE4, 6: SOURCE6}
SNAT = Snat((SOURCE4,), (SOURCE6,))
PORTS = 16
NARROW = replace(SNAT, ports=PortRange(20000, 20000 + PORTS - 1))
NAT_SMALL = replace(SMALL, nat_flows=1 << 13)
BOTH = [(version, protocol) for version in (4, 6) for protocol in (6, 17)]
"""Families of clients and protocols of services."""
_REPLIES = ("replies", "reply_bytes")
_MASK = 0xFFFF
_UNIT = 1 << 8
"""Jiffies in a unit of the table's time."""
_CLEARANCE = 8
"""Jiffies that a packet may take, on a busy machine."""


class NatRig(Rig):
    """Compares translated packets, and counts what came back."""

    world: NatWorld

    def __init__(self, balancer: Balancer, network: Network, snat: Snat, jiffies: Jiffies) -> None:
        super().__init__(balancer, network)
        self._jiffies = jiffies
        program = self._program
        hz = per_second()
        times = {
            "tcp_open": snat.tcp_timeout,
            "tcp_new": 60,
            "tcp_closing": 30,
            "udp_open": snat.udp_timeout,
            "udp_new": 30,
            "idle": IDLE_SECONDS,
        }
        known = {name: getattr(self.world, name) for name in self.world.__dataclass_fields__}
        table = NatTable(
            seed=program.tables.seeds["flow_seed"],
            sets=program.layout.entries["nat_flows"],
            sources={4: list(snat.ipv4), 6: list(snat.ipv6)},
            first_port=snat.ports.first,
            ports=snat.ports.last - snat.ports.first + 1,
            timeouts={name: -(-seconds * hz // 256) for name, seconds in times.items()},
        )
        self.world = NatWorld(**known, table=table)
        self.world.ways |= client_ways(network)
        for name in ("reply_cpus", "nat_heads", "nat_flows", "nat_client_hops"):
            self.tables[name] = program.rows(name)
        self.told(balancer.observed())

    def told(self, services: Iterable[Service]) -> None:
        """Let the oracle know what the load balancer has been given."""
        services = tuple(services)
        super().told(services)
        if isinstance(self.world, NatWorld):
            self.world.lasting = {
                key_of(s): -(-s.flow_timeout * per_second() // _UNIT)
                for s in services
                if s.flow_timeout
            }
            self.world.translated = {key_of(s) for s in services if s.forwarding == "snat"}
            self.world.table.own_ports = {
                (s.vip, s.port, s.protocol.number, backend.address): backend.port
                for s in services
                for backend in s.backends
                if backend.port and isinstance(s.port, int) and isinstance(s.vip, Address)
            }

    def counters(self) -> Any:
        """Every counter; those of replies come last."""
        if "reply_cpus" not in self.tables:
            return super().counters()
        rows = self.tables["reply_cpus"].view(np.uint64)
        cpus = len(self.tables["verdict_cpus"])
        return np.concatenate([super().counters(), rows.reshape(cpus, -1).sum(axis=0)])

    def _owner(self, at: int) -> object:
        others = sum(self._sizes)
        if at < others:
            return super()._owner(at)
        services, _ = self._named
        index, unit = divmod(at - others, len(_REPLIES))
        return services.get(index, index), _REPLIES[unit]

    def check(self, frame: bytes, device: str = IN) -> Outcome:
        """As for every packet; the oracle knows what time it is."""
        self._tell_time()
        outcome = super().check(frame, device)
        table = self.world.table
        entry = outcome.entry if isinstance(outcome, NatOutcome) else None
        if entry in table.entries():
            number, way = table.place(entry)
            table.now = entry.seen = int(self.tables["nat_heads"]["life"]["seen"][number][way])
        return outcome

    def _tell_time(self) -> None:
        """In the table's units, whose next one is not so near that the program could see it."""
        while (now := self._jiffies.now()) % _UNIT >= _UNIT - _CLEARANCE:
            time.sleep(0.001)
        self.world.table.now = now // _UNIT & _MASK

    def later(self, seconds: float) -> None:
        """Make everything in the table so much older."""
        units = round(seconds * per_second()) >> 8
        seen = self.tables["nat_heads"]["life"]["seen"]
        seen[:] = (seen.astype(np.int64) - units) & _MASK
        for entry in self.world.table.entries():
            entry.seen = (entry.seen - units) & _MASK

    def empty(self) -> None:
        """Forget every translation."""
        for name in ("nat_heads", "nat_flows"):
            self.tables[name].view(np.uint8)[:] = 0
        self.world.table.ways.clear()
        self.world.table.reach.clear()

    def forget_ways(self) -> None:
        """Have the kernel asked again for every next hop."""
        super().forget_ways()
        self.tables["nat_client_hops"]["hop"]["tick"] = 0


@contextmanager
def nat_rigged(
    network: Network,
    snat: Snat = SNAT,
    *,
    limits: Limits = NAT_SMALL,
    pins: Path | None = None,
    next_hops: Resolver | None = None,
    still: bool = False,
    tracks: bool = False,
) -> Iterator[NatRig]:
    """A load balancer on two devices of the network that translates; ``still``: see `rigged`."""
    with standing_still() if still else tellable():
        on = [Device(IN), Device(OUT)]
        balancer = Balancer(
            on,
            limits=limits,
            snat=snat,
            pins=pins,
            next_hops=next_hops,
            egress=AnyFrameEgress,
            tracks=tracks,
        )
    with balancer, Jiffies() as jiffies:
        yield NatRig(balancer, network, snat, Still() if still else jiffies)


class Still(Jiffies):
    """The clock of what stands still."""

    def now(self) -> int:
        """Always the same."""
        return STILL_JIFFIES


def client_ways(network: Network) -> dict[Address, Way]:
    """Routes to the clients, through the gateway; made where they are not there yet."""
    found: dict[Address, Way] = {}
    for version, client in CLIENTS.items():
        gateway = neighbour(IN, version, GATEWAY)
        run_ip(f"route replace {client}/{HOST[version]} via {gateway} dev {IN}")
        mac = neighbour_mac(IN, GATEWAY)
        found[client] = Way(network.devices[IN], None, MACS[IN], mac, told_mtu(IN))
    return found


def snat_service(version: int = 4, *backends: Address | Backend, **fields: Any) -> Service:
    """A service that is translated, with the near backends unless others are named."""
    made = service(VIPS[version], *(backends or NEAR[version]), **fields)
    return replace(made, forwarding="snat")


def services(**fields: Any) -> list[Service]:
    """One of each family and protocol."""
    return [snat_service(v, protocol=p, **fields) for v in (4, 6) for p in Protocol]


def client_frame(
    version: int = 4,
    protocol: int = 6,
    *,
    flags: str = "S",
    sport: int = 40000,
    dport: int = PORT,
    payload: bytes = b"towpath",
    vlan: int | None = None,
    source: Address | None = None,
    vip: Address | None = None,
    hops: int = 64,
) -> bytes:
    """What a client sends, with all checksums right."""
    transport = TRANSPORTS[protocol](sport=sport, dport=dport)
    if isinstance(transport, TCP):
        transport.flags = flags
    header = ip(version, source=source, vip=vip, **_left(version, hops))
    return bytes(ether(vlan=vlan) / header / transport / Raw(payload))


def answer(
    outcome: Outcome,
    *,
    flags: str = "SA",
    payload: bytes = b"answer",
    vlan: int | None = None,
    hops: int = 64,
) -> bytes:
    """What the backend answers to a packet that was sent to it."""
    assert isinstance(outcome, NatOutcome)
    assert outcome.entry is not None
    reply: Flow = outcome.entry.reply
    transport = TRANSPORTS[reply.protocol](sport=reply.source_port, dport=reply.destination_port)
    if isinstance(transport, TCP):
        transport.flags = flags
    version = reply.source.version
    header = ip(version, source=reply.source, vip=reply.destination, **_left(version, hops))
    return bytes(ether(vlan=vlan) / header / transport / Raw(payload))


def _left(version: int, hops: int) -> dict[str, Any]:
    return {{4: "ttl", 6: "hlim"}[version]: hops}


def established(nat: NatRig, version: int, protocol: int, sport: int) -> Outcome:
    """A flow that both sides have agreed on."""
    sent = nat.expect(client_frame(version, protocol, sport=sport), TX)
    nat.expect(answer(sent), TX)
    return nat.expect(client_frame(version, protocol, sport=sport, flags="A"), TX)


def port_of(outcome: Outcome) -> int:
    """The port that a packet was translated to."""
    assert isinstance(outcome, NatOutcome)
    assert outcome.entry is not None
    return outcome.entry.port
