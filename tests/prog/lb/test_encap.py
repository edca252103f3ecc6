# SPDX-License-Identifier: Apache-2.0
"""The load balancer against its oracle: packets that are balanced, and what comes out."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from tests.guests import cases
from tests.prog.lb.frames import VIPS, ether, frame, ip, segment
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import IN, MACS, NEAR, OUT, OWN, neighbour_mac
from tests.prog.lb.oracle import CARRIED, OUTER_HEADER, TX

from towpath.model import Protocol

BOTH_WAYS = True
COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside


def serve(rig: Rig, inside: int, outside: int, protocol: Protocol = Protocol.TCP) -> None:
    """One service with backends of one family."""
    rig.serve(service(VIPS[inside], *NEAR[outside], protocol=protocol))


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_packet_goes_out_encapsulated(
    rig: Rig, inside: int, outside: int, protocol: Protocol
) -> None:
    """Unchanged, behind a header to a backend, out of the device that it came in on."""
    serve(rig, inside, outside, protocol)
    before = frame(inside, protocol.number)
    outcome = rig.expect(before, TX)
    assert outcome.backend in NEAR[outside]
    assert outcome.frame[14 + OUTER_HEADER[outside] :] == before[14:]


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_scapy_would_have_built_the_same(rig: Rig, inside: int, outside: int) -> None:
    """A second opinion on every field, from someone else's code."""
    serve(rig, inside, outside)
    outcome = rig.expect(frame(inside, traffic_class=0xB9), TX)
    assert outcome.backend is not None
    host = outcome.backend.packed[-1]
    source, target = str(OWN[IN][outside]), str(outcome.backend)
    link = Ether(src=MACS[IN].hex(":"), dst=neighbour_mac(IN, host).hex(":"))
    carried = CARRIED[inside]
    if outside == 4:
        outer = IP(src=source, dst=target, tos=0xB9, ttl=64, proto=carried, id=1, flags=0)
    else:
        label = IPv6(outcome.frame[14:]).fl
        outer = IPv6(src=source, dst=target, tc=0xB9, hlim=64, nh=carried, fl=label)
    inner = frame(inside, traffic_class=0xB9)[14:]
    assert outcome.frame == bytes(link / outer / Raw(inner))


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_every_dscp_and_ecn_is_copied(rig: Rig, inside: int, outside: int) -> None:
    """RFC 6040, normal mode: the outer field is the inner one, CE too."""
    serve(rig, inside, outside)
    for traffic_class in cases(range(256), 7):
        out = rig.expect(frame(inside, traffic_class=traffic_class), TX).frame
        outer = IP(out[14:]).tos if outside == 4 else IPv6(out[14:]).tc
        assert outer == traffic_class


@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("identification", [0, 1, 0x1234, 0xFFFF])
@pytest.mark.parametrize("flags", [0, 2, 4, 6])  # 2: don't fragment; 4: reserved, may be set
def test_may_be_fragmented_outside_as_inside(
    rig: Rig, outside: int, identification: int, flags: int
) -> None:
    """DF is copied; without it the outer ID is as unique as the inner one."""
    serve(rig, 4, outside)
    out = rig.expect(frame(4, id=identification, flags=flags), TX).frame
    if outside == 4:
        outer = IP(out[14:])
        assert int(outer.flags) == flags & 2
        assert outer.id == (0 if flags & 2 else identification)


@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("words", range(11))
def test_ipv4_options_are_carried_along(rig: Rig, outside: int, words: int) -> None:
    """Every header length from 20 to 60 bytes; ports are found behind the options."""
    serve(rig, 4, outside)
    options = [IPOption_NOP()] * 4 * words
    packet = ip(4, options=options) / segment()
    assert packet.copy().__class__(bytes(packet)).ihl == 5 + words
    rig.expect(bytes(ether() / packet), TX)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_padding_goes_along_and_counts_for_nothing(rig: Rig, inside: int, outside: int) -> None:
    """What is behind the packet stays behind it; lengths and bytes counted are the packet's."""
    serve(rig, inside, outside, Protocol.UDP)
    bare = frame(inside, 17, payload=b"")
    for padding in (b"\0", bytes(18), b"trailer" * 20):
        outcome = rig.expect(bare + padding, TX)
        assert outcome.length == len(bare) - 14
        assert outcome.frame.endswith(padding)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_every_size_of_packet(rig: Rig, inside: int, outside: int) -> None:
    """From no payload to all that the device takes."""
    serve(rig, inside, outside)
    for size in (*range(64), 511, 512, 1000, 1360):
        rig.expect(frame(inside, payload=bytes(size)), TX)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_flows_spread_over_backends_and_labels(rig: Rig, inside: int, outside: int) -> None:
    """Slot and flow label are those of the oracle's hash, whatever differs between flows."""
    serve(rig, inside, outside)
    backends, labels = set(), set()
    sports = cases(range(1, 60000, 199), 5)
    for sport in sports:
        outcome = rig.expect(frame(inside, sport=sport), TX)
        backends.add(outcome.backend)
        labels.add(outcome.frame[14:18])
    assert backends == set(NEAR[outside])
    assert outside == 4 or len(labels) > 0.96 * len(sports)


@pytest.mark.parametrize("device", [IN, OUT])
def test_both_families_of_backends_behind_one_vip(rig: Rig, device: str) -> None:
    """An IPv4 VIP may have IPv6 backends besides: each packet gets its own backend's header."""
    rig.serve(service(VIPS[4], *NEAR[4], *NEAR[6]))
    backends = {rig.check(frame(4, sport=sport), device).backend for sport in range(200)}
    assert backends == {*NEAR[4], *NEAR[6]}
