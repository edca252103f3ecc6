# SPDX-License-Identifier: Apache-2.0
"""Traces of packets that are large, of fragments and of ICMP errors tell what would happen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.l2 import Ether
from tests.prog.lb.frames import CLIENTS, VIPS
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import IN, MTU, NEAR
from tests.prog.lb.oracle import NO_VIP, OUTER_HEADER, TOO_BIG, TX, flow_hash
from tests.prog.lb.oracle_parse import FRAGMENT, OTHER_PROTOCOL, Flow

from towpath.datapath.observe.testpackets import sample
from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.model import FlowTuple, Protocol, TracedPacket

if TYPE_CHECKING:
    from towpath.model.traced import Kind

FAMILIES = [4, 6]
ETHERTYPES = {4: "0800", 6: "86dd"}


@pytest.fixture(autouse=True)
def served(rig: Rig) -> None:
    """A VIP of each family, for TCP and for UDP."""
    rig.serve(
        *(service(VIPS[v], *NEAR[v], protocol=protocol) for v in (4, 6) for protocol in Protocol)
    )


def traced(
    family: int,
    protocol: Protocol,
    kind: Kind = "packet",
    size: int | None = None,
    *,
    sport: int = 40000,
    dport: int = 80,
) -> TracedPacket:
    """A packet of a client's flow, or about it."""
    flow = FlowTuple(CLIENTS[family], sport, VIPS[family], dport, protocol)
    return TracedPacket.of(flow, kind, size)


def framed(packet: TracedPacket) -> bytes:
    """The very packet that is traced, as it would come in."""
    link = "020000000002 020000000001" + ETHERTYPES[packet.source.version]
    return bytes.fromhex(link) + sample(packet)


def state(rig: Rig) -> dict[str, Any]:
    """All that a packet could change."""
    names = ("flows", "flow_tags", "fragments", "flow_cpus", "verdict_cpus", "service_cpus")
    return {name: rig.balancer._program.rows(name).tobytes() for name in (*names, "backend_cpus")}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("kind", ["packet", "error", "fragment"])
def test_what_is_traced_then_happens(rig: Rig, family: int, protocol: Protocol, kind: Kind) -> None:
    """The same verdict and backend, and nothing is changed by the trace."""
    for sport in range(40000, 40010):
        packet = traced(family, protocol, kind, sport=sport)
        before = state(rig)
        trace = rig.balancer.trace(packet)
        assert state(rig) == before
        outcome = rig.expect(framed(packet), TX)
        assert (trace.verdict, trace.backend) == (TX, outcome.backend)
        flow = Flow(CLIENTS[family], VIPS[family], sport, 80, protocol.number)
        assert trace.hash == flow_hash(flow, rig.world.seed)
        assert trace.flow == str(packet)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", Protocol)
def test_sizes(rig: Rig, family: int, protocol: Protocol) -> None:
    """The largest that fits, and a byte more."""
    room = MTU[IN] - OUTER_HEADER[family]
    for size, verdict in ((room, TX), (room + 1, TOO_BIG if fib_lookup().mtu else TX)):
        packet = traced(family, protocol, size=size)
        assert len(sample(packet)) == size
        trace = rig.balancer.trace(packet)
        assert trace.verdict == verdict
        assert trace.mtu == (MTU[IN] if fib_lookup().mtu else None)
        rig.expect(framed(packet), verdict)


def test_a_trace_takes_none_of_the_answers(rig: Rig) -> None:
    """However often a sender that is to be told is traced."""
    packet = traced(4, Protocol.TCP, size=1500)
    expected = TOO_BIG if fib_lookup().mtu else TX
    for _ in range(30):
        assert rig.balancer.trace(packet).verdict == expected
    rig.expect(framed(packet), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_those_of_no_service(rig: Rig, family: int) -> None:
    """Each passes as what it is."""
    verdicts: dict[Kind, str] = {"packet": NO_VIP, "error": OTHER_PROTOCOL, "fragment": FRAGMENT}
    for kind, verdict in verdicts.items():
        trace = rig.balancer.trace(traced(family, Protocol.UDP, kind, dport=81))
        assert (trace.verdict, trace.service) == (verdict, None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", Protocol)
def test_samples_are_packets(family: int, protocol: Protocol) -> None:
    """As scapy reads them: of the right kind, and as long as their headers say."""
    kinds: tuple[tuple[Kind, int | None], ...] = (
        ("packet", None),
        ("packet", 999),
        ("error", None),
        ("fragment", None),
    )
    for kind, size in kinds:
        packet = sample(traced(family, protocol, kind, size))
        read = Ether(framed(traced(family, protocol, kind, size)))[1]
        length = read.len if family == 4 else read.plen + 40
        assert length == len(packet)
        assert (read.src, read.dst) == (str(CLIENTS[family]), str(VIPS[family]))
    whole = Ether(framed(traced(family, protocol)))
    assert (whole.payload.payload.sport, whole.payload.payload.dport) == (40000, 80)
