# SPDX-License-Identifier: Apache-2.0
"""A trace says what would happen, changes nothing, and then exactly that happens."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from tests.guests import IN_GUEST, examples
from tests.prog.lb.frames import CLIENTS, PORT, VIPS, ether, ip
from tests.prog.lb.harness import SMALL, Rig, plain_key, rigged, service
from tests.prog.lb.network import (
    BEHIND_GATEWAY,
    FAR,
    FAR_UNRESOLVED,
    IN,
    NEAR,
    NEAR_UNRESOLVED,
    NO_ROUTE,
    OUT,
    REFUSED,
    Network,
)
from tests.prog.lb.oracle import HANDOFF, REDIRECT, TX, Outcome, client_hash, flow_hash
from tests.prog.lb.told import note_length

from towpath.datapath.errors import DatapathError
from towpath.model import Affinity, Backend, FlowTuple, Protocol, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.oracle_parse import Address

    from towpath.documents import Trace
    from towpath.model.service import Encap

VARIED = Source(IPv4Network("10.0.0.0/16"), IPv6Network("2001:db8:aa::/64"))
FLOWS = examples(400)
EVERYWHERE, NOWHERE, FORGETFUL, ON_LINK, STICKY, EXCLUSIVE, UNKNOWN = range(7)  # added to the VIP
FEW = {
    v: (ip_network(f"{CLIENTS[v]}/{length}", strict=False),) for v, length in ((4, 27), (6, 123))
}
ENCAPSULATIONS = {(4, 4): "ipip", (6, 6): "ip6ip6", (4, 6): "4in6"}
SENT = {TX: "success", REDIRECT: "success", HANDOFF: "no neighbour"}
NOT_SENT: dict[Address, str] = {a[v]: kind for kind, (a, _) in REFUSED.items() for v in (4, 6)} | {
    NO_ROUTE[v]: "not forwarded" for v in (4, 6)
}
NOT_SENT |= {BEHIND_GATEWAY[v]: "behind a gateway" for v in (4, 6)}


@pytest.fixture(scope="module")
def rig(net: Network) -> Iterator[Rig]:
    """Services that lead everywhere, and a flow table small enough to be compared whole."""
    limits = replace(SMALL, flows=1 << 13, table_slots=1 << 15)
    with rigged(net, limits=limits, source=VARIED) as rig:
        rig.serve(
            *(
                service(
                    VIPS[family] + which,
                    *backends,
                    protocol=protocol,
                    flow_table=which != FORGETFUL,
                    forwarding="l2" if which == ON_LINK else "dsr",
                    affinity=Affinity(10000) if which == STICKY else None,
                    allow_from=FEW[family] if which == EXCLUSIVE else None,
                )
                for family in (4, 6)
                for protocol in Protocol
                for which, backends in (
                    (EVERYWHERE, all_backends(family)),
                    (NOWHERE, ()),
                    (FORGETFUL, all_backends(family)),
                    (ON_LINK, (*all_backends(family), Backend(BEHIND_GATEWAY[family], 4))),
                    (STICKY, all_backends(family)),
                    (EXCLUSIVE, all_backends(family)),
                )
            )
        )
        yield rig


def all_backends(inside: int) -> Iterator[Address]:
    """Every kind that a VIP of a family can have."""
    for version in (4, 6) if inside == 4 else (6,):
        yield from (*NEAR[version], *FAR[version])
        yield from (a[version] for a in (NEAR_UNRESOLVED, FAR_UNRESOLVED, NO_ROUTE))
        yield from (addresses[version] for addresses, _ in REFUSED.values())


@st.composite
def flow_tuples(draw: st.DrawFn) -> FlowTuple:
    """Of either family, to a VIP or beside it."""
    family = draw(st.sampled_from([4, 6]))
    return FlowTuple(
        source=CLIENTS[family] + draw(st.integers(0, 100)),
        source_port=draw(st.integers(1, 65535)),
        destination=VIPS[family] + draw(st.sampled_from(range(UNKNOWN + 1))),
        destination_port=draw(st.sampled_from([PORT, PORT, PORT, 443])),
        protocol=draw(st.sampled_from(Protocol)),
    )


def packet_of(flow: FlowTuple) -> bytes:
    """What the trace says it is about: a segment or a datagram without data."""
    header = ip(flow.source.version, source=flow.source, vip=flow.destination)
    ports = {"sport": flow.source_port, "dport": flow.destination_port}
    return bytes(ether() / header / (TCP if flow.protocol is Protocol.TCP else UDP)(**ports))


@pytest.mark.thorough
def test_what_is_traced_then_happens(rig: Rig) -> None:
    """Any flow, on either device, before its first packet and after."""
    tables = {name: rig.balancer._program.rows(name) for name in array_maps(rig)}

    drops = rig.balancer._program.maps["backend_drops"]

    def state() -> dict[str, bytes]:
        dropped = sorted((key.tobytes(), packets.tobytes()) for key, packets in drops.items())
        return {name: rows.tobytes() for name, rows in tables.items()} | {
            "backend_drops": b"".join(key + packets for key, packets in dropped)
        }

    @settings(max_examples=FLOWS)
    @given(flow_tuples(), st.sampled_from([IN, OUT]))
    def agree(flow: FlowTuple, device: str) -> None:
        before = state()
        first = rig.balancer.trace(flow, device)
        assert state() == before
        outcome = rig.check(packet_of(flow), device)
        assert_tells(rig, first, outcome)
        before = state()
        second = rig.balancer.trace(flow, device)
        assert state() == before
        assert_tells(rig, second, rig.check(packet_of(flow), device))

    rig.seen.clear()
    agree()
    dropped = {"drop_no_route", "drop_prohibited", "drop_no_backend"}
    dropped |= {"drop_source", "drop_not_on_link"}
    for _ in range(3):  # a rare one may not have occurred yet
        if not IN_GUEST and not {*SENT, *dropped} <= set(rig.seen):
            agree()
    assert IN_GUEST or {*SENT, *dropped} <= set(rig.seen)


def array_maps(rig: Rig) -> list[str]:
    """All arrays that the program can write to and that outlive a packet, but for the traces."""
    maps = rig.balancer._program.maps
    others = {
        *("traces", "contexts", "nats", "nat_locks"),
        *("vlan_devices", "egress_devices", "sources", "backend_drops", "health_probes"),
        *(
            "refusals",
            "unwrap_addresses",
            "quic_servers",
            "tracked",
            "health_foreign",
            "health_scratch",
        ),
    }
    return [name for name in maps if not name.startswith(".") and name not in others]


def assert_tells(rig: Rig, trace: Trace, outcome: Outcome) -> None:
    """Each field says what has happened, and nothing that hasn't."""
    assert trace.verdict == outcome.verdict
    if outcome.key is None or outcome.flow is None:
        assert (trace.service, trace.backend, trace.hash) == (None, None, None)
        return
    assert trace.service is not None
    assert plain_key(trace.service.key) == outcome.key
    if outcome.verdict == "drop_source":
        assert (trace.hash, trace.flow_hit, trace.backend) == (None, None, None)
        return
    served = rig.world.services[outcome.key]
    # A world that has remembered knows the client: whether it did before is the trace's to say.
    asks_for_client = bool(served.keeps and outcome.fresh)
    assert (trace.client_hit is not None) == asks_for_client
    by_client = asks_for_client and not trace.client_hit
    hashed = client_hash(outcome.flow.source, rig.world.seed) if by_client else None
    assert trace.hash == (hashed or flow_hash(outcome.flow, rig.world.seed))
    assert (trace.flow_hit, trace.backend) == (not outcome.fresh, outcome.backend)
    assert (trace.route.sources if trace.route else None) == outcome.route
    slots = len(dict(served.routes).get(outcome.route or (), served.slots))
    by_maglev = outcome.fresh and outcome.backend is not None and not trace.client_hit
    assert trace.slot == (trace.hash * slots >> 32 if by_maglev else None)
    assert trace.table_size == (slots if by_maglev else None)
    if outcome.backend is not None:
        assert_tells_the_way(rig, trace, outcome)


