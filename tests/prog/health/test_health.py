# SPDX-License-Identifier: Apache-2.0
"""Packets of health checks against the oracle: what goes to a backend, and what is left alone."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from tests.guests import cases
from tests.prog.health.harness import (
    NO_ROUTE,
    NOT_OURS,
    SENT,
    UNKNOWN,
    Connection,
    HealthRig,
)
from tests.prog.lb.frames import VIPS
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.network import (
    BEHIND_GATEWAY,
    FAR,
    FAR_UNRESOLVED,
    IN,
    NEAR,
    NEAR_UNRESOLVED,
    OUT,
    OWN,
    REFUSED,
    network,
)
from tests.prog.lb.network import NO_ROUTE as UNROUTED
from tests.prog.lb.oracle import CARRIED

from towpath.model import Source
from towpath.model.service import Tunnel
from towpath.model.settings import DEFAULT_MARK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.oracle_parse import Address

    from towpath.model.service import Encap

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
PORT = 40000


@pytest.fixture
def health(rig: Rig) -> Iterator[HealthRig]:
    """The program, with nothing written down."""
    forward_both(rig)
    made = HealthRig(rig)
    made.forget()
    yield made
    made.forget()


def forward_both(rig: Rig) -> None:
    """Have backends of both families, without which nothing would be forwarded in them."""
    rig.serve(service(VIPS[4], NEAR[4][0], NEAR[6][0]))


def segment(
    inside: int, *, sport: int = PORT, payload: bytes = b"towpath", **fields: Any
) -> Packet:
    """A probe's segment, as it comes by the loopback device."""
    addresses = {"src": str(OWN[IN][inside]), "dst": str(VIPS[inside])}
    header = IP(**addresses, **fields) if inside == 4 else IPv6(**addresses, **fields)
    link = Ether(src="00:00:00:00:00:00", dst="00:00:00:00:00:00")
    return link / header / TCP(sport=sport, dport=80) / Raw(payload)


def noted(health: HealthRig, inside: int, backend: Address, port: int = PORT) -> None:
    """Write the connection of `segment` down."""
    health.note(Connection(OWN[IN][inside], port, backend))


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_probe_is_encapsulated_as_a_clients_packet(
    health: HealthRig, inside: int, outside: int
) -> None:
    """Behind the header that the load balancer writes, unchanged itself."""
    noted(health, inside, NEAR[outside][0])
    packet = bytes(segment(inside))
    assert health.check(packet, NEAR[outside][0], SENT).endswith(packet[14:])


@pytest.mark.parametrize("kind", ["gre", "fou", "gue", "gue0"])
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_probe_goes_in_the_services_kind_of_tunnel(
    health: HealthRig, kind: Encap, inside: int, outside: int
) -> None:
    """With what is between the outer IP header and the packet."""
    tunnel = Tunnel(kind, None if kind == "gre" else 9886)
    backend = NEAR[outside][0]
    health.note(Connection(OWN[IN][inside], PORT, backend, tunnel=tunnel))
    health.check(bytes(segment(inside)), backend, SENT, tunnel=tunnel)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_scapy_would_have_built_the_same(health: HealthRig, inside: int, outside: int) -> None:
    """A second opinion on every field, from someone else's code."""
    backend = NEAR[outside][3]
    noted(health, inside, backend)
    fields: dict[str, Any] = {"tos": 0x20, "flags": "DF", "id": 7} if inside == 4 else {"tc": 0x20}
    packet = bytes(segment(inside, **fields))
    source, target = str(OWN[IN][outside]), str(backend)
    if outside == 4:
        proto, flags = CARRIED[inside], "DF" if inside == 4 else 0
        outer = IP(src=source, dst=target, tos=0x20, ttl=64, proto=proto, id=0, flags=flags)
    else:
        label = health.label(packet)
        outer = IPv6(src=source, dst=target, tc=0x20, hlim=64, nh=CARRIED[inside], fl=label)
    link = Ether(src="00:00:00:00:00:00", dst="00:00:00:00:00:00")
    out = health.check(packet, backend, SENT)
    assert out == bytes(link / outer / Raw(packet[14:]))


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_every_size_and_class(health: HealthRig, inside: int, outside: int) -> None:
    """DSCP and ECN are copied, and lengths are right from no payload to a full segment."""
    noted(health, inside, NEAR[outside][1])
    for size in (0, 1, 2, 3, 63, 64, 511, 1160, 1180):
        health.check(bytes(segment(inside, payload=bytes(size))), NEAR[outside][1], SENT)
    for value in cases(range(256), 7):
        fields: dict[str, Any] = {"tos" if inside == 4 else "tc": value}
        health.check(bytes(segment(inside, **fields)), NEAR[outside][1], SENT)


@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("identification", [0, 1, 0xFFFF])
@pytest.mark.parametrize("flags", [0, 2])
def test_may_be_fragmented_outside_as_inside(
    health: HealthRig, outside: int, identification: int, flags: int
) -> None:
    """DF is copied; without it the outer ID is the inner one."""
    noted(health, 4, NEAR[outside][0])
    health.check(bytes(segment(4, id=identification, flags=flags)), NEAR[outside][0], SENT)


@pytest.mark.parametrize("outside", [4, 6])
def test_each_connection_has_its_backend(health: HealthRig, outside: int) -> None:
    """Whatever the flow table or Maglev would choose."""
    for number, backend in enumerate((*NEAR[outside], *FAR[outside])):
        noted(health, outside, backend, PORT + number)
    for number, backend in enumerate((*NEAR[outside], *FAR[outside])):
        packet = bytes(segment(outside, sport=PORT + number))
        health.check(packet, backend, SENT)


