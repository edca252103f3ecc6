# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about translated packets reach whom they concern, translated inside and out.

What a router quotes is what it was sent. Translated back that must be what the other side had sent,
byte for byte but for the TTL: this is what the expected frames are made of.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet6 import IPv6ExtHdrFragment
from tests.prog.lb.frames import CLIENTS, VIPS
from tests.prog.lb.harness import key_of
from tests.prog.lb.network import FAR, IN, NEAR, NO_ROUTE, OUT
from tests.prog.lb.oracle import REDIRECT, TX, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX, checksum
from tests.prog.lb.wire_fragments import cut, identification
from tests.prog.snat.harness import (
    BOTH,
    NatRig,
    answer,
    client_frame,
    snat_service,
)
from tests.prog.snat.harness_fragments import PIECE, entry_ends, reversed_ends, whole
from tests.prog.snat.oracle import NO_HOP, NatOutcome

from towpath.model import Backend, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.prog.lb.oracle import Outcome
    from tests.prog.lb.oracle_parse import Address

# A service of each kind, no translations, and no fragments.
pytestmark = pytest.mark.usefixtures("nothing_known")

ROUTERS: dict[int, Address] = {4: ip_address("10.88.0.1"), 6: ip_address("2001:db8:88::1")}
TOO_BIG = {4: (3, 4), 6: (2, 0)}
ERRORS = {4: [(3, 0), (3, 3), (3, 4), (11, 0), (12, 0)], 6: [(1, 4), (2, 0), (3, 0), (4, 1)]}
HEADER = {4: 20, 6: 40}
MTU = 1300
ACTIONS = {TX: XDP_TX, REDIRECT: XDP_REDIRECT}


def own_ports(nat: NatRig, first: int) -> None:
    """Have every backend listen elsewhere than at the VIP's port."""
    nat.serve(
        *(
            snat_service(
                v, *(Backend(a, port=first + n) for n, a in enumerate(NEAR[v])), protocol=p
            )
            for v in (4, 6)
            for p in Protocol
        )
    )


@dataclass(frozen=True)
class Conversation:
    """A client's packet and a backend's answer, each as it was sent and as it left us."""

    sent: bytes
    sent_on: Outcome
    answered: bytes
    answered_on: Outcome


def conversation(
    nat: NatRig, version: int, protocol: int, payload: bytes = b"x" * 99
) -> Conversation:
    """One packet each way."""
    sent = client_frame(version, protocol, payload=payload)
    there = nat.check(sent)
    answered = answer(there, payload=payload)
    return Conversation(sent, there, answered, nat.check(answered))


def hop(packet: bytes, left: int) -> bytes:
    """An IP packet with another TTL or hop limit."""
    raw = bytearray(packet)
    if raw[0] >> 4 == 6:
        raw[7] = left
        return bytes(raw)
    raw[8], raw[10:12] = left, bytes(2)
    size = (raw[0] & 15) * 4
    raw[10:12] = struct.pack("!H", checksum(bytes(raw[:size])))
    return bytes(raw)


def error(
    source: Address, to: Address, quote: bytes, *, kind: tuple[int, int], hops: int = 60
) -> bytes:
    """The IP packet of an ICMP error, with an MTU in it."""
    body = struct.pack("!BBHHH", *kind, 0, 0, MTU) + quote
    pseudo = b""
    if source.version == 6:
        pseudo = source.packed + to.packed + struct.pack("!II", len(body), 58)
    check = checksum(pseudo + body + bytes(len(body) % 2))
    body = body[:2] + struct.pack("!H", check) + body[4:]
    if source.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(body), 58, hops)
        return head + source.packed + to.packed + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 7, 0, hops, 1, 0)
    return hop(head + source.packed + to.packed + body, hops)


def framed(packet: bytes) -> bytes:
    """A frame that comes in with a packet."""
    ethertype = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
    return bytes.fromhex("020000000002020000000001") + ethertype + packet


def assert_becomes(
    nat: NatRig,
    frame: bytes,
    expected: tuple[str, bytes],
    counts: dict[object, int],
    device: str = IN,
) -> None:
    """Run a frame: action, every byte behind the link header, every counter."""
    verdict, packet = expected
    before = nat.counters()
    run = nat.run(frame, device)
    assert run.retval == ACTIONS.get(verdict, XDP_DROP if verdict.startswith("drop") else XDP_PASS)
    out = run.data if verdict.startswith(("drop", "pass")) else run.data[14:]
    assert out.hex() == packet.hex()
    assert nat.moved(before, nat.counters()) == {verdict: 1} | counts


