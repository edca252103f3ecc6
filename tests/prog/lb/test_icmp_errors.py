# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about a flow reach the flow's backend, whole; all others pass as they came."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.packet import Packet, Raw
from tests.guests import examples
from tests.prog.lb.frames import CLIENTS, PORT, VIPS, ether, frame, ip
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.network import FAR, NEAR, NEAR_UNRESOLVED, THIRD, Network
from tests.prog.lb.oracle import HANDOFF, NO_BACKEND, REDIRECT, TX
from tests.prog.lb.oracle_parse import FRAGMENT, MALFORMED, OTHER_PROTOCOL

from towpath.model import Backend, Protocol

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Address

FAMILIES = [4, 6]
ROUTER = {4: ip_address("192.0.2.99"), 6: ip_address("2001:db8:8::1")}
TRANSPORTS = {6: TCP, 17: UDP}
ERRORS: dict[int, list[Packet]] = {
    4: [
        ICMP(type=3, code=4, nexthopmtu=1400),
        *(ICMP(type=3, code=code) for code in (0, 1, 3, 13)),
        ICMP(type=11, code=0),
        ICMP(type=11, code=1),
        ICMP(type=12, code=0, ptr=9),
    ],
    6: [
        ICMPv6PacketTooBig(mtu=1400),
        *(ICMPv6DestUnreach(code=code) for code in (0, 1, 3, 4)),
        ICMPv6TimeExceeded(code=0),
        ICMPv6ParamProblem(code=1, ptr=6),
    ],
}
TOO_BIG = {4: ERRORS[4][0], 6: ERRORS[6][0]}


@pytest.fixture(autouse=True)
def served(rig: Rig) -> None:
    """A VIP of each family, for TCP and for UDP."""
    rig.serve(
        *(service(VIPS[v], *NEAR[v], protocol=protocol) for v in (4, 6) for protocol in Protocol)
    )


def answered(
    family: int,
    protocol: int = 6,
    *,
    client: Address | None = None,
    vip: Address | None = None,
    port: int = PORT,
    client_port: int = 40000,
    **fields: Any,
) -> Packet:
    """A packet of a backend: from the VIP to a client, with nothing behind the 8 bytes."""
    header = ip(family, source=vip or VIPS[family], vip=client or CLIENTS[family], **fields)
    return header / TRANSPORTS[protocol](sport=port, dport=client_port)


def error(
    quoted: Packet | bytes, kind: Packet | None = None, *, vlan: int | None = None, **fields: Any
) -> bytes:
    """A frame with an ICMP error of a router about a packet."""
    return error_with(bytes(quoted)[0] >> 4, bytes(quoted), kind, vlan=vlan, **fields)


def error_with(
    family: int,
    quote: bytes,
    kind: Packet | None = None,
    *,
    vlan: int | None = None,
    **fields: Any,
) -> bytes:
    """The same, of a family, with any quote."""
    header = ip(family, source=ROUTER[family], **fields)
    return bytes(ether(vlan=vlan) / header / (kind or TOO_BIG[family]) / Raw(quote))


# ---- Those that reach the backend ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "number"), [(f, n) for f in FAMILIES for n in range(len(ERRORS[f]))]
)
@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("vlan", [None, 7])
def test_an_error_follows_its_flow(
    rig: Rig, family: int, number: int, protocol: int, vlan: int | None
) -> None:
    """Of every kind, and to the backend that the flow has, whatever Maglev says by now."""
    kind = ERRORS[family][number]
    backends = set()
    for sport in range(40000, 40008):
        there = rig.expect(frame(family, protocol, sport=sport), TX)
        back = rig.expect(error(answered(family, protocol, client_port=sport), kind, vlan=vlan), TX)
        assert there.backend == back.backend
        backends.add(back.backend)
    assert len(backends) > 2


@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_goes_where_the_flow_table_says(rig: Rig, family: int) -> None:
    """And not where Maglev would send a new flow."""
    ports = range(41000, 41040)
    known = {sport: rig.expect(frame(family, sport=sport), TX).backend for sport in ports}
    heavy = Backend(NEAR[family][0], 50)
    rig.serve(service(VIPS[family], *NEAR[family][1:], heavy))
    moved = 0
    for sport, backend in known.items():
        outcome = rig.expect(error(answered(family, client_port=sport)), TX)
        assert outcome.backend == backend
        assert outcome.key is not None
        assert outcome.flow is not None
        moved += rig.world.by_maglev(outcome.key, outcome.flow) != backend
    assert moved > len(ports) // 2


