# SPDX-License-Identifier: Apache-2.0
"""Frames larger than a page has room for: XDP has them in fragments, the first with the headers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from tests.guests import cases
from tests.prog.lb.frames import VIPS, ether, frame, ip
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.harness_devices import devices
from tests.prog.lb.network import FAR, IN, MTU, NEAR, OUT, THIRD, THIRDS, network
from tests.prog.lb.oracle import (
    DRIVER,
    ECHO,
    HANDOFF,
    LINEAR,
    OUTER_HEADER,
    REDIRECT,
    TOO_BIG,
    TX,
    XDP_REDIRECT,
    XDP_TX,
)
from tests.prog.lb.oracle_parse import MALFORMED
from tests.prog.lb.test_echo import request
from tests.prog.lb.test_icmp_errors import answered, error
from tests.prog.lb.test_too_big import large, pattern
from tests.prog.lb.wire_fragments import cut

from towpath.kernel.bpf import probe
from towpath.kernel.bpf.fragments import pulls
from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.model import Protocol, TracedPacket

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not probe.fragments(), reason="XDP programs take no frames in fragments"
)

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
JUMBO = 9000
SIZES = [LINEAR - 34, LINEAR - 14, LINEAR - 13, 4096, 7000, 8191, 8900]  # of IP packets
OLD_VETH = DRIVER - {"tx", "fragments"}


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """On devices whose MTU is 9000, but for one."""
    with network({IN: JUMBO, OUT: JUMBO, THIRD: 4000}) as net, rigged(net) as made:
        yield made


@pytest.mark.parametrize("forwarding", ["dsr", "l2"])
@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_large_packets_are_balanced(
    rig: Rig, inside: int, outside: int, protocol: Protocol, forwarding: str
) -> None:
    """Every byte of them, out of either device, tagged or not."""
    for backends, verdict in ((NEAR, TX), (FAR, REDIRECT)):
        rig.serve(
            service(VIPS[inside], *backends[outside], protocol=protocol, forwarding=forwarding)
        )
        for length in cases(SIZES, 3):
            for vlan in (None, 7):
                rig.expect(large(inside, length, protocol.number, vlan=vlan), verdict)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_exactly_the_mtu_and_a_byte_more(rig: Rig, inside: int, outside: int) -> None:
    """Who sends more is told, with a quote of what is left of the frame."""
    if not fib_lookup().mtu:
        pytest.skip("the FIB look-up tells no MTU")
    for backends, device in ((NEAR, IN), (THIRDS, THIRD)):
        rig.serve(service(VIPS[inside], *backends[outside]))
        room = MTU[device] - OUTER_HEADER[outside]
        rig.expect(large(inside, room), TX if device == IN else REDIRECT)
        for length in (room + 1, JUMBO):
            told = Ether(rig.expect(large(inside, length), TOO_BIG).frame)
            if inside == 4:
                assert (told[ICMP].type, told[ICMP].code, told[ICMP].nexthopmtu) == (3, 4, room)
                whole = told[IP].copy()
                del whole.chksum, whole[ICMP].chksum
            else:
                assert told[ICMPv6PacketTooBig].mtu == room
                whole = told[IPv6].copy()
                del whole[ICMPv6PacketTooBig].cksum
            assert bytes(type(whole)(bytes(whole))) == bytes(told.payload)  # checksums by scapy


@pytest.mark.parametrize("family", [4, 6])
def test_large_pings_are_answered(rig: Rig, family: int) -> None:
    """With all that they bring, and a checksum over it that scapy makes too."""
    rig.serve(service(VIPS[family], *NEAR[family]))
    for length in (LINEAR, 5000, 8900):
        payload = pattern(length)
        answer = Ether(rig.expect(request(family, payload), ECHO).frame)
        whole = answer[IP if family == 4 else IPv6].copy()
        assert bytes(whole).endswith(payload)
        if family == 4:
            del whole.chksum, whole[ICMP].chksum
        else:
            del whole.payload.cksum
        assert bytes(whole) == bytes(answer.payload)


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_longer_than_its_frame_passes(rig: Rig, family: int) -> None:
    """By a byte; what is shorter has padding, wherever it lies."""
    rig.serve(service(VIPS[family], *NEAR[family]))
    for length in (LINEAR - 14, LINEAR, 8000):
        whole = large(family, length)
        rig.expect(whole, TX)
        rig.expect(whole[:-1], MALFORMED)
        rig.expect(whole + bytes(9), TX)
        rig.expect(whole + bytes(2000), TX)


@pytest.mark.parametrize("family", [4, 6])
def test_ip_fragments_that_are_large_themselves(rig: Rig, family: int) -> None:
    """All of a datagram's go to one backend, in fragments of both kinds."""
    rig.serve(service(VIPS[family], *NEAR[family], protocol=Protocol.UDP))
    packet = bytes(ip(family) / UDP(sport=4000, dport=80) / pattern(30000))
    header = bytes(ether(type={4: 0x0800, 6: 0x86DD}[family]))
    seen = {rig.expect(header + each, TX).backend for each in cut(packet, 8000, 77)}
    assert len(seen) == 1