def assert_passes(nat: NatRig, frame: bytes) -> None:
    """It goes to the kernel as it came."""
    assert_becomes(nat, frame, ("pass_protocol", frame), {})


def forward_counts(outcome: Outcome, length: int) -> dict[object, int]:
    """What moves when a packet of that length goes to a flow's backend."""
    assert outcome.key is not None
    units = {"packets": 1, "bytes": length}
    counts: dict[object, int] = {(outcome.key, unit): by for unit, by in units.items()}
    for unit, by in units.items():
        counts[outcome.key, outcome.backend, unit] = by
    return counts


def reply_counts(outcome: Outcome, length: int) -> dict[object, int]:
    """What moves when a packet of that length goes to a client."""
    return {(outcome.key, "replies"): 1, (outcome.key, "reply_bytes"): length}


def entry_of(outcome: Outcome) -> tuple[Address, Address]:
    """Translated source and backend of a flow."""
    assert isinstance(outcome, NatOutcome)
    assert outcome.entry is not None
    return outcome.entry.source, outcome.entry.backend


# ---- Errors that are translated --------------------------------------------------------------


@pytest.mark.parametrize("own", [0, 8080])
@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_a_router_towards_the_backend(nat: NatRig, version: int, protocol: int, own: int) -> None:
    """Every error, quoting as little as the RFCs allow or all: the client gets it from the VIP."""
    if own:
        own_ports(nat, own)
    talk = conversation(nat, version, protocol)
    source, backend = entry_of(talk.sent_on)
    whole = len(talk.sent) - 14
    for kind in ERRORS[version]:
        for length in {HEADER[version] + 8, HEADER[version] + 16, HEADER[version] + 18, whole}:
            for sender in (ROUTERS[version], backend):
                quote = hop(talk.sent_on.frame[14:], 3)[:length]
                expected = error(
                    VIPS[version],
                    CLIENTS[version],
                    hop(talk.sent[14:], 3)[:length],
                    kind=kind,
                    hops=59,
                )
                came = error(sender, source, quote, kind=kind)
                counts = reply_counts(talk.sent_on, len(came))
                assert_becomes(nat, framed(came), (TX, expected), counts)


@pytest.mark.parametrize("own", [0, 8080])
@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_a_router_towards_the_client(nat: NatRig, version: int, protocol: int, own: int) -> None:
    """What it says of an answer is told to the backend, by our own address."""
    if own:
        own_ports(nat, own)
    talk = conversation(nat, version, protocol)
    source, backend = entry_of(talk.sent_on)
    whole = len(talk.answered) - 14
    for kind in ERRORS[version]:
        for length in {HEADER[version] + 8, HEADER[version] + 16, HEADER[version] + 18, whole}:
            quote = hop(talk.answered_on.frame[14:], 9)[:length]
            expected = error(
                source, backend, hop(talk.answered[14:], 9)[:length], kind=kind, hops=59
            )
            came = error(ROUTERS[version], VIPS[version], quote, kind=kind)
            counts = forward_counts(talk.sent_on, len(came))
            assert_becomes(nat, framed(came), (TX, expected), counts)


def test_a_quoted_datagram_without_checksum(nat: NatRig) -> None:
    """Stays without, both ways."""
    sent = bytearray(client_frame(4, 17))
    sent[40:42] = bytes(2)
    there = nat.expect(bytes(sent), TX)
    source, _ = entry_of(there)
    came = error(ROUTERS[4], source, there.frame[14:], kind=TOO_BIG[4])
    quote = hop(bytes(sent[14:]), 63)
    expected = error(VIPS[4], CLIENTS[4], quote, kind=TOO_BIG[4], hops=59)
    assert_becomes(nat, framed(came), (TX, expected), reply_counts(there, len(came)))