@pytest.mark.parametrize("outside", [4, 6])
def test_a_connection_that_is_written_down_again_has_the_new_backend(
    health: HealthRig, outside: int
) -> None:
    """Ports come back: the last entry counts."""
    noted(health, outside, NEAR[outside][0])
    noted(health, outside, NEAR[outside][1])
    health.check(bytes(segment(outside)), NEAR[outside][1], SENT)


@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("ways", [NEAR_UNRESOLVED, FAR_UNRESOLVED, BEHIND_GATEWAY])
def test_the_next_hop_is_the_kernels_to_find(
    health: HealthRig, outside: int, ways: dict[int, Address]
) -> None:
    """Neighbours that aren't resolved, other devices, gateways: sent all the same."""
    noted(health, outside, ways[outside])
    health.check(bytes(segment(outside)), ways[outside], SENT)


@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("ways", [UNROUTED, *(addresses for addresses, _ in REFUSED.values())])
def test_without_a_route_it_is_dropped_and_counted(
    health: HealthRig, outside: int, ways: dict[int, Address]
) -> None:
    """Unchanged, and not sent some other way."""
    noted(health, outside, ways[outside])
    health.check(bytes(segment(outside)), None, NO_ROUTE)


# Without a tunnel


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_l2_leaves_the_packet_as_it_is(health: HealthRig, inside: int, outside: int) -> None:
    """The kernel writes the frame: to a neighbour on any device, resolved or not."""
    for backend in (NEAR[outside][0], FAR[outside][0], FAR_UNRESOLVED[outside]):
        health.note(Connection(OWN[IN][inside], PORT, backend, l2=True))
        health.check(bytes(segment(inside)), None, SENT)


@pytest.mark.parametrize("outside", [4, 6])
def test_l2_does_not_go_by_a_gateway(health: HealthRig, outside: int) -> None:
    """Which would send it back to where the VIP is."""
    health.note(Connection(OWN[IN][outside], PORT, BEHIND_GATEWAY[outside], l2=True))
    health.check(bytes(segment(outside)), None, NO_ROUTE)


# What is not sent


@pytest.mark.parametrize("inside", [4, 6])
@pytest.mark.parametrize("mark", [0, DEFAULT_MARK + 1, DEFAULT_MARK << 8 | DEFAULT_MARK])
def test_a_packet_without_the_mark_is_not_even_counted(
    health: HealthRig, inside: int, mark: int
) -> None:
    """All other traffic of the loopback device, also of others who use marks."""
    noted(health, inside, NEAR[inside][0])
    health.check(bytes(segment(inside)), None, NOT_OURS, mark=mark)


@pytest.mark.parametrize("inside", [4, 6])
def test_a_connection_that_nobody_wrote_down_goes_nowhere(health: HealthRig, inside: int) -> None:
    """Another port, another address: dropped, since somebody on this node might answer."""
    noted(health, inside, NEAR[inside][0])
    health.check(bytes(segment(inside, sport=PORT + 1)), None, UNKNOWN)
    other = segment(inside)
    other[1].src = str(OWN[OUT][inside])
    health.check(bytes(other), None, UNKNOWN)


def test_what_is_no_segment_of_the_kernels_goes_nowhere(health: HealthRig) -> None:
    """UDP, fragments, options, extension headers, ARP, and frames that end too soon."""
    for inside in (4, 6):
        noted(health, inside, NEAR[inside][0])
    header4 = {"src": str(OWN[IN][4]), "dst": str(VIPS[4])}
    header6 = {"src": str(OWN[IN][6]), "dst": str(VIPS[6])}
    ports = {"sport": PORT, "dport": 80}
    for packet in (
        IP(**header4) / UDP(**ports),
        IPv6(**header6) / UDP(**ports),
        IP(**header4, flags="MF") / TCP(**ports),
        IP(**header4, frag=1) / TCP(**ports),
        IP(**header4, options=[IPOption_NOP()] * 4) / TCP(**ports),
        IPv6(**header6) / IPv6ExtHdrDestOpt() / TCP(**ports),
    ):
        health.check(bytes(Ether() / packet), None, UNKNOWN)
    health.check(bytes(Ether(type=0x0806) / Raw(bytes(46))), None, UNKNOWN)
    for inside, length in ((4, 14 + 20), (4, 14 + 22), (6, 14 + 40), (6, 14 + 42)):
        health.check(bytes(segment(inside))[:length], None, UNKNOWN)


def test_outer_sources_vary_as_those_of_clients() -> None:
    """With prefixes as sources the flow's hash fills the host bits."""
    prefixes = {4: ip_network("10.44.0.0/16"), 6: ip_network("2001:db8:44::/96")}
    source = Source(ipv4=IPv4Network("10.44.0.0/16"), ipv6=IPv6Network("2001:db8:44::/96"))
    with network() as net, rigged(net, source=source) as rig:
        forward_both(rig)
        health = HealthRig(rig)
        for inside, outside in COMBINATIONS:
            seen = set()
            for sport in range(PORT, PORT + 20):
                noted(health, inside, NEAR[outside][0], sport)
                out = health.check(bytes(segment(inside, sport=sport)), NEAR[outside][0], SENT)
                seen.add(ip_address(out[26:30] if outside == 4 else out[22:38]))
            assert len(seen) == 20
            assert all(address in prefixes[outside] for address in seen)
