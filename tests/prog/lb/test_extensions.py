# SPDX-License-Identifier: Apache-2.0
"""IPv6 extension headers, and fragments of both families."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import (
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Packet, Raw
from tests.prog.lb.frames import CLIENTS, VIPS, ether, ip, segment
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import TX
from tests.prog.lb.oracle_parse import FRAGMENT, MALFORMED, OTHER_PROTOCOL

from towpath.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def served(rig: Rig) -> None:
    """A VIP of each family, for TCP and for UDP."""
    rig.serve(
        *(service(VIPS[v], *NEAR[v], protocol=protocol) for v in (4, 6) for protocol in Protocol)
    )


# ---- Fragments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
@pytest.mark.parametrize(("flags", "offset"), [(1, 0), (1, 1), (0, 1), (0, 0x1FFF), (7, 0x1000)])
def test_ipv4_fragments_to_no_vip(rig: Rig, protocol: str, flags: int, offset: int) -> None:
    """The kernel's, and those of ICMP even if they are to a VIP."""
    rest = {"tcp": segment(6), "udp": segment(17), "icmp": ICMP()}[protocol]
    vip = VIPS[4] + (protocol != "icmp")
    rig.expect(bytes(ether() / ip(4, vip=vip, flags=flags, frag=offset) / rest), FRAGMENT)


@pytest.mark.parametrize(("more", "offset"), [(1, 0), (1, 1), (0, 1), (0, 0x1FFF)])
def test_ipv6_fragments_to_no_vip(rig: Rig, more: int, offset: int) -> None:
    """As with IPv4."""
    header = IPv6ExtHdrFragment(m=more, offset=offset, id=7)
    rig.expect(bytes(ether() / ip(6, vip=VIPS[6] + 1) / header / segment()), FRAGMENT)


def test_an_atomic_fragment_is_a_whole_packet(rig: Rig) -> None:
    """RFC 6946, whatever is in the reserved bits."""
    for reserved in range(4):
        header = IPv6ExtHdrFragment(m=0, offset=0, id=7, res2=reserved)
        rig.expect(bytes(ether() / ip(6) / header / segment()), TX)


# ---- IPv6 extension headers ----------------------------------------------------------------------

EXTENSIONS: dict[str, Callable[[], Packet]] = {
    "hop-by-hop": IPv6ExtHdrHopByHop,
    "destination": IPv6ExtHdrDestOpt,
    "routing": lambda: IPv6ExtHdrRouting(segleft=0),
    "atomic fragment": lambda: IPv6ExtHdrFragment(id=7),
}


def with_extensions(*kinds: str) -> bytes:
    """A frame with those headers, in that order."""
    packet = ether() / ip(6)
    for kind in kinds:
        packet /= EXTENSIONS[kind]()
    return bytes(packet / segment())


@pytest.mark.parametrize("kind", EXTENSIONS)
@pytest.mark.parametrize("count", range(1, 12))
def test_so_many_extension_headers_and_no_more(rig: Rig, kind: str, count: int) -> None:
    """Seven are walked past. A packet with more goes to the kernel, which has more time."""
    rig.expect(with_extensions(*[kind] * count), TX if count < 8 else OTHER_PROTOCOL)


def test_all_kinds_of_extension_headers_at_once(rig: Rig) -> None:
    """In the order that RFC 8200 recommends, and in another."""
    kinds = list(EXTENSIONS)
    rig.expect(with_extensions(*kinds), TX)
    rig.expect(with_extensions(*reversed(kinds)), TX)


@pytest.mark.parametrize("kind", [0, 60, 43])
@pytest.mark.parametrize("units", [0, 1, 2, 31, 100, 130, 255])
def test_long_extension_headers(rig: Rig, kind: int, units: int) -> None:
    """Their own length says where the next begins, up to 2 KiB away."""
    header = bytes((6, units, 0, 0)) + bytes(4 + units * 8)
    packet = ip(6, nh=kind) / Raw(header + bytes(segment()))
    outcome = rig.check(bytes(ether() / packet))
    assert outcome.key is not None
    beyond = bytearray(bytes(ether() / packet))
    beyond[55] = min(units + 8, 255)
    assert units == 255 or rig.check(bytes(beyond)).verdict == MALFORMED


@pytest.mark.parametrize("left", [1, 2, 255])
def test_segments_left_mean_another_destination(rig: Rig, left: int) -> None:
    """The VIP is a stop on the way; the packet isn't for us to balance."""
    header = IPv6ExtHdrRouting(type=4, addresses=[str(CLIENTS[6])], segleft=left)
    rig.expect(bytes(ether() / ip(6) / header / segment()), OTHER_PROTOCOL)
    rig.expect(bytes(ether() / ip(6) / IPv6ExtHdrHopByHop() / header / segment()), OTHER_PROTOCOL)
