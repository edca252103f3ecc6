# SPDX-License-Identifier: Apache-2.0
"""Tunnels of GRE, FOU and GUE against the oracle, and as scapy builds them."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE, Ether
from scapy.packet import Raw
from tests.guests import cases
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import IN, MACS, MTU, NEAR, OWN, neighbour_mac
from tests.prog.lb.oracle import BETWEEN, CARRIED, OUTER_HEADER, TOO_BIG, TOO_LARGE, TX

from towpath.model import Protocol

BOTH_WAYS = True
KINDS = ("gre", "fou", "gue", "gue0")
COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
PORT = 9886


def serve(rig: Rig, kind: str, inside: int, outside: int, **options: Any) -> None:
    """One service whose tunnels are of that kind."""
    port = None if kind == "gre" else PORT
    rig.serve(service(VIPS[inside], *NEAR[outside], encap=kind, encap_port=port, **options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_scapy_would_have_built_the_same(rig: Rig, kind: str, inside: int, outside: int) -> None:
    """A second opinion on every field, from someone else's code."""
    serve(rig, kind, inside, outside)
    outcome = rig.expect(frame(inside, traffic_class=0xB9), TX)
    assert outcome.backend is not None
    host = outcome.backend.packed[-1]
    source, target = str(OWN[IN][outside]), str(outcome.backend)
    link = Ether(src=MACS[IN].hex(":"), dst=neighbour_mac(IN, host).hex(":"))
    if outside == 4:
        outer = IP(src=source, dst=target, tos=0xB9, ttl=64, id=1, flags=0)
    else:
        label = IPv6(outcome.frame[14:]).fl
        outer = IPv6(src=source, dst=target, tc=0xB9, hlim=64, fl=label)
    inner = Raw(frame(inside, traffic_class=0xB9)[14:])
    if kind == "gre":
        between = GRE(proto={4: 0x0800, 6: 0x86DD}[inside])
    else:
        at = 14 + OUTER_HEADER[outside]
        sport = int.from_bytes(outcome.frame[at : at + 2], "big")
        assert sport >= 49152
        between = UDP(sport=sport, dport=PORT, chksum=0)
        if kind == "gue0":
            between /= Raw(bytes((0, CARRIED[inside], 0, 0)))
    assert outcome.frame == bytes(link / outer / between / inner)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("vlan", [None, 7])
def test_the_largest_packet_fits_and_no_larger(
    rig: Rig, kind: str, inside: int, outside: int, protocol: Protocol, vlan: int | None
) -> None:
    """To the byte, by the headers that this kind has; what doesn't fit is told what does."""
    serve(rig, kind, inside, outside, protocol=protocol)
    room = MTU[IN] - OUTER_HEADER[outside] - BETWEEN[kind]
    header = len(frame(inside, protocol.number, payload=b"")) - 14
    for size in (0, 1, 2, 63, 512, room - header - 1, room - header):
        rig.expect(frame(inside, protocol.number, payload=bytes(size), vlan=vlan), TX)
    # Of 1280 bytes IPv6 hosts don't send less, so that it would be told in vain.
    answered = TOO_BIG if inside == 4 or room >= 1280 else TOO_LARGE
    for more in (1, 8):
        payload = bytes(room - header + more)
        rig.expect(frame(inside, protocol.number, payload=payload, vlan=vlan), answered)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("identification", [0, 1, 0xFFFF])
@pytest.mark.parametrize("flags", [0, 2])
def test_may_be_fragmented_outside_as_inside(
    rig: Rig, kind: str, outside: int, identification: int, flags: int
) -> None:
    """DF is copied; without it the outer ID is as unique as the inner one."""
    serve(rig, kind, 4, outside)
    rig.expect(frame(4, id=identification, flags=flags), TX)


@pytest.mark.parametrize("kind", ["fou", "gue", "gue0"])
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_flows_have_source_ports_of_their_own(
    rig: Rig, kind: str, inside: int, outside: int
) -> None:
    """So that the fabric and the backend's device tell them apart; a flow keeps its own."""
    serve(rig, kind, inside, outside)
    at = 14 + OUTER_HEADER[outside]
    sports = cases(range(1, 60000, 199), 5)
    seen = [rig.expect(frame(inside, sport=each), TX).frame[at : at + 2] for each in sports]
    assert len(set(seen)) > 0.96 * len(sports)
    again = [rig.expect(frame(inside, sport=each), TX).frame[at : at + 2] for each in sports[:9]]
    assert again == seen[:9]


def test_another_kind_is_in_force_from_the_next_packet_on(rig: Rig) -> None:
    """The flow goes on, with the backend that it has."""
    backends = set()
    for kind in ("ipip", *KINDS, "ipip"):
        rig.serve(service(VIPS[4], *NEAR[4], encap=kind))
        backends.add(rig.expect(frame(4), TX).backend)
    assert len(backends) == 1