@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_teaches_the_flow_table_nothing(rig: Rig, family: int) -> None:
    """Nobody can fill it by errors: the flow is as new as it was."""
    for sport in range(50000, 50020):
        assert not rig.expect(error(answered(family, client_port=sport)), TX).fresh
        assert rig.expect(frame(family, sport=sport), TX).fresh


@pytest.mark.parametrize("family", FAMILIES)
def test_every_load_balancer_of_a_group_agrees(rig: Rig, net: Network, family: int) -> None:
    """One that has never seen the flow sends its errors where another sends its packets."""
    ports = range(42000, 42040)
    chosen = [rig.expect(frame(family, sport=sport), TX).backend for sport in ports]
    with rigged(net, devices=[THIRD]) as other:
        other.serve(service(VIPS[family], *NEAR[family]))
        errors = [error(answered(family, client_port=sport)) for sport in ports]
        assert [other.expect(each, TX).backend for each in errors] == chosen


@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_goes_every_way_that_packets_go(rig: Rig, family: int) -> None:
    """Out of another device, by the kernel's hand, or nowhere: counted for the service."""
    for backends, verdict in (
        ([FAR[family][0]], REDIRECT),
        ([NEAR_UNRESOLVED[family]], HANDOFF),
        ([], NO_BACKEND),
    ):
        rig.serve(service(VIPS[family], *backends))
        rig.expect(error(answered(family)), verdict)


def test_ipv4_errors_in_an_ipv6_tunnel(rig: Rig) -> None:
    """The backends of an IPv4 VIP may be IPv6 hosts."""
    rig.serve(service(VIPS[4], *NEAR[6]))
    there = rig.expect(frame(4), TX)
    assert rig.expect(error(answered(4)), TX).backend == there.backend


@pytest.mark.thorough
def test_ipv4_options_in_front_and_in_the_quote(rig: Rig) -> None:
    """On either side, of any length."""
    for outside in range(0, 41, 4):
        for inside in range(0, 41, 4):
            options = [IPOption_NOP()] * outside, [IPOption_NOP()] * inside
            quoted = answered(4, options=options[1])
            rig.expect(error(quoted, options=options[0]), TX)
    rig.expect(error(answered(4, options=[IPOption_RR()])), TX)


def test_ipv6_extension_headers_in_front_and_in_the_quote(rig: Rig) -> None:
    """Those that are walked past."""
    chain = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
    segment = answered(6)[TCP]
    quoted = ip(6, source=VIPS[6], vip=CLIENTS[6]) / chain / segment
    rig.expect(error(quoted), TX)
    made = ether() / ip(6, source=ROUTER[6]) / chain / TOO_BIG[6] / Raw(bytes(quoted))
    rig.expect(bytes(made), TX)


def test_quotes_of_first_fragments_have_ports(rig: Rig) -> None:
    """A datagram that the backend itself has fragmented; of later ones nothing is known."""
    whole = answered(4, 17)
    for flags, offset, verdict in ((1, 0, TX), (1, 3, OTHER_PROTOCOL), (0, 3, OTHER_PROTOCOL)):
        quoted = whole.copy()
        quoted[IP].flags, quoted[IP].frag = flags, offset
        rig.expect(error(quoted), verdict)
    for more, offset, verdict in ((1, 0, TX), (0, 0, TX), (1, 3, OTHER_PROTOCOL)):
        header = IPv6ExtHdrFragment(m=more, offset=offset, id=5)
        quoted = ip(6, source=VIPS[6], vip=CLIENTS[6]) / header / UDP(sport=PORT, dport=40000)
        rig.expect(error(quoted), verdict)


