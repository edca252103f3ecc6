# SPDX-License-Identifier: Apache-2.0
"""Source NAT: a client's packets to a backend and the answers back, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import IPOption_RR
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from tests.guests import examples
from tests.prog.lb.frames import PORT, TRANSPORTS, VIPS, ether, ip, segment
from tests.prog.lb.harness import service
from tests.prog.lb.network import (
    FAR,
    FAR_UNRESOLVED,
    IN,
    MTU,
    NEAR,
    NO_ROUTE,
    OUT,
    REFUSED,
    told_mtu,
)
from tests.prog.lb.oracle import HANDOFF, NO_BACKEND, NO_VIP, REDIRECT, TOO_BIG, TX
from tests.prog.snat.harness import (
    BOTH,
    NatRig,
    answer,
    client_frame,
    snat_service,
)
from tests.prog.snat.oracle import NO_HOP, NatOutcome

from towpath.model import Protocol

# A service of each kind, no translations, and no fragments.
pytestmark = pytest.mark.usefixtures("nothing_known")

BOTH_WAYS = True
MANY = examples(200, 40)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_there_and_back(nat: NatRig, version: int, protocol: int) -> None:
    """Many flows: each packet goes to the flow's backend, each answer to its client."""
    for number in range(MANY):
        frame = client_frame(version, protocol, sport=1000 + number)
        first = nat.expect(frame, TX)
        assert first.fresh
        nat.expect(answer(first), TX)
        again = nat.expect(client_frame(version, protocol, sport=1000 + number, flags="A"), TX)
        assert (again.fresh, again.backend) == (False, first.backend)
        nat.expect(answer(first, flags="A", payload=b"x" * (number % 9)), TX)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_every_length_of_payload(nat: NatRig, version: int, protocol: int) -> None:
    """Odd ones too, whose last byte is half a word of the checksum."""
    for length in (*range(5), 31, 32, 33, 1000, 1001):
        sent = nat.expect(client_frame(version, protocol, payload=b"\xff" * length), TX)
        nat.expect(answer(sent, payload=b"\x01" * length), TX)


def test_a_datagram_without_checksum_stays_without(nat: NatRig) -> None:
    """In IPv4, where 0 says that there is none."""
    frame = bytearray(client_frame(4, 17))
    frame[40:42] = bytes(2)
    sent = nat.expect(bytes(frame), TX)
    assert sent.frame[40:42] == bytes(2)
    back = bytearray(answer(sent))
    back[40:42] = bytes(2)
    assert nat.expect(bytes(back), TX).frame[40:42] == bytes(2)


@pytest.mark.parametrize("version", [4, 6])
def test_a_checksum_that_comes_out_as_zero(nat: NatRig, version: int) -> None:
    """Of a datagram it is written as 0xffff; a segment has the 0."""
    at = {4: 40, 6: 60}[version]
    for protocol, zero, where in ((17, b"\xff\xff", at), (6, b"\0\0", at + 10)):
        sent = nat.expect(client_frame(version, protocol, payload=bytes(2)), TX)
        # What is missing to 0xffff, as payload, makes the sum come out as that.
        missing = sent.frame[where : where + 2]
        found = nat.expect(client_frame(version, protocol, payload=missing), TX)
        assert found.frame[where : where + 2] == zero


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_a_wrong_checksum_stays_wrong(nat: NatRig, version: int, protocol: int) -> None:
    """By as much as it was: nobody is told that a broken packet is whole."""
    at = {4: 34, 6: 54}[version] + {6: 16, 17: 6}[protocol]
    frame = client_frame(version, protocol)
    right = nat.expect(frame, TX).frame
    wrong = bytearray(frame)
    wrong[at + 1] ^= 1
    came = nat.run(bytes(wrong)).data
    assert came[:at] == right[:at]
    assert came[at + 2 :] == right[at + 2 :]
    off = int.from_bytes(wrong[at : at + 2], "big") - int.from_bytes(frame[at : at + 2], "big")
    written = int.from_bytes(came[at : at + 2], "big")
    assert (written - int.from_bytes(right[at : at + 2], "big") - off) % 0xFFFF == 0


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_ports_at_the_edges(nat: NatRig, version: int, protocol: int) -> None:
    """A client's port can be any, the translated one is within the range."""
    for sport in (0, 1, 1023, 1024, 65534, 65535):
        sent = nat.expect(client_frame(version, protocol, sport=sport), TX)
        assert isinstance(sent, NatOutcome)
        assert sent.entry is not None
        assert 10000 <= sent.entry.port <= 32767
        nat.expect(answer(sent), TX)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_tags(nat: NatRig, version: int, protocol: int) -> None:
    """A frame of a VLAN that no device speaks for stays in it, priority and all, both ways."""
    for vlan in (1, 100, 4094):
        sent = nat.expect(client_frame(version, protocol, sport=vlan, vlan=vlan), TX)
        assert sent.frame[12:14] == b"\x81\x00"
        nat.expect(answer(sent, vlan=vlan), TX)
        # And out of another device it leaves without: the headers move.
    nat.serve(*(snat_service(v, *FAR[v], protocol=p) for v in (4, 6) for p in Protocol))
    sent = nat.expect(client_frame(version, protocol, sport=7, vlan=5), REDIRECT)
    assert sent.frame[12:14] != b"\x81\x00"
    nat.expect(answer(sent, vlan=9), REDIRECT, OUT)