def assert_tells_the_way(rig: Rig, trace: Trace, outcome: Outcome) -> None:
    """Encapsulation and next hop."""
    backend, flow = outcome.backend, outcome.flow
    assert backend is not None
    assert flow is not None
    assert outcome.key is not None
    on_link = rig.world.services[outcome.key].unchanged
    encapsulation = None if on_link else ENCAPSULATIONS[flow.source.version, backend.version]
    assert (trace.forwarding, trace.encapsulation) == ("l2" if on_link else "dsr", encapsulation)
    assert trace.fib_result == SENT.get(outcome.verdict, NOT_SENT.get(backend))
    if outcome.verdict not in SENT:
        return
    way = rig.world.ways[backend]
    link = 14 + (note_length() if outcome.verdict == HANDOFF else 0)
    source = slice(link + 12, link + 16) if backend.version == 4 else slice(link + 8, link + 24)
    assert (trace.outer_source is None) == on_link
    assert trace.outer_source is None or trace.outer_source.packed == outcome.frame[source]
    assert trace.egress is not None
    assert (rig.devices[trace.egress], trace.vlan) == (way.ifindex, None)
    if outcome.verdict != HANDOFF:
        assert way.next_hop_mac is not None
        assert trace.next_hop_mac == way.next_hop_mac.hex(":")
        assert trace.source_mac == way.source_mac.hex(":")
        assert trace.mtu == (way.mtu or None)


@pytest.mark.parametrize(("encap", "told"), [("gre", "gre"), ("gue", "gue:9886")])
def test_the_kind_of_tunnel_is_told(rig: Rig, encap: Encap, told: str) -> None:
    """With the port that UDP goes to."""
    port = None if encap == "gre" else 9886
    rig.serve(service(VIPS[4], *NEAR[4], encap=encap, encap_port=port))
    flow = FlowTuple.parse(f"198.51.100.1:40000 -> {VIPS[4]}:80 tcp")
    assert rig.balancer.trace(flow).encapsulation == told


def test_tracing_does_not_learn(rig: Rig) -> None:
    """Not even a flow that is traced a thousand times."""
    flow = FlowTuple(CLIENTS[4] + 200, 1, VIPS[4], PORT, Protocol.TCP)
    for _ in range(examples(1000)):
        assert rig.balancer.trace(flow).flow_hit is False
    assert rig.check(packet_of(flow)).fresh
    assert rig.balancer.trace(flow).flow_hit is True


def test_a_device_that_is_none_of_ours(rig: Rig) -> None:
    """Says which there are."""
    flow = FlowTuple(CLIENTS[4], 1, VIPS[4], PORT, Protocol.TCP)
    with pytest.raises(DatapathError, match=f"tpx9; on: {IN}, {OUT}"):
        rig.balancer.trace(flow, "tpx9")


def test_a_frame_that_only_looks_like_a_request(rig: Rig) -> None:
    """With a bit of the secret wrong it is any other frame: balanced and counted."""
    frame = bytearray(packet_of(FlowTuple(CLIENTS[4], 1, VIPS[4], PORT, Protocol.UDP)))
    secret = rig.world.cookie.to_bytes(8, "little")
    for bit in range(64):
        frame[:8] = secret
        frame[bit // 8] ^= 1 << bit % 8
        rig.check(bytes(frame))
    frame[:8] = bytes(8)
    rig.check(bytes(frame))