@pytest.mark.parametrize("version", [4, 6])
def test_out_of_another_device(nat: NatRig, version: int) -> None:
    """An error takes the way of the flow's packets."""
    nat.serve(snat_service(version, *FAR[version]))
    talk = conversation(nat, version, 6)
    source, backend = entry_of(talk.sent_on)
    came = error(
        ROUTERS[version], VIPS[version], talk.answered_on.frame[14:], kind=TOO_BIG[version]
    )
    quote = hop(talk.answered[14:], 63)
    expected = error(source, backend, quote, kind=TOO_BIG[version], hops=59)
    counts = forward_counts(talk.sent_on, len(came))
    assert_becomes(nat, framed(came), (REDIRECT, expected), counts)
    came = error(backend, source, talk.sent_on.frame[14:], kind=TOO_BIG[version])
    quote = hop(talk.sent[14:], 63)
    expected = error(VIPS[version], CLIENTS[version], quote, kind=TOO_BIG[version], hops=59)
    counts = reply_counts(talk.sent_on, len(came))
    assert_becomes(nat, framed(came), (REDIRECT, expected), counts, OUT)


@pytest.mark.parametrize("version", [4, 6])
def test_the_last_hop(nat: NatRig, version: int) -> None:
    """An error is forwarded as a router would."""
    talk = conversation(nat, version, 6)
    source, _ = entry_of(talk.sent_on)
    came = framed(error(ROUTERS[version], source, talk.sent_on.frame[14:], kind=(3, 0), hops=1))
    assert_becomes(nat, came, (NO_HOP, came), {})
    quote = talk.answered_on.frame[14:]
    came = framed(error(ROUTERS[version], VIPS[version], quote, kind=(3, 0), hops=1))
    key = talk.sent_on.key
    counts: dict[object, int] = {
        (key, "packets"): 1,
        (key, "bytes"): len(came) - 14,
        (key, "drops"): 1,
        (key, NO_HOP): 1,
    }
    assert_becomes(nat, came, (NO_HOP, came), counts)


# ---- What stands between the quoted header and the quoted ports ----------------------------------

HOP_BY_HOP, ROUTING, FRAGMENT, NO_NEXT, DESTINATION = 0, 43, 44, 59, 60
# Each without its first byte, the next header.
SHORT = bytes.fromhex("00 0104 00000000")  # PadN
LONG = bytes.fromhex("02 0114") + bytes(20)
ATOMIC = bytes.fromhex("000000 12345678")
FIRST = bytes.fromhex("000001 12345678")  # its identification is not the one that was sent
LATER = bytes.fromhex("000009 12345678")
Chain = list[tuple[int, bytes]]
PASSED_OVER: dict[str, Chain] = {
    "hop-by-hop": [(HOP_BY_HOP, SHORT)],
    "destination": [(DESTINATION, LONG)],
    "routing, arrived": [(ROUTING, bytes(7))],
    "atomic fragment": [(FRAGMENT, ATOMIC)],
    "first fragment": [(FRAGMENT, FIRST)],
    "options of a fragment": [(DESTINATION, LONG), (FRAGMENT, FIRST), (DESTINATION, LONG)],
    "as many as are read": [(DESTINATION, SHORT)] * 7,
}
NOT_READ: dict[str, Chain] = {
    "later fragment": [(FRAGMENT, LATER)],
    "routing, on its way": [(ROUTING, bytes.fromhex("000201 00000000"))],
    "one too many": [(DESTINATION, SHORT)] * 8,
    "no next header": [(NO_NEXT, bytes(7))],
}


def extended(packet: bytes, chain: Chain) -> bytes:
    """An IPv6 packet with these headers between its own and its transport's."""
    kinds = [kind for kind, _ in chain] + [packet[6]]
    between = b"".join(
        bytes([following]) + rest for (_, rest), following in zip(chain, kinds[1:], strict=True)
    )
    length = struct.pack("!H", len(packet) - 40 + len(between))
    return packet[:4] + length + bytes([kinds[0]]) + packet[7:40] + between + packet[40:]


def with_options(packet: bytes, words: int) -> bytes:
    """An IPv4 packet with so many words of options that do nothing."""
    head = bytes([0x45 + words, packet[1]]) + struct.pack("!H", len(packet) + 4 * words)
    return hop(head + packet[4:20] + b"\1" * 4 * words + packet[20:], packet[8])


def turned(nat: NatRig, version: int, protocol: int) -> list[int]:
    """What changes in the identification of a client's fragments, and of a backend's."""
    talk = fragmented(nat, version, protocol)
    pairs = ((talk.sent, talk.sent_on), (talk.answered, talk.answered_on))
    return [
        int.from_bytes(identification(came[14:])) ^ int.from_bytes(identification(on.frame[14:]))
        for came, on in pairs
    ]


