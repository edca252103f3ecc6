# SPDX-License-Identifier: Apache-2.0
"""The decapsulating program agrees with its oracle on any frame whatever."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.guests import examples
from tests.prog.decap.harness import CLIENTS, PROTOCOLS, SOURCES, TARGETS, VIPS, Rig, loaded
from tests.prog.decap.oracle import ECN, FRAGMENT, MALFORMED, OTHER, UNWRAPPED, ones_complement_sum

if TYPE_CHECKING:
    from collections.abc import Iterator

MADE = examples(5000)
GARBAGE = examples(1000)

MACS = bytes.fromhex("020000000002 020000000001")
LINKS = {
    "untagged": b"",
    "tagged": b"\x81\x00\xa0\x07",
    "priority tag": b"\x81\x00\xe0\x00",
    "service tag": b"\x88\xa8\x00\x01",
    "two tags": b"\x81\x00\x00\x01\x81\x00\x00\x02",
}
ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
NO_ROUTE = {4: "192.0.2.99", 6: "2001:db8:2::99"}
FRAGMENT_HEADER = 44


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """A program of this module's own."""
    with loaded() as rig:
        yield rig


@dataclass(frozen=True)
class Header:
    """An IP header and what is wrong with it; the defaults make a right one.

    `length_error` and `checksum_error` are added to the right values; `fragment` is the word of
    flags and offset in IPv4, the fragment header's in IPv6 (None: no such header); `extensions`
    are kind, further 8-byte units and fourth byte (a routing header's segments left).
    """

    family: int
    traffic_class: int = 0
    options: int = 0
    extensions: tuple[tuple[int, int, int], ...] = ()
    fragment: int | None = None
    length_error: int = 0
    checksum_error: int = 0

    def before(self, source: str, target: str, protocol: int, payload: bytes) -> bytes:
        """The header and the payload."""
        build = self._ipv4 if self.family == 4 else self._ipv6
        return build(ip_address(source).packed, ip_address(target).packed, protocol, payload)

    def _ipv4(self, source: bytes, target: bytes, protocol: int, payload: bytes) -> bytes:
        size = 20 + 4 * self.options
        header = bytearray(
            struct.pack(
                "!BBHHHBBH4s4s",
                0x40 | size // 4,
                self.traffic_class,
                size + len(payload) + self.length_error & 0xFFFF,
                0x1234,
                self.fragment or 0,
                64,
                protocol,
                0,
                source,
                target,
            )
            + b"\x01" * 4 * self.options
        )
        right = 0xFFFF - ones_complement_sum(bytes(header))
        struct.pack_into("!H", header, 10, right + self.checksum_error & 0xFFFF)
        return bytes(header) + payload

    def _ipv6(self, source: bytes, target: bytes, protocol: int, payload: bytes) -> bytes:
        nexthdr = protocol
        if self.fragment is not None:
            payload = struct.pack("!BBHI", nexthdr, 0, self.fragment, 7) + payload
            nexthdr = FRAGMENT_HEADER
        for kind, units, fourth in reversed(self.extensions):
            payload = (
                struct.pack("!BBBB", nexthdr, units, 0, fourth) + bytes(4 + 8 * units) + payload
            )
            nexthdr = kind
        length = len(payload) + self.length_error & 0xFFFF
        words = 6 << 28 | self.traffic_class << 20 | 0x12345
        return struct.pack("!IHBB", words, length, nexthdr, 64) + source + target + payload


@dataclass(frozen=True)
class Recipe:
    """A frame to be: two headers, then bytes overwritten, cut off or added at the end."""

    link: str
    outer: Header
    inner: Header
    protocol: int | None
    ours: bool
    payload: bytes
    padding: int
    edits: tuple[tuple[int, int], ...]
    cut: int

    def frame(self) -> bytes:
        """The bytes, at least an Ethernet header of them."""
        inside, outside = self.inner.family, self.outer.family
        packet = self.inner.before(CLIENTS[inside], VIPS[inside], 17, self.payload)
        protocol = PROTOCOLS[inside] if self.protocol is None else self.protocol
        target = (TARGETS if self.ours else NO_ROUTE)[outside]
        packet = self.outer.before(SOURCES[outside], target, protocol, packet)
        frame = bytearray(MACS + LINKS[self.link] + ETHERTYPES[outside] + packet)
        for position, value in self.edits:
            frame[position % len(frame)] = value
        frame += bytes(self.padding)
        return bytes(frame[: max(14, len(frame) - self.cut)])


def mostly(usual: object, *others: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Nine times in ten or so the usual value."""
    return st.integers(0, 9).flatmap(lambda n: st.one_of(*others) if n == 9 else st.just(usual))


small = st.one_of(st.integers(-64, 64), st.sampled_from([-1, 1, -8, 8]))
families = st.sampled_from([4, 6])
classes = st.integers(0, 255)
extension = st.tuples(st.sampled_from([0, 43, 60, 60]), st.integers(0, 3), mostly(0, st.just(1)))
fragments = mostly(None, st.sampled_from([0, 1, 0x2000, 0x4000, 0x8000, 0x0008, 0xFFF9, 6]))

headers = st.builds(
    Header,
    family=families,
    traffic_class=classes,
    options=mostly(0, st.integers(0, 10)),
    extensions=mostly((), st.lists(extension, max_size=9).map(tuple)),
    fragment=fragments,
    length_error=mostly(0, small),
    checksum_error=mostly(0, st.integers(1, 0xFFFF)),
)
# Anything anywhere, or a first byte of an IP header where one may begin.
edit = st.one_of(
    st.tuples(st.integers(0, 255), st.integers(0, 255)),
    st.tuples(st.sampled_from([14, 18, 34, 54]), st.sampled_from([0x44, 0x46, 0x4F, 0x55, 0x65])),
)
recipes = st.builds(
    Recipe,
    link=mostly("untagged", st.sampled_from(sorted(LINKS))),
    outer=headers,
    inner=headers,
    protocol=mostly(None, st.sampled_from([4, 41, 17, 6, 47, 0, 43, 44, 51, 60])),
    ours=st.integers(0, 9).map(bool),
    payload=st.binary(max_size=64),
    padding=mostly(0, st.integers(1, 64)),
    edits=mostly((), st.lists(edit, min_size=1, max_size=4).map(tuple)),
    cut=mostly(0, st.integers(1, 200)),
)


@pytest.mark.thorough
def test_program_and_oracle_agree_on_made_frames(rig: Rig) -> None:
    """Same action, bytes and counters, on frames that are nearly right; every verdict occurs."""

    @settings(max_examples=MADE)
    @given(recipes)
    def agree(recipe: Recipe) -> None:
        rig.check(recipe.frame())

    rig.seen.clear()
    agree()
    assert rig.seen.total() >= MADE
    assert all(rig.seen[verdict] >= MADE // 200 for verdict in (UNWRAPPED, OTHER, FRAGMENT))
    assert all(rig.seen[verdict] >= MADE // 200 for verdict in (MALFORMED, ECN))


def test_program_and_oracle_agree_on_garbage(rig: Rig) -> None:
    """Random bytes, behind an EtherType that makes the program look at them or not."""

    @settings(max_examples=GARBAGE)
    @given(
        st.sampled_from([b"", MACS + ETHERTYPES[4], MACS + ETHERTYPES[6], MACS + LINKS["tagged"]]),
        st.binary(min_size=14, max_size=200),
    )
    def agree(start: bytes, rest: bytes) -> None:
        rig.check(start + rest)

    agree()
