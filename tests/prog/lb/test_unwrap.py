# SPDX-License-Identifier: Apache-2.0
"""What comes in a tunnel to the load balancer is balanced as if it had come so, a hop further."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import UDP
from scapy.packet import Raw
from tests.guests import examples
from tests.prog.decap.oracle import CE, ECN_TABLE
from tests.prog.lb.frames import CLIENTS, VIPS, ether, frame
from tests.prog.lb.harness import service
from tests.prog.lb.harness_unwrap import (
    ENDS,
    KINDS,
    PORTS,
    TunnelRig,
    hops,
    outer,
    tunnelled,
    wrapped,
)
from tests.prog.lb.network import IN, MTU, NEAR, network
from tests.prog.lb.oracle import BETWEEN, ECHO, NO_VIP, OUTER_HEADER, TOO_BIG, TX
from tests.prog.lb.oracle_parse import FRAGMENT, OTHER_PROTOCOL
from tests.prog.lb.oracle_unwrap import ECN, MALFORMED, NO_HOP
from tests.prog.lb.test_echo import request
from tests.prog.lb.test_icmp_errors import answered, error

from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network

FAMILIES = (4, 6)
MUTATED = examples(500)
STRANGER = {family: type(vip)(int(vip) + 1) for family, vip in VIPS.items()}
"""No VIP."""


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    """A network of this module's own."""
    with network() as made:
        yield made


@pytest.fixture(scope="module")
def rig(net: Network) -> Iterator[TunnelRig]:
    """A load balancer that takes all kinds, with services for TCP and UDP in both families."""
    with tunnelled(net) as made:
        made.serve(
            *(
                service(VIPS[family], *NEAR[family], protocol=protocol)
                for family in FAMILIES
                for protocol in Protocol
            )
        )
        yield made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outside", FAMILIES)
@pytest.mark.parametrize("inside", FAMILIES)
@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("vlan", [None, 7])
def test_the_packet_within_is_balanced(
    rig: TunnelRig, kind: str, outside: int, inside: int, protocol: int, vlan: int | None
) -> None:
    """To the byte what comes of the same packet without a tunnel, with one hop less left."""
    sent = frame(inside, protocol, **hops(inside, 44))
    out = rig.expect(wrapped(sent, kind, outside, vlan=vlan), TX).frame
    assert out == rig.expect(frame(inside, protocol, vlan=vlan, **hops(inside, 43)), TX).frame


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outside", FAMILIES)
@pytest.mark.parametrize("inside", FAMILIES)
def test_who_has_no_hop_left_goes_no_further(
    rig: TunnelRig, kind: str, outside: int, inside: int
) -> None:
    """Two load balancers that unwrap for each other end a loop; outer hops count nothing."""
    for left, verdict in ((0, NO_HOP), (1, NO_HOP), (2, TX), (255, TX)):
        sent = frame(inside, **hops(inside, left))
        rig.expect(wrapped(sent, kind, outside, **hops(outside, 1)), verdict)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outside", FAMILIES)
@pytest.mark.parametrize("inside", FAMILIES)
def test_what_is_for_no_vip_passes_as_it_came(
    rig: TunnelRig, kind: str, outside: int, inside: int
) -> None:
    """To the kernel, whose own tunnel it may be."""
    sent = wrapped(frame(inside, vip=STRANGER[inside]), kind, outside)
    verdict = NO_VIP if kind in {"fou", "gue0"} else OTHER_PROTOCOL
    assert rig.expect(sent, verdict).frame == sent


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inside", FAMILIES)
def test_a_vip_and_no_service_is_as_without_a_tunnel(
    rig: TunnelRig, kind: str, inside: int
) -> None:
    """A port that no service has: the packet within passes to the kernel."""
    sent, passed = (frame(inside, dport=81, **hops(inside, left)) for left in (64, 63))
    assert rig.expect(wrapped(sent, kind), NO_VIP).frame == passed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outside", FAMILIES)