@pytest.mark.parametrize("protocol", [6, 17])
def test_options_and_extensions_are_carried_along(nat: NatRig, protocol: int) -> None:
    """The transport header is found behind them, and its checksum covers none of them."""
    packets = [
        ether() / ip(4, options=[IPOption_RR(length=7 + 4 * n, routers=["0.0.0.0"] * n)])
        for n in (1, 8)
    ]
    packets += [
        ether() / ip(6) / IPv6ExtHdrHopByHop(),
        ether() / ip(6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
    ]
    for packet in packets:
        nat.expect(bytes(packet / segment(protocol)), TX)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_padding_is_kept_and_not_summed(nat: NatRig, version: int, protocol: int) -> None:
    """What follows the packet in the frame is none of its bytes."""
    sent = nat.expect(client_frame(version, protocol, payload=b"") + b"pad" * 7, TX)
    assert sent.frame.endswith(b"pad" * 7)
    nat.expect(answer(sent, payload=b"") + b"more", TX)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_the_last_hop(nat: NatRig, version: int, protocol: int) -> None:
    """A packet that may go no farther is dropped, counted; one hop more and it leaves with one."""
    for left, verdict in ((0, NO_HOP), (1, NO_HOP), (2, TX), (255, TX)):
        nat.expect(client_frame(version, protocol, hops=left), verdict)
    sent = nat.expect(client_frame(version, protocol), TX)
    for left, verdict in ((0, NO_HOP), (1, NO_HOP), (2, TX), (255, TX)):
        nat.expect(answer(sent, hops=left), verdict)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_mtu(nat: NatRig, version: int, protocol: int) -> None:
    """Nothing is added to a packet: it may be as large as the way out allows, not a byte larger."""
    headers = {4: 20, 6: 40}[version] + {6: 20, 17: 8}[protocol]
    sent = nat.expect(client_frame(version, protocol), TX)
    # Kernels before 5.12 tell no MTU.
    too_large = TOO_BIG if told_mtu(IN) else TX
    for size, verdict in ((MTU[IN], TX), (MTU[IN] + 1, too_large)):
        payload = bytes(size - headers)
        nat.expect(client_frame(version, protocol, payload=payload), verdict)
        nat.expect(answer(sent, payload=payload), verdict)


@pytest.mark.parametrize("version", [4, 6])
def test_ways_to_backends(nat: NatRig, version: int) -> None:
    """Another device, a neighbour that isn't resolved, no way at all."""
    cases = [
        (FAR[version][0], REDIRECT),
        (FAR_UNRESOLVED[version], HANDOFF),
        (NO_ROUTE[version], "drop_no_route"),
        *((addresses[version], verdict) for addresses, verdict in REFUSED.values()),
    ]
    for backend, verdict in cases:
        nat.serve(snat_service(version, backend))
        nat.expect(client_frame(version), verdict)
        nat.expect(client_frame(version, flags="A"), verdict)


def test_no_backend(nat: NatRig) -> None:
    """As with every service: dropped and counted."""
    nat.expect(client_frame(), TX)
    nat.serve(replace(snat_service(4), backends=()))
    nat.expect(client_frame(flags="A"), NO_BACKEND)
    nat.expect(client_frame(sport=9), NO_BACKEND)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_what_is_no_answer_passes(nat: NatRig, version: int, protocol: int) -> None:
    """Another port, another backend, another protocol: the kernel's, as they came."""
    sent = nat.expect(client_frame(version, protocol), TX)
    assert isinstance(sent, NatOutcome)
    assert sent.entry is not None
    reply = sent.entry.reply
    fields = {"sport": reply.source_port, "dport": reply.destination_port}
    strangers = [(reply.source, fields | {"dport": port}) for port in (9999, 10000, 32767, 32768)]
    strangers += [(reply.source, fields | {"sport": PORT + 1}), (NO_ROUTE[version], fields)]
    for source, ports in strangers:
        header = ip(version, source=source, vip=reply.destination)
        nat.expect(bytes(ether() / header / TRANSPORTS[protocol](**ports)), NO_VIP)
    other = TRANSPORTS[23 - protocol](**fields)
    same = ip(version, source=reply.source, vip=reply.destination)
    nat.expect(bytes(ether() / same / other), NO_VIP)
    beside = ip(version, source=reply.source, vip=reply.destination + 1)
    nat.expect(bytes(ether() / beside / TRANSPORTS[protocol](**fields)), NO_VIP)


@pytest.mark.parametrize("version", [4, 6])
def test_a_removed_backend(nat: NatRig, version: int) -> None:
    """Its flows go to another, its answers pass to the kernel; no other flow notices."""
    gone, *others = NEAR[version]
    nat.serve(snat_service(version, gone, *others))
    before = [nat.expect(client_frame(version, sport=1000 + n), TX) for n in range(MANY)]
    nat.serve(snat_service(version, *others))
    for number, sent in enumerate(before):
        nat.expect(answer(sent), NO_VIP if sent.backend == gone else TX)
        again = nat.expect(client_frame(version, sport=1000 + number, flags="A"), TX)
        assert again.fresh == (sent.backend == gone)
        nat.expect(answer(again), TX)


def test_translated_and_tunnelled_services_side_by_side(nat: NatRig) -> None:
    """Each is forwarded in its way, and a service can change from one to the other."""
    nat.serve(snat_service(4), service(VIPS[6], *NEAR[6]))
    nat.expect(client_frame(4), TX)
    nat.expect(client_frame(6), TX)
    nat.serve(service(VIPS[4], *NEAR[4]), snat_service(6))
    nat.forget_ways()
    nat.expect(client_frame(4), TX)
    nat.expect(client_frame(6), TX)
    assert [s.forwarding for s in nat.balancer.observed()] == ["dsr", "snat"]
