# SPDX-License-Identifier: Apache-2.0
"""TCP and UDP behind an authentication header are balanced, and nothing that it covers changes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Packet, Raw
from tests.prog.lb.authentication import authenticated, header
from tests.prog.lb.frames import CLIENTS, PORT, VIPS, ether, frame, ip
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import NO_VIP, TOO_BIG, TX
from tests.prog.lb.oracle_parse import FRAGMENT, MALFORMED, OTHER_PROTOCOL
from tests.prog.lb.test_icmp_errors import error
from tests.prog.lb.wire_fragments import cut

from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.model import Protocol
from towpath.model.service import Affinity

if TYPE_CHECKING:
    from collections.abc import Iterator

FAMILIES = [4, 6]
TRANSPORTS = {6: TCP, 17: UDP}
BOTH = [(family, protocol) for family in FAMILIES for protocol in TRANSPORTS]
WAYS: dict[str, dict[str, Any]] = {
    "dsr": {},
    "l2": {"forwarding": "l2"},
    "affinity": {"affinity": Affinity(3600)},
}


@pytest.fixture(autouse=True)
def served(rig: Rig) -> Iterator[None]:
    """A VIP of each family, for TCP and for UDP."""
    serve(rig)
    yield
    rig.fragments.ways["ref"] = 0
    rig.world.fragments.clear()


def serve(rig: Rig, **fields: Any) -> None:
    """With other fields; nobody is known."""
    rig.serve()
    rig.serve(
        *(
            service(VIPS[v], *NEAR[v], protocol=protocol, **fields)
            for v in (4, 6)
            for protocol in Protocol
        )
    )


def packet(
    family: int,
    protocol: int = 6,
    *headers: Packet,
    sport: int = 40000,
    flags: str = "A",
    size: int = 7,
    **fields: Any,
) -> bytes:
    """An IP packet to a service, without the header."""
    made = ip(family, **fields)
    for each in headers:
        made /= each
    transport = TRANSPORTS[protocol](sport=sport, dport=PORT)
    if isinstance(transport, TCP):
        transport.flags = flags
    return bytes(made / transport / Raw(bytes(at % 251 for at in range(size))))


def framed(made: bytes, vlan: int | None = None) -> bytes:
    """A frame that comes in with a packet."""
    link = ether(vlan=vlan)
    link.lastlayer().type = {4: 0x0800, 6: 0x86DD}[made[0] >> 4]
    return bytes(link) + made


@pytest.mark.parametrize(("family", "protocol"), BOTH)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("icv", [0, 12, 16, 64])
@pytest.mark.parametrize("vlan", [None, 7])
def test_the_flow_is_what_is_behind_it(
    rig: Rig, family: int, protocol: int, way: str, icv: int, vlan: int | None
) -> None:
    """The same as without, and is remembered; the packet leaves as it came, in its new frame."""
    serve(rig, **WAYS[way])
    seen = set()
    for sport in range(3000, 3008):
        plain = packet(family, protocol, sport=sport)
        outcome = rig.expect(framed(authenticated(plain, icv), vlan), TX)
        assert outcome.fresh
        assert outcome.frame.endswith(authenticated(plain, icv))
        after = rig.expect(framed(plain), TX)
        assert (after.backend, after.fresh) == (outcome.backend, False)
        seen.add(outcome.backend)
    assert len(seen) > 2 or way == "affinity"


@pytest.mark.parametrize("options", [4, 12, 40])
def test_ipv4_options(rig: Rig, options: int) -> None:
    """Stand in front of it."""
    made = packet(4, options=[IPOption_NOP()] * options)
    rig.expect(framed(authenticated(made)), TX)


HEADERS: list[tuple[Packet, ...]] = [
    (IPv6ExtHdrHopByHop(),),
    (IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(segleft=0)),
    (IPv6ExtHdrDestOpt(),) * 6,
    (IPv6ExtHdrFragment(id=7),),  # of a whole packet: RFC 6946
]


@pytest.mark.parametrize("headers", HEADERS, ids=lambda each: str(len(each)))
@pytest.mark.parametrize("behind", [False, True])
def test_ipv6_extension_headers(rig: Rig, headers: tuple[Packet, ...], *, behind: bool) -> None:
    """In front of it or behind it; seven headers in all are walked past."""
    plain = packet(6, 6, *headers)
    rig.expect(framed(_another(plain) if behind else authenticated(plain)), TX)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", range(2, 10))
def test_headers_in_headers(rig: Rig, family: int, count: int) -> None:
    """As many as there may be IPv6 extension headers."""
    made = packet(family)
    for _ in range(count):
        made = _another(made)
    rig.expect(framed(made), TX if count < 8 or (family, count) == (4, 8) else OTHER_PROTOCOL)


def _another(made: bytes) -> bytes:
    """One more, in front of all others."""
    if made[0] >> 4 == 4:
        return authenticated(made)
    more = header(made[6])
    return (
        made[:4]
        + (len(made) - 40 + len(more)).to_bytes(2, "big")
        + b"\x33"
        + made[7:40]
        + (more + made[40:])
    )


@pytest.mark.parametrize(
    "made",
    [
        ip(4) / ICMP(),
        ip(4) / IP(src="198.51.100.1", dst=str(VIPS[4])) / TCP(dport=PORT),
        ip(4, proto=50) / Raw(bytes(60)),
        ip(6) / ICMPv6EchoRequest(),
        ip(6, nh=59),
        ip(6) / ip(4) / TCP(dport=PORT),
    ],
    ids=lambda made: made.summary().replace("/", ",")[:60],
)
def test_what_has_no_ports_is_the_kernels(rig: Rig, made: Packet) -> None:
    """A ping among them, which nobody but the kernel can answer with such a header."""
    rig.expect(framed(authenticated(bytes(made))), OTHER_PROTOCOL)


@pytest.mark.parametrize(("family", "protocol"), BOTH)
def test_what_is_no_services_is_the_kernels(rig: Rig, family: int, protocol: int) -> None:
    """Another port, another address."""
    made = bytearray(authenticated(packet(family, protocol)))
    at = len(made) - 7 - {6: 20, 17: 8}[protocol]
    made[at + 2 : at + 4] = b"\0\x51"
    rig.expect(framed(bytes(made)), NO_VIP)
    other = authenticated(packet(family, protocol, vip=VIPS[family] + 1))
    rig.expect(framed(other), NO_VIP)


@pytest.mark.parametrize(("family", "protocol"), BOTH)
def test_cut_anywhere(rig: Rig, family: int, protocol: int) -> None:
    """Frames that end too soon, packets that say they do, and nonsense for a length."""
    made = authenticated(packet(family, protocol))
    start = {4: 20, 6: 40}[family]
    place, less = {4: (2, 0), 6: (4, 40)}[family]
    transport = start + 24
    least = transport + {6: 20, 17: 8}[protocol]
    for length in range(start, len(made)):
        assert rig.check(framed(made[:length])).verdict == MALFORMED
        short = made[:place] + (length - less).to_bytes(2, "big") + made[place + 2 :]
        for each in (short, short[:length]):
            verdict = rig.check(framed(each)).verdict
            assert verdict == (TX if length >= least else MALFORMED) or length < transport
    for length in range(256):
        rig.check(framed(made[: start + 1] + bytes((length,)) + made[start + 2 :]))
    rig.expect(framed(made[: start + 1] + b"\0" + made[start + 2 :]), MALFORMED)
    rig.expect(framed(made), TX)


def test_segments_count_as_ever(rig: Rig) -> None:
    """A FIN ends a flow, a RST begins none."""
    for family in FAMILIES:
        assert not rig.expect(framed(authenticated(packet(family, flags="R", sport=9))), TX).fresh
        assert rig.expect(framed(authenticated(packet(family, flags="S", sport=9))), TX).fresh
        rig.expect(framed(authenticated(packet(family, flags="FA", sport=9))), TX)
    found = rig.balancer.flow_table.entries()
    assert found.ending[found.client_ports == 9].all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [32, 40, 600])
def test_in_fragments(rig: Rig, family: int, way: str, size: int) -> None:
    """All of a packet reach one backend, if the first one comes first."""
    serve(rig, **WAYS[way])
    seen = set()
    for number in range(1, 12):
        made = authenticated(packet(family, 6, size=1500, sport=number))
        parts = [framed(each) for each in cut(made, size, number)]
        outcomes = [rig.expect(each, TX) for each in parts]
        (backend,) = {each.backend for each in outcomes}
        seen.add(backend)
    assert len(seen) > 2 or way == "affinity"


@pytest.mark.parametrize("family", FAMILIES)
def test_fragments_that_nobody_knows(rig: Rig, family: int) -> None:
    """Whether they are of a packet with ports only the first one says: they pass."""
    for protocol, number in ((6, 1), (17, 2)):
        made = authenticated(packet(family, protocol, size=1500))
        first, *rest = (framed(each) for each in cut(made, 600, number))
        for each in rest:
            rig.expect(each, FRAGMENT)
        rig.expect(first, TX)
        for each in rest:
            rig.expect(each, TX)
    echo = ip(4) / ICMP() if family == 4 else ip(6) / ICMPv6EchoRequest()
    for each in cut(authenticated(bytes(echo / Raw(bytes(1500)))), 600, 3):
        rig.expect(framed(each), FRAGMENT)
    # The first one ends within the header, so that all are the kernel's.
    for each in cut(authenticated(packet(family, 6, size=100), 64), 24, 4):
        rig.expect(framed(each), FRAGMENT)


def test_ipv4_tells_fragments_apart_by_what_its_header_says(rig: Rig) -> None:
    """RFC 791: one identification, with the header and without."""
    plain = packet(4, 6, size=1500, sport=1)
    other = authenticated(packet(4, 6, size=1500, sport=2))
    parts = [[framed(each) for each in cut(made, 600, 9)] for made in (plain, other)]
    backends = [rig.expect(made[0], TX).backend for made in parts]
    for made, backend in zip(parts, backends, strict=True):
        assert {rig.expect(each, TX).backend for each in made[1:]} == {backend}


@pytest.mark.parametrize(("family", "protocol"), BOTH)
def test_errors_about_them_follow_the_flow(rig: Rig, family: int, protocol: int) -> None:
    """If they quote enough to tell whose they are."""
    for sport in range(5000, 5008):
        there = rig.expect(framed(authenticated(packet(family, protocol, sport=sport))), TX)
        answer = ip(family, source=VIPS[family], vip=CLIENTS[family])
        answer /= TRANSPORTS[protocol](sport=PORT, dport=sport)
        quoted = authenticated(bytes(answer))
        assert rig.expect(error(quoted), TX).backend == there.backend
        # RFC 792 asks for 8 bytes, which are the header's own.
        rig.expect(error(quoted[: {4: 28, 6: 48}[family]]), OTHER_PROTOCOL)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_that_is_too_large(rig: Rig, family: int) -> None:
    """Is quoted to its sender, who can tell by the header that the answer is for him."""
    if not fib_lookup().mtu:
        pytest.skip("the FIB look-up tells no MTU")  # before 5.12
    made = authenticated(packet(family, 6, size=1430))
    rig.expect(framed(made), TOO_BIG)


@pytest.mark.parametrize("family", FAMILIES)
def test_sources_that_are_not_let_in(rig: Rig, family: int) -> None:
    """By the packet's own source."""
    web = service(VIPS[family], *NEAR[family])
    others = ip_network({4: "192.0.2.0/24", 6: "2001:db8:99::/64"}[family])
    rig.serve(replace(web, allow_from=(others,)))
    rig.expect(framed(authenticated(packet(family))), "drop_source")
    rig.serve(web)
    assert rig.expect(frame(family, sport=77), TX).fresh