def test_other_ends_are_not_ours(rig: TunnelRig, kind: str, outside: int) -> None:
    """Tunnels to any other address pass as they came."""
    verdict = NO_VIP if kind in {"fou", "gue0"} else OTHER_PROTOCOL
    end = type(ENDS[outside])(int(ENDS[outside]) + 1)
    sent = wrapped(frame(4), kind, outside, end=end)
    assert rig.expect(sent, verdict).frame == sent


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outside", FAMILIES)
@pytest.mark.parametrize("inside", FAMILIES)
def test_ecn_fields_are_merged(rig: TunnelRig, kind: str, outside: int, inside: int) -> None:
    """RFC 6040: every pair, and the one that must not go on."""
    for within, row in ECN_TABLE.items():
        for without in row:
            sent = frame(inside, traffic_class=0x48 | within)
            verdict = ECN if row[without] is None else TX
            assert (verdict == ECN) == (within == 0 and without == CE)
            rig.expect(wrapped(sent, kind, outside, traffic_class=0xB0 | without), verdict)


@pytest.mark.parametrize("kind", KINDS)
def test_nonsense_is_dropped(rig: TunnelRig, kind: str) -> None:
    """Of the outer header, or of the one within; with a reason that is counted."""
    good = wrapped(frame(4), kind)
    within = good.index(frame(4)[14:])
    changes = [(within, 0x44), (within + 2, 0x40)]
    if kind in {"ipip", "gre"}:  # else the port isn't believed, and it is any packet
        changes.append((24, good[24] ^ 1))
    for at, value in changes:
        bad = bytearray(good)
        bad[at] = value
        rig.expect(bytes(bad), MALFORMED)
    cut = wrapped(frame(4)[: 14 + 19], kind)
    rig.expect(cut, MALFORMED)


def test_a_datagram_longer_than_its_packet(rig: TunnelRig) -> None:
    """As UDP says it, which the IP header doesn't."""
    packet = Raw(frame(4)[14:])
    for length in (7, 8 + len(packet) + 1):
        sent = ether() / outer(4) / UDP(sport=1, dport=PORTS[0], len=length, chksum=0) / packet
        rig.expect(bytes(sent), MALFORMED)


@pytest.mark.parametrize("outside", FAMILIES)
@pytest.mark.parametrize("inside", FAMILIES)
def test_the_largest_packet_within(rig: TunnelRig, outside: int, inside: int) -> None:
    """It is the packet within that has to fit; what doesn't is told to its sender."""
    room = MTU[IN] - OUTER_HEADER[inside] - BETWEEN["ipip"]
    header = len(frame(inside, payload=b"")) - 14
    rig.expect(wrapped(frame(inside, payload=bytes(room - header)), outside=outside), TX)
    if not fib_lookup().mtu:
        return  # before 5.12 nobody knows
    answer = rig.expect(
        wrapped(frame(inside, payload=bytes(room - header + 1)), outside=outside), TOO_BIG
    )
    assert CLIENTS[inside].packed in answer.frame[14:54]


@pytest.mark.parametrize("inside", FAMILIES)
def test_what_is_about_flows_is_found_within(rig: TunnelRig, inside: int) -> None:
    """Echo requests and ICMP errors."""
    rig.expect(wrapped(bytes(request(inside)), outside=inside), ECHO)
    rig.expect(wrapped(error(answered(inside))), TX)


@pytest.mark.parametrize("outside", FAMILIES)
def test_a_tunnels_fragment_is_the_kernels(rig: TunnelRig, outside: int) -> None:
    """Who puts it together unwraps it."""
    sent = bytearray(wrapped(frame(4), outside=outside))
    if outside == 4:
        sent = bytearray(wrapped(frame(4), outside=4, flags="MF"))
    else:
        sent[20] = 44
        sent[54:54] = bytes((4, 0, 0, 1, 0, 0, 0, 1))
        sent[18:20] = (int.from_bytes(sent[18:20], "big") + 8).to_bytes(2, "big")
    assert rig.expect(bytes(sent), FRAGMENT).frame == bytes(sent)


@settings(max_examples=MUTATED, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    outside=st.sampled_from(FAMILIES),
    inside=st.sampled_from(FAMILIES),
    changes=st.lists(st.tuples(st.integers(12, 110), st.integers(0, 255)), max_size=3),
    size=st.integers(30, 200),
)
def test_whatever_comes(
    rig: TunnelRig,
    kind: str,
    outside: int,
    inside: int,
    changes: list[tuple[int, int]],
    size: int,
) -> None:
    """Mutated and truncated, it fares as the oracles say, and nothing else is counted."""
    sent = bytearray(wrapped(frame(inside, sport=1 + size), kind, outside)[:size])
    for at, value in changes:
        if at < len(sent):
            sent[at] = value
    rig.check(bytes(sent))
