# SPDX-License-Identifier: Apache-2.0
"""The load balancer agrees with its oracle on any frame whatever.

Verdict, every byte and every counter, on tens of thousands of frames that are nearly right, or not
at all. Hypothesis draws a recipe, which makes a frame and a row of damaged copies of it; on a
failure it looks for the smallest.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.guests import IN_GUEST, examples
from tests.prog.lb.frames import CLIENTS, PORT, VIPS
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import (
    BEHIND_GATEWAY,
    FAR,
    FAR_UNRESOLVED,
    IN,
    NEAR,
    NEAR_UNRESOLVED,
    NO_ROUTE,
    OUT,
    REFUSED,
    THIRDS,
)
from tests.prog.lb.oracle import (
    HANDOFF,
    NO_BACKEND,
    NO_VIP,
    NOT_FOR_YOU,
    NOT_ON_LINK,
    REDIRECT,
    TOO_BIG,
    TX,
)
from tests.prog.lb.oracle_parse import (
    AUTHENTICATION,
    FRAGMENT,
    MALFORMED,
    NOT_IP,
    OTHER_PROTOCOL,
    QINQ,
)

from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.model import Affinity, Backend, Protocol, Service

if TYPE_CHECKING:
    from collections.abc import Iterator

RECIPES = examples(1000)
DAMAGED = RECIPES // 50  # copies of each recipe's frame
GARBAGE = examples(1500)
MIN_FRAMES = RECIPES * DAMAGED
MAX_ROUNDS = 4

MACS = bytes.fromhex("020000000002 020000000001")
LINKS = {
    "untagged": b"",
    "tagged": b"\x81\x00\xa0\x07",
    "priority tag": b"\x81\x00\xe0\x00",
    "empty tag": b"\x81\x00\x00\x00",
    "service tag": b"\x88\xa8\x00\x01",
    "two tags": b"\x81\x00\x00\x01\x81\x00\x00\x02",
}
ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
NO_BACKENDS = 1  # added to VIP or port: other services, other fates
REMEMBERS_NOTHING = 2
REFUSING = 3
ON_LINK = 4
STICKY = 5
EXCLUSIVE = 6
UNKNOWN = 7


@pytest.fixture(scope="module", autouse=True)
def served(rig: Rig) -> None:
    """Services with every kind of backend that there can be."""
    rig.serve(*all_services())


def all_services() -> Iterator[Service]:
    """Of both families and both protocols, at one VIP and beside it."""
    for family in (4, 6):
        families = (4, 6) if family == 4 else (6,)
        good = [address for v in families for address in (*NEAR[v], *FAR[v], *THIRDS[v])]
        unresolved = [a for v in families for a in (NEAR_UNRESOLVED[v], FAR_UNRESOLVED[v])]
        refusing = [addresses[v] for v in families for addresses, _ in REFUSED.values()]
        refusing += [NO_ROUTE[v] for v in families]
        weighted = [Backend(address, 1 + n) for n, address in enumerate([*good, *unresolved])]
        vip = VIPS[family]
        for protocol in Protocol:
            yield service(vip, *weighted, protocol=protocol)
            yield service(vip, protocol=protocol, port=PORT + NO_BACKENDS)
            yield service(
                vip, *good, protocol=protocol, port=PORT + REMEMBERS_NOTHING, flow_table=False
            )
            yield service(vip + REFUSING, *refusing, *good[:4], protocol=protocol)
            behind = [Backend(BEHIND_GATEWAY[v], 6) for v in families]
            on_link = (*good, *unresolved, *refusing[:2], *behind)
            yield service(vip + ON_LINK, *on_link, protocol=protocol, forwarding="l2")
            yield service(vip + STICKY, *weighted, protocol=protocol, affinity=Affinity(10000))
            few = (ip_network(f"{CLIENTS[family]}/{vip.max_prefixlen - 5}", strict=False),)
            yield service(vip + EXCLUSIVE, *good, protocol=protocol, allow_from=few)


@dataclass(frozen=True)
class Recipe:
    """A frame to be. The defaults make a right one."""

    family: int = 4
    protocol: int = 6
    link: str = "untagged"
    traffic_class: int = 0
    vip: int = 0
    port: int = 0
    client: int = 0
    sport: int = 40000
    options: int = 0
    extensions: tuple[tuple[int, int, int], ...] = ()
    """Kind, further units of length, fourth byte: a routing header's segments left. With IPv4 only
    those of authentication headers are there."""
    flags: int = 0
    """Of a segment."""
    fragment: int | None = None
    """IPv4: flags and offset. IPv6: the fragment header's, None for no such header."""
    length_error: int = 0
    payload: int = 7
    padding: int = 0

    def frame(self) -> bytes:
        """The bytes."""
        ports = struct.pack("!HH", self.sport, PORT + self.port)
        if self.protocol == 6:
            segment = ports + bytes(9) + bytes((self.flags,)) + bytes(6 + self.payload)
        else:
            segment = ports + bytes(4 + self.payload)
        source = (CLIENTS[self.family] + self.client).packed
        target = (VIPS[self.family] + self.vip).packed
        build = self._ipv4 if self.family == 4 else self._ipv6
        packet = build(source + target, segment)
        return MACS + LINKS[self.link] + ETHERTYPES[self.family] + packet + bytes(self.padding)

    def _ipv4(self, addresses: bytes, segment: bytes) -> bytes:
        size, protocol = 20 + 4 * self.options, self.protocol
        for kind, units, fourth in reversed(self.extensions):
            if kind == AUTHENTICATION:
                segment = extension_header(protocol, kind, units, fourth) + segment
                protocol = kind
        length = size + len(segment) + self.length_error
        fields = (0x40 | size // 4, self.traffic_class, length & 0xFFFF, self.sport)
        rest = (self.fragment or 0, 64, protocol, 0)
        header = struct.pack("!BBHHHBBH", *fields, *rest)
        return header + addresses + b"\x01" * 4 * self.options + segment

    def _ipv6(self, addresses: bytes, segment: bytes) -> bytes:
        nexthdr = self.protocol
        if self.fragment is not None:
            segment = struct.pack("!BBHI", nexthdr, 0, self.fragment, 7) + segment
            nexthdr = 44
        for kind, units, fourth in reversed(self.extensions):
            segment = extension_header(nexthdr, kind, units, fourth) + segment
            nexthdr = kind
        words = 6 << 28 | self.traffic_class << 20 | 0x12345
        length = len(segment) + self.length_error & 0xFFFF
        return struct.pack("!IHBB", words, length, nexthdr, 64) + addresses + segment


def extension_header(follows: int, kind: int, units: int, fourth: int) -> bytes:
    """RFC 8200, 4.3 and RFC 4302, 2: lengths are in other units."""
    if kind == AUTHENTICATION:
        return bytes((follows, units + 1, 0, fourth)) + bytes(8 + 4 * units)
    return bytes((follows, units, 0, fourth)) + bytes(4 + 8 * units)


@dataclass(frozen=True)
class Damage:
    """What happens to a copy of a frame: bytes overwritten, then it is cut or grows."""

    edits: tuple[tuple[int, int], ...] = ()
    cut: int = 0
    grow: int = 0

    def of(self, frame: bytes) -> bytes:
        """The damaged copy, which has an Ethernet header's length at least."""
        made = bytearray(frame)
        for position, value in self.edits:
            made[position % len(made)] = value
        made = made[: max(14, len(made) - self.cut)]
        return bytes(made) + bytes(self.grow)


def mostly(usual: object, *others: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Nine times in ten or so the usual value."""
    return st.integers(0, 9).flatmap(lambda n: st.one_of(*others) if n == 9 else st.just(usual))


kinds = st.sampled_from([0, 43, 60, 44, 51, 6])
extension = st.tuples(kinds, mostly(0, st.integers(0, 3)), mostly(0, st.just(1)))
recipes = st.builds(
    Recipe,
    family=st.sampled_from([4, 6]),
    protocol=mostly(6, st.just(17), st.sampled_from([1, 4, 41, 47, 50, 51, 58, 59, 132])),
    link=mostly("untagged", st.sampled_from(sorted(LINKS))),
    traffic_class=mostly(0, st.integers(0, 255)),
    vip=st.sampled_from(
        [*[0] * 6, REFUSING, REFUSING, ON_LINK, ON_LINK, STICKY, EXCLUSIVE, EXCLUSIVE, UNKNOWN]
    ),
    port=st.sampled_from([*[0] * 6, NO_BACKENDS, REMEMBERS_NOTHING, UNKNOWN]),
    client=mostly(0, st.integers(0, 100)),
    sport=st.integers(0, 65535),
    options=mostly(0, st.integers(0, 10)),
    extensions=mostly(
        (),
        st.lists(extension, max_size=9).map(tuple),
        st.tuples(st.tuples(st.just(AUTHENTICATION), st.integers(0, 3), st.just(0))),
    ),
    flags=mostly(0x10, st.integers(0, 63)),
    fragment=mostly(None, st.sampled_from([0, 1, 0x2000, 0x4000, 0x8000, 0x0008, 0xFFF9, 6])),
    length_error=mostly(0, st.integers(-64, 64), st.integers(-65535, 65535)),
    payload=st.one_of(st.just(7), st.integers(0, 64), st.integers(1200, 1500)),
    padding=mostly(0, st.integers(1, 64)),
)
# Most bytes that decide anything are among the first.
edit = st.tuples(st.one_of(st.integers(0, 70), st.integers(12, 26)), st.integers(0, 255))
damages = st.builds(
    Damage,
    edits=st.lists(edit, max_size=3).map(tuple),
    cut=mostly(0, st.integers(0, 120)),
    grow=mostly(0, st.integers(0, 60)),
)
devices = st.sampled_from([IN, IN, OUT])


@pytest.mark.thorough
def test_program_and_oracle_agree_on_any_frame(rig: Rig) -> None:
    """Same action, bytes and counters, on frames nearly right; every verdict occurs often."""

    @settings(max_examples=RECIPES)
    @given(recipes, st.lists(damages, min_size=DAMAGED, max_size=DAMAGED), devices)
    def agree(recipe: Recipe, copies: list[Damage], device: str) -> None:
        frame = recipe.frame()
        rig.check(frame, device)
        for damage in copies:
            rig.check(damage.of(frame), device)

    rig.seen.clear()
    agree()
    assert rig.seen.total() >= MIN_FRAMES
    # What is drawn is chance, and one kind may hardly be among it: then on.
    for _ in range(MAX_ROUNDS):
        if IN_GUEST or not rare(rig):
            return
        agree()
    assert rare(rig) == {}


def rare(rig: Rig) -> dict[str, int]:
    """Verdicts that didn't occur often enough to have been tried in earnest, and how often."""
    usual = (TX, REDIRECT, HANDOFF, NO_VIP, OTHER_PROTOCOL, FRAGMENT, MALFORMED, QINQ)
    less = (NO_BACKEND, "drop_no_route", "drop_prohibited", NOT_FOR_YOU, NOT_ON_LINK, NOT_IP)
    least = dict.fromkeys(usual, MIN_FRAMES // 100) | dict.fromkeys(less, MIN_FRAMES // 1000)
    # The oracle knows whether this kernel tells the MTU.
    least[TOO_BIG] = MIN_FRAMES // 1000 * fib_lookup().mtu
    return {
        verdict: rig.seen[verdict] for verdict, most in least.items() if rig.seen[verdict] < most
    }


def test_program_and_oracle_agree_on_garbage(rig: Rig) -> None:
    """Random bytes, behind an EtherType that makes the program look at them or not."""
    starts = [b"", MACS + ETHERTYPES[4], MACS + ETHERTYPES[6], MACS + LINKS["tagged"]]

    @settings(max_examples=GARBAGE)
    @given(st.sampled_from(starts), st.binary(min_size=14, max_size=200))
    def agree(start: bytes, rest: bytes) -> None:
        rig.check(start + rest)

    agree()
