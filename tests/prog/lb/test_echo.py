# SPDX-License-Identifier: Apache-2.0
"""Echo requests to VIPs are answered, if they are to be, and nothing else is."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from tests.guests import examples
from tests.prog.lb.frames import CLIENTS, VIPS, ether, ip
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.network import NEAR, THIRD, Network
from tests.prog.lb.oracle import ECHO
from tests.prog.lb.oracle_parse import FRAGMENT, MALFORMED, OTHER_PROTOCOL

from towpath.model import Icmp

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Address

FAMILIES = [4, 6]


@pytest.fixture(autouse=True)
def served(rig: Rig) -> None:
    """A VIP of each family; one has no backend."""
    rig.serve(service(VIPS[4], *NEAR[4]), service(VIPS[6]))


def message(family: int, payload: bytes = b"towpath", **fields: Any) -> Packet:
    """An echo request."""
    if family == 4:
        return ICMP(type=8, id=77, seq=3, **fields) / Raw(payload)
    return ICMPv6EchoRequest(id=77, seq=3, data=payload, **fields)


def request(
    family: int,
    payload: bytes = b"towpath",
    *,
    vip: Address | None = None,
    source: Address | None = None,
    vlan: int | None = None,
    **fields: Any,
) -> bytes:
    """A frame with one."""
    header = ip(family, vip=vip, source=source, **fields)
    return bytes(ether(vlan=vlan) / header / message(family, payload))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vlan", [None, 0, 7])
def test_the_answer_as_others_read_it(rig: Rig, family: int, vlan: int | None) -> None:
    """By scapy: from the VIP to the client, with the same data and right checksums."""
    for length in (0, 1, 7, 56, 1400, 1464):
        payload = bytes(at % 251 for at in range(length))
        sent = request(family, payload, vlan=vlan, traffic_class=0x48)
        got = Ether(rig.expect(sent, ECHO).frame)
        assert (got.src, got.dst) == (Ether(sent).dst, Ether(sent).src)
        network = got[IP if family == 4 else IPv6]
        assert (network.src, network.dst) == (str(VIPS[family]), str(CLIENTS[family]))
        reply = network[ICMP if family == 4 else ICMPv6EchoReply]
        assert (reply.type, reply.code, reply.id, reply.seq) == ({4: 0, 6: 129}[family], 0, 77, 3)
        assert bytes(reply)[8:] == payload
        again = network.copy()
        if family == 4:
            assert network.ttl == 64
            del again.chksum, again[ICMP].chksum
        else:
            assert network.hlim == 64
            del again[ICMPv6EchoReply].cksum
        assert bytes(again) == bytes(network)


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\xff\0", b"\0\xff"], ids=bytes.hex)
@pytest.mark.parametrize("family", FAMILIES)
def test_sums_that_are_zero(rig: Rig, family: int, fill: bytes) -> None:
    """Of zeros only it is 0, and the checksum 0xffff; of others it is 0xffff, and that 0."""
    echo = {4: ICMP(type=8, id=0, seq=0), 6: ICMPv6EchoRequest(id=0, seq=0)}[family]
    seen = set()
    for length in (0, 1, 2, 3, 7, 8, 9, 15, 16, 56, 57, 1470, 1471, 1472):
        data = (fill * length)[:length]
        # scapy makes the checksum of this one by itself.
        answer = {4: ICMP(type=0, id=0, seq=0), 6: ICMPv6EchoReply(id=0, seq=0)}[family]
        header = {
            4: IP(src=str(VIPS[4]), dst=str(CLIENTS[4]), ttl=64, id=1),
            6: IPv6(src=str(VIPS[6]), dst=str(CLIENTS[6]), hlim=64),
        }[family]
        expected = bytes(header / answer / Raw(data))
        for padding in (b"", b"\0" * 9, b"pad"):
            sent = bytes(ether() / ip(family) / echo / Raw(data)) + padding
            assert rig.expect(sent, ECHO).frame[14:] == expected + padding
        at = {4: 22, 6: 42}[family]
        seen.add(expected[at : at + 2])
        for wrong in (b"\0\0", b"\x12\x34", b"\xff\xff"):
            rig.expect(sent[: 14 + at] + wrong + sent[16 + at :], ECHO)
    assert family == 6 or fill != b"\0" or seen == {b"\xff\xff"}
    assert family == 6 or fill != b"\xff" or b"\0\0" in seen


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_every_ttl_and_checksum(rig: Rig, family: int) -> None:
    """Updated and not made anew: what was wrong stays as wrong."""
    for value in range(256):
        sent = request(4, ttl=value) if family == 4 else request(6, hlim=value)
        rig.expect(sent, ECHO)

    made = bytearray(request(family))
    places = {4: (24, 36), 6: (56,)}[family]

    @settings(max_examples=examples(300))
    @given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 255))
    def agree(first: int, second: int, ttl: int) -> None:
        for at, value in zip(places, (first, second), strict=False):
            made[at : at + 2] = value.to_bytes(2, "big")
        made[{4: 22, 6: 21}[family]] = ttl
        rig.expect(bytes(made), ECHO)

    agree()
    for at in places:
        for value in (0, 1, 0xF7FF, 0xF800, 0xFEFF, 0xFF00, 0xFFFE, 0xFFFF):
            made[at : at + 2] = value.to_bytes(2, "big")
            rig.expect(bytes(made), ECHO)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vip_answers_whatever_is_served_there(rig: Rig, family: int) -> None:
    """Without any backend too, and every address of a prefix; others are the kernel's."""
    rig.expect(request(family, vip=VIPS[family] + 1), OTHER_PROTOCOL)
    prefix = ip_network({4: "198.18.7.0/29", 6: "2001:db8:77::/125"}[family])
    rig.serve(service(prefix, *NEAR[family], port=443))
    for address in prefix:
        rig.expect(request(family, vip=address), ECHO)
    rig.expect(request(family, vip=prefix[0] - 1), OTHER_PROTOCOL)
    rig.expect(request(family, vip=prefix[-1] + 1), OTHER_PROTOCOL)
    rig.serve()
    rig.expect(request(family, vip=prefix[0]), OTHER_PROTOCOL)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_can_be_left_to_the_kernel(rig: Rig, net: Network, family: int) -> None:
    """By configuration."""
    with rigged(net, devices=[THIRD], icmp=Icmp(echo=False)) as other:
        other.world.echo = False
        other.serve(service(VIPS[family], *NEAR[family]))
        other.expect(request(family), OTHER_PROTOCOL)
    rig.expect(request(family), ECHO)