@pytest.mark.parametrize("family", [4, 6])
def test_errors_that_are_large_themselves(rig: Rig, family: int) -> None:
    """They go to the backend that they are about."""
    rig.serve(service(VIPS[family], *NEAR[family]))
    rig.expect(error(bytes(answered(family) / pattern(6000))), TX)


# ---- Devices that take no frames in fragments ----------------------------------------------------


@pytest.mark.parametrize("forwarding", ["dsr", "l2"])
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_the_kernel_sends_what_a_driver_takes_in_one_piece_only(
    rig: Rig, inside: int, outside: int, forwarding: str
) -> None:
    """Only what is in fragments, though: what is smaller leaves by XDP in the same moment."""
    for backends, device, verdict in ((NEAR, IN, TX), (FAR, OUT, REDIRECT)):
        rig.serve(service(VIPS[inside], *backends[outside], forwarding=forwarding))
        by_xdp = rig.expect(large(inside, 8000), verdict).frame
        with devices(rig, **{device: OLD_VETH}):
            for _ in range(2):
                assert rig.expect(large(inside, 8000), HANDOFF).frame.endswith(by_xdp)
                small = rig.expect(frame(inside), verdict)
                assert small.action == XDP_REDIRECT
        assert rig.expect(large(inside, 8000), verdict).action in (XDP_TX, XDP_REDIRECT)


@pytest.mark.parametrize("family", [4, 6])
def test_a_large_ping_is_answered_there_too(rig: Rig, family: int) -> None:
    """By the kernel, as the frame is."""
    rig.serve(service(VIPS[family], *NEAR[family]))
    whole = rig.expect(request(family, pattern(6000)), ECHO).frame
    with devices(rig, tpx0=OLD_VETH):
        assert rig.expect(request(family, pattern(6000)), ECHO).frame.endswith(whole)


# ---- Drivers that put less than the headers into the first fragment ------------------------------

LINEAR_PARTS = [14, 20, 34, 41, 54, 60, 100]


@pytest.fixture(params=LINEAR_PARTS)
def short(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """So many bytes of each frame are where programs look for headers."""
    if not pulls():
        pytest.skip("this kernel can't have headers moved there")
    rig.linear, rig.world.linear = request.param, 512 + 256
    yield rig
    rig.linear, rig.world.linear = None, LINEAR


@pytest.mark.parametrize("forwarding", ["dsr", "l2"])
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_headers_anywhere(short: Rig, inside: int, outside: int, forwarding: str) -> None:
    """All is balanced as ever."""
    for protocol in Protocol:
        short.serve(service(VIPS[inside], *NEAR[outside], protocol=protocol, forwarding=forwarding))
        for length in (120, 1400, 8000):
            for vlan in (None, 7):
                short.expect(large(inside, length, protocol.number, vlan=vlan), TX)


@pytest.mark.parametrize("family", [4, 6])
def test_slow_packets_anywhere(short: Rig, family: int) -> None:
    """Pings, errors, fragments of packets, and what is too large for its way."""
    short.serve(
        service(VIPS[family], *THIRDS[family]),
        service(VIPS[family], *NEAR[family], protocol=Protocol.UDP),
    )
    for length in (99, 4000):
        short.expect(request(family, pattern(length)), ECHO)
        quoted = bytes(answered(family, 17) / pattern(length))
        short.expect(error(quoted), TX)
    packet = bytes(ip(family) / UDP(sport=4000, dport=80) / pattern(9000))
    header = bytes(ether(type={4: 0x0800, 6: 0x86DD}[family]))
    for each in cut(packet, 4000, 78):
        short.expect(header + each, TX)
    if fib_lookup().mtu:
        short.expect(large(family, 8000), TOO_BIG)


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_no_packet_of_ours_passes_unchanged(short: Rig, family: int) -> None:
    """Wherever its headers are."""
    short.serve(service(VIPS[family], *NEAR[family]))
    for length in (120, 8000):
        short.expect(large(family, length)[:-1], MALFORMED)
        short.expect(large(family, length, dport=81), "pass_no_vip")


def test_traces_of_large_packets(rig: Rig) -> None:
    """They say what becomes of them, and what a driver does not take."""
    rig.serve(service(VIPS[4], *FAR[4]))
    flow = TracedPacket.parse(f"198.51.100.77:40000 -> {VIPS[4]}:80 tcp size 8000")
    assert rig.balancer.trace(flow).verdict == REDIRECT
    with devices(rig, tpx1=OLD_VETH):
        found = rig.balancer.trace(flow)
        assert (found.verdict, found.handoff) == (
            HANDOFF,
            f"{OUT} takes no frames in fragments from XDP",
        )
    flow = TracedPacket.parse(f"198.51.100.77:40000 -> {VIPS[4]}:80 tcp size 9001")
    assert rig.balancer.trace(flow).verdict in {TOO_BIG, REDIRECT}
