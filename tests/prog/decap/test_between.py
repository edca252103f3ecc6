# SPDX-License-Identifier: Apache-2.0
"""GRE, FOU and GUE are unwrapped where that is asked for, and nothing that only looks like it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import UDP
from scapy.layers.l2 import GRE
from scapy.packet import Packet, Raw
from tests.guests import examples
from tests.prog.decap.harness import (
    COMBINATIONS,
    PROTOCOLS,
    SOURCES,
    TARGETS,
    Rig,
    ether,
    inner,
    ip,
    loaded,
    tunnelled,
)
from tests.prog.decap.oracle import ECN, FRAGMENT, MALFORMED, OTHER, UNWRAPPED

if TYPE_CHECKING:
    from collections.abc import Iterator

PORTS = (6080, 5555)
KINDS = ("gre", "fou", "gue0")
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
MUTATED = examples(3000)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """A program of this module's own that takes all kinds."""
    with loaded(gre=True, ports=PORTS) as rig:
        yield rig


def outer(family: int, **fields: Any) -> Packet:
    """The outer IP header."""
    return ip(family, SOURCES[family], TARGETS[family], **fields)


def between(kind: str, inside: int, *, port: int = 6080, words: bytes = b"") -> Packet:
    """What a balancer puts between. ``words``: GUE's optional fields and private data."""
    if kind == "gre":
        return GRE(proto=ETHERTYPES[inside])
    udp = UDP(sport=50000, dport=port, chksum=0)
    if kind == "fou":
        return udp
    return udp / Raw(bytes((len(words) // 4, PROTOCOLS[inside], 0, 0)) + words)


def wrapped(kind: str, outside: int, inside: int, *, vlan: int | None = None) -> bytes:
    """The plainest frame of its kind."""
    packet = Raw(bytes(inner(inside)))
    return bytes(ether(vlan=vlan) / outer(outside) / between(kind, inside) / packet)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vlan", [None, 7])
@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_inner_packet_comes_out_as_it_went_in(
    rig: Rig, kind: str, vlan: int | None, outside: int, inside: int
) -> None:
    """Same MAC addresses and tag, EtherType of the inner family, inner bytes unchanged."""
    sent = wrapped(kind, outside, inside, vlan=vlan)
    link = 14 if vlan is None else 18
    out = rig.expect(sent, UNWRAPPED)
    assert out[: link - 2] == sent[: link - 2]
    assert out[link - 2 :] == ETHERTYPES[inside].to_bytes(2, "big") + bytes(inner(inside))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_padding_goes_along(rig: Rig, kind: str, outside: int, inside: int) -> None:
    """What is behind the packet is no part of it."""
    rig.expect(wrapped(kind, outside, inside) + bytes(18), UNWRAPPED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_ecn_is_merged_through_it(rig: Rig, kind: str, outside: int, inside: int) -> None:
    """The field of the outer IP header and that of the packet, as without anything between."""
    for own in range(4):
        for theirs, verdict in ((0, UNWRAPPED), (3, UNWRAPPED if own else ECN)):
            packet = Raw(bytes(inner(inside, traffic_class=own)))
            header = outer(outside, traffic_class=theirs)
            rig.expect(bytes(ether() / header / between(kind, inside) / packet), verdict)


@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("count", range(32))
def test_private_data_and_optional_fields_are_skipped(rig: Rig, outside: int, count: int) -> None:
    """Whatever they are: as many words as the header says."""
    header = between("gue0", 4, words=b"\x45\xaa\x60\xbb" * count)
    rig.expect(bytes(ether() / outer(outside) / header / Raw(bytes(inner(4)))), UNWRAPPED)


@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize(
    "header",
    [
        pytest.param(GRE(proto=0x0800, chksum_present=1, chksum=0), id="gre with a checksum"),
        pytest.param(GRE(proto=0x0800, key_present=1, key=1), id="gre with a key"),
        pytest.param(GRE(proto=0x0800, version=1), id="gre of another version"),
        pytest.param(GRE(proto=0x6558), id="ethernet in gre"),
        pytest.param(UDP(sport=1, dport=6081, chksum=0), id="another port"),
        pytest.param(UDP(sport=6080, dport=1, chksum=0), id="from that port"),
        pytest.param(UDP(dport=6080) / Raw(b"\x20\x04\0\0"), id="a control message of gue"),
        pytest.param(UDP(dport=6080) / Raw(b"\x80\x04\0\0"), id="an unknown variant of gue"),
        pytest.param(UDP(dport=6080) / Raw(b"\x00\x11\0\0"), id="neither IPv4 nor IPv6 in gue"),
    ],
)
def test_what_is_no_tunnel_of_these_is_the_kernels(rig: Rig, outside: int, header: Packet) -> None:
    """It passes as it came."""
    rig.expect(bytes(ether() / outer(outside) / header / Raw(bytes(inner(4)))), OTHER)


@pytest.mark.parametrize("outside", [4, 6])
def test_lengths_that_can_not_be_right_are_dropped(rig: Rig, outside: int) -> None:
    """A datagram longer than its packet or shorter than its header, words that aren't there."""
    for length in (0, 7, 65535):
        udp = UDP(sport=50000, dport=6080, chksum=0, len=length)
        rig.expect(bytes(ether() / outer(outside) / udp / Raw(bytes(inner(4)))), MALFORMED)
    udp = UDP(sport=50000, dport=6080, chksum=0)
    rig.expect(bytes(ether() / outer(outside) / udp / Raw(b"\x1f\x04\0\0\0\0\0\0")), MALFORMED)


@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_the_other_ports_too(rig: Rig, outside: int, inside: int) -> None:
    """Each that was named."""
    for port in PORTS:
        header = between("fou", inside, port=port)
        packet = Raw(bytes(inner(inside)))
        rig.expect(bytes(ether() / outer(outside) / header / packet), UNWRAPPED)


def test_fragments_are_the_kernels(rig: Rig) -> None:
    """Of UDP nobody can say what they are parts of."""
    for kind, verdict in (("gre", FRAGMENT), ("fou", OTHER), ("gue0", OTHER)):
        packet = Raw(bytes(inner(4)))
        for fields in ({"flags": "MF"}, {"frag": 10}):
            header = outer(4, proto=47 if kind == "gre" else 17, **fields)
            rig.expect(bytes(ether() / header / between(kind, 4) / packet), verdict)


def test_plain_tunnels_are_unwrapped_as_before(rig: Rig) -> None:
    """With nothing between."""
    for outside, inside in COMBINATIONS:
        rig.expect(tunnelled(outside, inside), UNWRAPPED)


def test_nothing_of_it_is_taken_unasked() -> None:
    """By default."""
    with loaded() as plain:
        for kind in KINDS:
            for outside, inside in COMBINATIONS:
                plain.expect(wrapped(kind, outside, inside), OTHER)


@settings(max_examples=MUTATED, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    pair=st.sampled_from(COMBINATIONS),
    words=st.integers(0, 31),
    changes=st.lists(st.tuples(st.integers(0, 79), st.integers(0, 255)), max_size=3),
    end=st.integers(0, 160),
)
def test_any_bytes(
    rig: Rig,
    kind: str,
    pair: tuple[int, int],
    words: int,
    changes: list[tuple[int, int]],
    end: int,
) -> None:
    """Cut and changed anywhere in its headers."""
    outside, inside = pair
    header = between(kind, inside, words=bytes(4 * words) if kind == "gue0" else b"")
    frame = bytearray(bytes(ether() / outer(outside) / header / Raw(bytes(inner(inside)))))
    for at, value in changes:
        frame[14 + at % (len(frame) - 14)] = value
    if len(frame) - end >= 14 and end < 120:
        del frame[len(frame) - end :]
    rig.check(bytes(frame))