def with_turned(chain: Chain, change: int) -> Chain:
    """With that change in the identification of a first fragment."""
    number = int.from_bytes(FIRST[-4:]) ^ change
    return [(kind, FIRST[:3] + number.to_bytes(4) if it == FIRST else it) for kind, it in chain]


def assert_both_ways(
    nat: NatRig,
    version: int,
    protocol: int,
    between: Callable[[bytes, int], bytes],
) -> None:
    """Errors about packets with something in between, cut off at every byte up to the ports' end.

    Towards the client and towards the backend. ``between`` is told of the packet that came what
    has changed in its identification since it was sent.
    """
    changes = turned(nat, version, protocol)
    talk = conversation(nat, version, protocol)
    source, backend = entry_of(talk.sent_on)
    kind, router = TOO_BIG[version], ROUTERS[version]
    ways = (
        (
            (router, source, talk.sent_on.frame[14:]),
            (VIPS[version], CLIENTS[version], talk.sent[14:]),
            reply_counts,
        ),
        (
            (router, VIPS[version], talk.answered_on.frame[14:]),
            (source, backend, talk.answered[14:]),
            forward_counts,
        ),
    )
    for change, (came_to, goes_to, counts) in zip(changes, ways, strict=True):
        (sender, to, quoted), (as_from, told, original) = came_to, goes_to
        quote, expected = between(hop(quoted, 5), change), between(hop(original, 5), 0)
        least = len(quote) - len(quoted) + HEADER[version] + 8
        for length in range(least):
            assert_passes(nat, framed(error(sender, to, quote[:length], kind=kind)))
        # Not between the two bytes of TCP's checksum, of which one alone can't be right.
        for length in (least, least + 1, least + 8, least + 10, len(quote)):
            came = error(sender, to, quote[:length], kind=kind)
            out = error(as_from, told, expected[:length], kind=kind, hops=59)
            assert_becomes(nat, framed(came), (TX, out), counts(talk.sent_on, len(came)))


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("chain", PASSED_OVER.values(), ids=PASSED_OVER.keys())
def test_extension_headers_in_the_quote(nat: NatRig, protocol: int, chain: Chain) -> None:
    """Are left as they are, and the ports and checksum behind them are translated."""
    assert_both_ways(
        nat, 6, protocol, lambda packet, change: extended(packet, with_turned(chain, change))
    )


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("words", [1, 3, 10])
def test_options_in_the_quote(nat: NatRig, protocol: int, words: int) -> None:
    """The same for IPv4, whose header's own checksum covers them."""
    assert_both_ways(nat, 4, protocol, lambda packet, _: with_options(packet, words))


@pytest.mark.parametrize("chain", NOT_READ.values(), ids=NOT_READ.keys())
def test_quotes_whose_ports_are_not_found_pass(nat: NatRig, chain: Chain) -> None:
    """There are none, or too many headers before them."""
    talk = conversation(nat, 6, 6)
    source, _ = entry_of(talk.sent_on)
    quotes = ((source, talk.sent_on.frame[14:]), (VIPS[6], talk.answered_on.frame[14:]))
    for to, quoted in quotes:
        quote = extended(hop(quoted, 5), chain)
        assert_passes(nat, framed(error(ROUTERS[6], to, quote, kind=TOO_BIG[6])))


# ---- Errors that are not ours --------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_about_nothing_we_sent_passes(nat: NatRig, version: int) -> None:
    """Other ports, other hosts, another outer destination, too short a quote, no error at all."""
    talk = conversation(nat, version, 6)
    source, _ = entry_of(talk.sent_on)
    quote, at = talk.sent_on.frame[14:], HEADER[version]
    kind = TOO_BIG[version]
    for byte in (at, at + 1, at + 2, at + 3, at - 1, at - 5):
        other = bytearray(quote)
        other[byte] ^= 1
        assert_passes(nat, framed(error(ROUTERS[version], source, bytes(other), kind=kind)))
    assert_passes(nat, framed(error(ROUTERS[version], VIPS[version], quote, kind=kind)))
    assert_passes(nat, framed(error(ROUTERS[version], source + 1, quote, kind=kind)))
    for length in (0, 1, at - 1, at, at + 7):
        assert_passes(nat, framed(error(ROUTERS[version], source, quote[:length], kind=kind)))
    echo = {4: (8, 0), 6: (128, 0)}[version]
    assert_passes(nat, framed(error(ROUTERS[version], source, quote, kind=echo)))
    back = {4: (0, 0), 6: (129, 0)}[version]
    assert_passes(nat, framed(error(ROUTERS[version], source, quote, kind=back)))


