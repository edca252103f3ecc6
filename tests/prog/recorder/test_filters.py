# SPDX-License-Identifier: Apache-2.0
"""Which frames a capture takes, how many of them, and how much of each."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw
from tests.prog.lb.authentication import authenticated
from tests.prog.lb.frames import VIPS, ether, flows, frame, ip
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import FAR, IN, MTU, NEAR, OUT
from tests.prog.lb.wire_fragments import cut
from tests.prog.recorder.harness import (
    assert_sent_on,
    assert_told,
    recorded,
    serve_all,
)
from tests.read_pcapng import read

from towpath.datapath.errors import DatapathError
from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.model import Protocol

if TYPE_CHECKING:
    from towpath.model.service import Forwarding

# ---- Filters -------------------------------------------------------------------------------------


def other(number: int) -> bytes:
    """Frames of many kinds, told apart by their number."""
    source = f"198.51.100.{number % 256}"
    ports = {"sport": 1000 + number % 7, "dport": 75 + number % 11}
    kinds = [
        ip(4, source=ip_address(source)) / TCP(**ports),
        ip(4, source=ip_address(source)) / UDP(**ports),
        ip(4, source=ip_address(source)) / SCTP(**ports),
        ip(4, source=ip_address(source)) / ICMP(),
        ip(4, source=ip_address(source), flags="MF") / UDP(**ports),
        ip(4, source=ip_address(source), frag=3, proto=17) / Raw(b"\x03\xe8\0\x50" * 4),
        ip(6, source=ip_address(f"2001:db8:3::{number % 256:x}")) / TCP(**ports),
        ip(6) / IPv6ExtHdrDestOpt() / UDP(**ports),
        ip(6) / IPv6ExtHdrFragment(m=1) / UDP(**ports),
        ip(6) / IPv6ExtHdrFragment(offset=3, nh=17) / Raw(b"\x03\xe8\0\x50" * 4),
        ARP(),
    ]
    return bytes(ether(vlan=5 if number % 3 == 0 else None) / kinds[number % len(kinds)])


def matches(line: str, sent: bytes) -> bool:
    """Whether a filter matches a frame, by the text of both."""
    source, sport, destination, dport, protocol = line.split()
    packet = Ether(sent)
    layer = packet.getlayer(IP) or packet.getlayer(IPv6)
    if layer is None:
        return False
    number = sent_protocol(layer)
    for prefix, address in ((source, layer.src), (destination, layer.dst)):
        if prefix != "0" and ip_address(address) not in ip_network(prefix):
            return False
    if protocol not in ("0", str(number)):
        return False
    ports = sent_ports(layer, number)
    for wish, port in zip((sport, dport), ports, strict=True):
        first, _, last = wish.partition("-")
        if wish != "0" and not int(first) <= port <= int(last or first):
            return False
    return True


def sent_protocol(layer: IP | IPv6) -> int:
    """The transport protocol of a packet."""
    if isinstance(layer, IP):
        return int(layer.proto)
    number, inside = layer.nh, layer.payload
    while number in (44, 60):
        number, inside = inside.nh, inside.payload
    return int(number)


def sent_ports(layer: IP | IPv6, protocol: int) -> tuple[int, int]:
    """Its ports, if it has any: not after the first fragment."""
    fragment = layer.getlayer(IPv6ExtHdrFragment)
    offset = layer.frag if isinstance(layer, IP) else fragment.offset if fragment else 0
    for number, kind in ((6, TCP), (17, UDP), (132, SCTP)):
        if protocol == number and not offset and (found := layer.getlayer(kind)):
            return found.sport, found.dport
    return 0, 0


FILTERS = [
    ["0 0 0 0 0"],
    ["0.0.0.0/0 0 0.0.0.0/0 0 0"],
    ["::/0 0 0 0 0"],
    ["198.51.100.0/28 0 0 0 0"],
    ["198.51.100.3 0 0 0 0", "2001:db8:3::/122 0 0 0 6"],
    ["0 1000-1002 0 0 17"],
    ["0 0 203.0.113.10 78-81 132"],
    ["0 0 0 80 0"],
    ["0 0 0 0 1", "0 1003 0 79 6"],
    ["192.0.2.0/24 0 0 0 0"],
]


@pytest.mark.parametrize("filters", FILTERS)
def test_filters_select(rig: Rig, filters: list[str]) -> None:
    """Those frames that one of the filters matches, and no others."""
    serve_all(rig, 4, *NEAR[4])
    frames = [other(number) for number in range(200)]
    with recorded(rig, filters=filters, direction="in") as capture:
        for each in frames:
            rig.run(each, IN)
        found = capture.end()
        progress = capture.recording.progress()
    expected = [each for each in frames if any(matches(line, each) for line in filters)]
    assert [each.data for each in found.packets] == expected
    assert (progress.seen, progress.matched, progress.packets) == (
        len(frames),
        len(expected),
        len(expected),
    )


TAGS: dict[str, list[type[Packet]]] = {
    "none": [],
    "802.1Q": [Dot1Q],
    "802.1ad": [Dot1AD],
    "802.1ad 802.1Q": [Dot1AD, Dot1Q],
    "802.1Q 802.1Q": [Dot1Q, Dot1Q],
    "802.1ad 802.1ad": [Dot1AD, Dot1AD],
    "802.1Q 802.1ad": [Dot1Q, Dot1AD],
}


def behind(tags: list[type[Packet]], packet: bytes) -> bytes:
    """A frame with an IP packet behind some tags."""
    made = ether()
    for number, tag in enumerate(tags, 7):
        made /= tag(vlan=number)
    made.lastlayer().type = {4: 0x0800, 6: 0x86DD}[packet[0] >> 4]
    return bytes(made) + packet


@pytest.mark.thorough
@pytest.mark.parametrize("tags", TAGS)
def test_filters_see_behind_tags_and_authentication_headers(rig: Rig, tags: str) -> None:
    """As the kernel does; a packet with such a header is one of either protocol."""
    serve_all(rig, 4, *NEAR[4])
    plain = [
        bytes(ip(version) / transport(sport=1000, dport=80))
        for version in (4, 6)
        for transport in (TCP, UDP)
    ]
    packets = [*plain, *map(authenticated, plain)]
    frames = [behind(TAGS[tags], each) for each in packets]
    v4, v6 = VIPS[4], VIPS[6]
    for line, expected in (
        ("0 0 0 80 tcp", {0, 2, 4, 6}),
        ("0 0 0 80 udp", {1, 3, 5, 7}),
        (f"0 1000 {v4} 80 tcp", {0, 4}),
        (f"0 1000 {v6} 80 udp", {3, 7}),
        ("0 0 0 81 0", set()),
        ("0 0 0 0 ah", {4, 5, 6, 7}),
        (f"0 0 {v6} 0 ah", {6, 7}),
        ("0 0 0 80 ah", set()),
    ):
        with recorded(rig, filters=[line], direction="in") as capture:
            for each in frames:
                rig.run(each, IN)
            found = [each.data for each in capture.end().packets]
        assert found == [each for at, each in enumerate(frames) if at in expected], line


@pytest.mark.thorough
def test_more_than_two_tags(rig: Rig) -> None:
    """Are not looked behind; without a filter such frames are captured as all are."""
    serve_all(rig, 4, *NEAR[4])
    made = behind([Dot1AD, Dot1Q, Dot1Q], bytes(ip(4) / TCP(dport=80)))
    for filters, expected in ((["0 0 0 80 tcp"], []), ([], [made])):
        with recorded(rig, filters=filters, direction="in") as capture:
            rig.run(made, IN)
            assert [each.data for each in capture.end().packets] == expected


@pytest.mark.parametrize("version", [4, 6])
def test_fragments_with_an_authentication_header(rig: Rig, version: int) -> None:
    """Only the first one has what is behind it."""
    serve_all(rig, 4, *NEAR[4])
    made = authenticated(bytes(ip(version) / UDP(sport=1000, dport=80) / Raw(bytes(1500))))
    frames = [behind([], each) for each in cut(made, 600, 5)]
    for line, expected in (("0 0 0 80 udp", frames[:1]), ("0 0 0 0 ah", frames)):
        with recorded(rig, filters=[line], direction="in") as capture:
            for each in frames:
                rig.run(each, IN)
            assert [each.data for each in capture.end().packets] == expected


@pytest.mark.thorough
def test_many_filters_select(rig: Rig) -> None:
    """A thousand, of which one matches."""
    serve_all(rig, 4, *NEAR[4])
    filters = [f"10.{n % 200}.0.0/16 {n + 1} 0 {n + 1}-{n + 9} tcp" for n in range(999)]
    with recorded(rig, filters=[*filters, "198.51.100.0/24 0 0 0 tcp"]) as capture:
        rig.check(frame())
        rig.check(frame(protocol=17))
        assert [each.data for each in capture.end().packets if each.inbound] == [frame()]


@pytest.mark.thorough
def test_services_are_filters(rig: Rig) -> None:
    """By their names: VIP, ports and protocol."""
    rig.serve(
        service(VIPS[4], *NEAR[4]),
        service(ip_network("203.0.113.64/28"), *NEAR[4], port=81, protocol=Protocol.UDP),
    )
    names = [each.name for each in rig.balancer.observed()]
    prefixed = frame(4, 17, vip=ip_address("203.0.113.66"), dport=81)
    for name in names:
        with recorded(rig, services=[name]) as capture:
            rig.check(frame())
            rig.check(frame(protocol=17))
            rig.check(prefixed)
            found = capture.end()
        assert {each.said["service"] for each in found.packets} == {name}
        assert len(found.packets) == 2
    with (
        pytest.raises(DatapathError, match="no service 'nope'; there are: "),
        recorded(rig, services=["nope"]),
    ):
        pass


# ---- How much ------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("snaplen", [1, 14, 60, 61, 64, 1000, 65535])
def test_frames_are_cut(rig: Rig, snaplen: int) -> None:
    """To so many bytes, and the file has the original length."""
    serve_all(rig, 4, *NEAR[4])
    frames = [frame(payload=b"x" * size) for size in (0, 1, 5, 6, 7, 8, 946, MTU[IN] - 60)]
    with recorded(rig, snaplen=snaplen) as capture:
        outcomes = [rig.expect(each, "tx") for each in frames]
        found = capture.end()
    sides = zip(frames, outcomes, found.packets[::2], found.packets[1::2], strict=True)
    for sent, outcome, came, went in sides:
        assert (came.data, came.length) == (sent[:snaplen], len(sent))
        assert (went.data, went.length) == (outcome.frame[:snaplen], len(outcome.frame))
    assert {each.snaplen for each in found.interfaces} == {snaplen}


@pytest.mark.thorough
@pytest.mark.parametrize("direction", ["in", "out"])
def test_one_direction(rig: Rig, direction: str) -> None:
    """Only what comes in, or only what is sent on; either says what became of it."""
    serve_all(rig, 4, *NEAR[4])
    with recorded(rig, direction=direction) as capture:
        outcome = rig.expect(frame(), "tx")
        rig.expect(frame(dport=81), "pass_no_vip")
        found = capture.end().packets
    if direction == "in":
        assert [each.inbound for each in found] == [True, True]
        assert_told(rig, found[0], frame(), IN, outcome)
    else:
        (went,) = found
        assert_sent_on(rig, went, went, IN, outcome)


@pytest.mark.parametrize("forwarding", ["dsr", "l2"])
def test_distinct_packets_are_not_captured_twice(rig: Rig, forwarding: Forwarding) -> None:
    """What is sent on as it came, if in a tunnel, is there once."""
    rig.serve(service(VIPS[4], *NEAR[4], *FAR[4], forwarding=forwarding))
    sent = list(flows(20))
    with recorded(rig, direction="distinct") as capture, recorded(rig, direction="out") as out:
        outcomes = [rig.check(each) for each in sent]
        found = capture.end().packets
        assert len(out.end().packets) == len(sent)
    assert {each.verdict for each in outcomes} == {"tx", "redirect"}
    for each, packet, outcome in zip(sent, found, outcomes, strict=True):
        assert_told(rig, packet, each, IN, outcome)


@pytest.mark.thorough
@pytest.mark.parametrize("forwarding", ["dsr", "l2"])
def test_an_answer_is_a_distinct_packet(rig: Rig, forwarding: Forwarding) -> None:
    """Of what is too large there are the packet and what its sender is told."""
    if not fib_lookup().mtu:
        pytest.skip("the FIB look-up tells no MTU")  # before 5.12
    rig.serve(service(VIPS[4], FAR[4][0], forwarding=forwarding))
    large = frame(payload=b"x" * (MTU[OUT] - 39), flags="DF")
    with recorded(rig, direction="distinct") as capture:
        outcome = rig.expect(large, "tx_too_big")
        came, answer = capture.end().packets
    assert_told(rig, came, large, IN, outcome)
    assert_sent_on(rig, answer, came, IN, outcome)


@pytest.mark.thorough
def test_a_sample_is_captured(rig: Rig) -> None:
    """One of four, at random, and both its sides: 1000 of 4000, give or take six deviations."""
    serve_all(rig, 4, *NEAR[4])
    with recorded(rig, sample=4) as capture:
        for each in flows(4000):
            rig.run(each, IN, new_jiffy=False)
        found = capture.end()
        progress = capture.recording.progress()
    assert progress.matched == 4000
    assert abs(progress.packets - 1000) < 6 * (4000 * 0.25 * 0.75) ** 0.5
    assert len(found.packets) == 2 * progress.packets
    ids = [each.packet_id for each in found.packets]
    assert ids[::2] == ids[1::2]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("limit", "packets", "why"),
    [({"packets": 7}, 7, "packets"), ({"bytes": 1000}, 8, "bytes"), ({"packets": 1}, 1, "packets")],
)
def test_a_capture_ends_by_itself(rig: Rig, limit: dict[str, int], packets: int, why: str) -> None:
    """After so many packets, or with the packet that brings it to so many bytes; both sides."""
    serve_all(rig, 4, *NEAR[4])
    size = len(frame()) + len(frame()) + 20
    with recorded(rig, **limit) as capture:
        for each in flows(20):
            rig.run(each, IN)
        chunks = b"".join(map(bytes, capture.recording.chunks()))
        found = read(chunks).packets
        assert why in capture.recording.ended
        assert len(found) == 2 * packets == capture.recording.progress().records
    if "bytes" in limit:
        assert (packets - 1) * size < limit["bytes"] <= packets * size


@pytest.mark.thorough
def test_time_ends_a_capture(rig: Rig) -> None:
    """After so many seconds, packets or not."""
    with recorded(rig, seconds=1) as capture:
        assert b"".join(map(bytes, capture.recording.chunks()))
        assert "time" in capture.recording.ended