# ---- Those that pass -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_about_something_else_pass(rig: Rig, family: int) -> None:
    """Another port, another protocol, the client's own packet, another sender's."""
    other = VIPS[family] + 1
    for quoted in (
        answered(family, port=PORT + 1),
        answered(family, vip=other),
        bytes(frame(family))[14:],
        answered(family, vip=CLIENTS[family], client=VIPS[family]),
        ip(family, source=VIPS[family], vip=CLIENTS[family]) / Raw(bytes(40)),
    ):
        rig.expect(error(quoted), OTHER_PROTOCOL)
    # What is addressed to one VIP and quotes another one's packet was not asked for.
    rig.expect(error(answered(family), vip=other), OTHER_PROTOCOL)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_messages_pass(rig: Rig, family: int) -> None:
    """Every type that is no error (and no echo request), however much it looks like one."""
    errors = {4: {3, 11, 12, 8}, 6: {1, 2, 3, 4, 128}}[family]
    made = bytearray(error(answered(family)))
    at = 14 + {4: 20, 6: 40}[family]
    for kind in set(range(256)) - errors:
        made[at] = kind
        rig.expect(bytes(made), OTHER_PROTOCOL)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_of_the_other_family_means_nothing(rig: Rig, family: int) -> None:
    """ICMP in IPv6, ICMPv6 in IPv4."""
    made = bytearray(error(answered(family)))
    made[{4: 23, 6: 20}[family]] = {4: 58, 6: 1}[family]
    rig.expect(bytes(made), OTHER_PROTOCOL)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quote_is_believed_from_its_eighth_byte_on(rig: Rig, family: int) -> None:
    """RFC 792 has routers quote 8 bytes of what is behind the header; shorter ones pass."""
    quoted = bytes(answered(family))
    whole = {4: 20, 6: 40}[family] + 8
    for length in range(len(quoted) + 1):
        made = error_with(family, quoted[:length])
        rig.expect(made, TX if length >= whole else OTHER_PROTOCOL)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_no_quote(rig: Rig, family: int) -> None:
    """What is behind the end of the packet, as its header says, isn't read."""
    quoted = bytes(answered(family))
    whole = {4: 20, 6: 40}[family] + 8
    for length in range(whole):
        made = error_with(family, quoted[:length]) + quoted[length:]
        rig.expect(made, OTHER_PROTOCOL)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frame_that_is_cut(rig: Rig, family: int) -> None:
    """At any byte: shorter than its header says, it is nobody's."""
    made = error(answered(family))
    for length in range(14 + {4: 20, 6: 40}[family], len(made)):
        rig.expect(made[:length], MALFORMED)


@pytest.mark.thorough
def test_a_header_length_that_lies(rig: Rig) -> None:
    """In the quote: any value of its first byte."""
    quoted = bytearray(bytes(answered(4)) + bytes(60))
    for first in range(256):
        quoted[0] = first
        made = bytearray(error(bytes(answered(4)) + bytes(60)))
        made[42] = first
        outcome = rig.check(bytes(made))
        assert outcome.verdict == (TX if first == 0x45 else OTHER_PROTOCOL)


def test_fragments_of_errors_pass(rig: Rig) -> None:
    """The kernel puts them together."""
    whole = error(answered(4))
    for flags in (b"\x20\0", b"\0\x05"):
        rig.expect(whole[:20] + flags + whole[22:], FRAGMENT)


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_any_quote_whatever(rig: Rig, family: int) -> None:
    """Damaged at random, cut and lengthened: as the oracle says, and nothing else moves."""
    good = bytes(answered(family) / Raw(bytes(20)))
    edits = st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=3)
    seen = set()

    @settings(max_examples=examples(1500))
    @given(edits, st.integers(0, len(good)), st.binary(max_size=40), st.integers(-40, 40))
    def agree(edits: list[tuple[int, int]], cut: int, more: bytes, lie: int) -> None:
        quote = bytearray(good)
        for at, value in edits:
            quote[at] = value
        made = bytearray(error(good))
        start = len(made) - len(good)
        made[start:] = (bytes(quote) if cut < 8 else bytes(quote[:cut])) + more
        length = len(made) - 14 - (0 if family == 4 else 40) + lie
        at = 16 if family == 4 else 18
        made[at : at + 2] = struct.pack("!H", max(length, 0))
        seen.add(rig.check(bytes(made)).verdict)

    agree()
    assert {TX, OTHER_PROTOCOL, MALFORMED} <= seen