@pytest.mark.parametrize("version", [4, 6])
def test_a_later_fragment_is_quoted_without_ports(nat: NatRig, version: int) -> None:
    """Behind the first there are other bytes in their place: nobody knows whose it was."""
    talk = fragmented(nat, version, 17)
    source, _ = entry_of(talk.sent_on)
    quote = talk.sent_on.frame[14:]
    later = bytearray(quote)
    at = {4: 7, 6: 43}[version]
    later[at] |= 8
    later[:] = hop(bytes(later), 9)
    assert_passes(nat, framed(error(ROUTERS[version], source, bytes(later), kind=(3, 1))))


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_a_quoted_first_fragment(nat: NatRig, version: int, protocol: int) -> None:
    """Is told with the identification that it came with, to either side."""
    talk = fragmented(nat, version, protocol)
    source, backend = entry_of(talk.sent_on)
    header = HEADER[version] + {4: 0, 6: 8}[version]
    for kind in ERRORS[version]:
        for length in (header + 8, header + 16, header + 18, 500):
            came = error(
                ROUTERS[version], source, hop(talk.sent_on.frame[14:], 3)[:length], kind=kind
            )
            quote = hop(talk.sent[14:], 3)[:length]
            expected = error(VIPS[version], CLIENTS[version], quote, kind=kind, hops=59)
            counts = reply_counts(talk.sent_on, len(came))
            assert_becomes(nat, framed(came), (TX, expected), counts)
            back = hop(talk.answered_on.frame[14:], 3)[:length]
            came = error(ROUTERS[version], VIPS[version], back, kind=kind)
            quote = hop(talk.answered[14:], 3)[:length]
            expected = error(source, backend, quote, kind=kind, hops=59)
            counts = forward_counts(talk.sent_on, len(came))
            assert_becomes(nat, framed(came), (TX, expected), counts)


def test_a_quoted_packet_that_only_looks_like_a_fragment(nat: NatRig) -> None:
    """Has kept its identification (RFC 6946)."""
    sent = framed(whole(6, size=99, headers=IPv6ExtHdrFragment(id=7)))
    there = nat.expect(sent, TX)
    source, _ = entry_of(there)
    came = error(ROUTERS[6], source, hop(there.frame[14:], 3), kind=(2, 0))
    expected = error(VIPS[6], CLIENTS[6], hop(sent[14:], 3), kind=(2, 0), hops=59)
    assert_becomes(nat, framed(came), (TX, expected), reply_counts(there, len(came)))


def fragmented(nat: NatRig, version: int, protocol: int) -> Conversation:
    """The first fragment of a packet each way."""
    sent = framed(cut(whole(version, protocol), PIECE, 4711)[0])
    there = nat.expect(sent, TX)
    ends, _ = entry_ends(there)
    answered = framed(cut(whole(version, ends=reversed_ends(ends)), PIECE, 4712)[0])
    return Conversation(sent, there, answered, nat.expect(answered, TX))


@pytest.mark.parametrize("version", [4, 6])
def test_errors_about_a_removed_backend_pass(nat: NatRig, version: int) -> None:
    """They concern a flow that has gone elsewhere."""
    nat.serve(snat_service(version, NEAR[version][0]))
    talk = conversation(nat, version, 6)
    source, _ = entry_of(talk.sent_on)
    nat.serve(snat_service(version, NEAR[version][1]))
    kind = TOO_BIG[version]
    assert_passes(nat, framed(error(ROUTERS[version], source, talk.sent_on.frame[14:], kind=kind)))
    quote = talk.answered_on.frame[14:]
    assert_passes(nat, framed(error(ROUTERS[version], VIPS[version], quote, kind=kind)))


def test_an_error_confirms_and_ends_nothing(nat: NatRig) -> None:
    """A port unreachable alone can be forged: the entry's state is as before."""
    talk = conversation(nat, 4, 6)
    source, _ = entry_of(talk.sent_on)
    before = nat.tables["nat_heads"].tobytes()
    came = framed(error(NO_ROUTE[4], source, talk.sent_on.frame[14:], kind=(3, 3)))
    assert nat.run(came).retval == XDP_TX
    assert nat.tables["nat_heads"].tobytes() == before
    assert key_of(snat_service(4, protocol=Protocol.TCP)) == talk.sent_on.key