# ---- What is not answered ------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_other_codes_and_types(rig: Rig, family: int) -> None:
    """An echo request has code 0, and no other type asks for an answer."""
    made = bytearray(request(family))
    at = 14 + {4: 20, 6: 40}[family]
    for code in range(1, 256):
        made[at + 1] = code
        rig.expect(bytes(made), OTHER_PROTOCOL)
    made[at + 1] = 0
    for kind in set(range(256)) - {{4: 8, 6: 128}[family]}:
        made[at] = kind
        rig.expect(bytes(made), OTHER_PROTOCOL)


def test_options_and_extension_headers_are_the_kernels(rig: Rig) -> None:
    """They may ask for more than an answer (RFC 1122, 3.2.2.6)."""
    rig.expect(request(4, options=[IPOption_NOP()] * 4), OTHER_PROTOCOL)
    made = ether() / ip(6) / IPv6ExtHdrDestOpt() / message(6)
    rig.expect(bytes(made), OTHER_PROTOCOL)


def test_fragments_are_the_kernels(rig: Rig) -> None:
    """They have to be put together before they can be answered."""
    rig.expect(request(4, flags="MF"), FRAGMENT)
    rig.expect(request(4, frag=5), FRAGMENT)


@pytest.mark.parametrize(
    ("family", "source"),
    [
        (4, "0.0.0.0"),
        (4, "127.0.0.1"),
        (4, "224.0.0.1"),
        (4, "255.255.255.255"),
        (6, "::"),
        (6, "::1"),
        (6, "ff02::1"),
    ],
)
def test_sources_that_are_nobody(rig: Rig, family: int, source: str) -> None:
    """Not one host's address."""
    rig.expect(request(family, source=ip_address(source)), OTHER_PROTOCOL)


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_to_many(rig: Rig, family: int) -> None:
    """Link-layer broadcasts and multicasts."""
    for target in ("ffffffffffff", "010000000001"):
        rig.expect(bytes.fromhex(target) + request(family)[6:], OTHER_PROTOCOL)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frame_that_is_cut(rig: Rig, family: int) -> None:
    """At any byte, and with a header that says so: no answer without all of the ICMP header."""
    made = request(family)
    start = 14 + {4: 20, 6: 40}[family]
    for length in range(start, len(made)):
        rig.expect(made[:length], MALFORMED)
    for length in range(12):
        cut = bytearray(made[: start + length])
        at, size = (16, 20 + length) if family == 4 else (18, length)
        cut[at : at + 2] = size.to_bytes(2, "big")
        rig.expect(bytes(cut), ECHO if length >= 8 else OTHER_PROTOCOL)
        rig.expect(bytes(cut) + made[start + length :], ECHO if length >= 8 else OTHER_PROTOCOL)
