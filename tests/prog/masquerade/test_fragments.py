# SPDX-License-Identifier: Apache-2.0
"""Fragments: the first one has the ports, and the others go its way."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.packet import Raw
from tests.prog.masquerade.harness import POD, POD6, REMOTE, REMOTE6, WAN, WAN6, Rig
from tests.prog.masquerade.oracle import fresh

BODY = Raw(bytes(range(256)) * 12)
WHOLE4 = {
    "udp": IP(src=POD, dst=REMOTE, id=4711) / UDP(sport=1, dport=2) / BODY,
    "echo": IP(src=POD, dst=REMOTE, id=4711) / ICMP(type=8, id=9) / BODY,
}


def joined4(parts: list[IP]) -> IP:
    """Put fragments together."""
    assert len({part.id for part in parts}) == 1
    data = b"".join(bytes(part.payload) for part in sorted(parts, key=lambda part: part.frag))
    first = parts[0]
    return IP(bytes(IP(src=first.src, dst=first.dst, ttl=first.ttl, proto=first.proto) / Raw(data)))


@pytest.mark.parametrize("name", WHOLE4)
def test_fragments_of_ipv4_are_one_packet_again(masq: Rig, name: str) -> None:
    """Translated, with one identification that is another one."""
    whole = fresh(WHOLE4[name])
    parts = fragment(whole, 1000)
    runs = [masq.out(part) for part in parts]
    for number, run in enumerate(runs):
        bound = {} if number else {"from_pod.bound": 1}
        assert run.moved == {"from_pod.sent": 1} | bound
    seen = [run.packet[IP] for run in runs]
    assert all(fresh(each).chksum == each.chksum for each in seen)
    together = joined4(seen)
    assert together.src == WAN
    assert seen[0].id != 4711
    for layer in (UDP, ICMP):
        if layer in together:
            assert together[layer].chksum == fresh(together)[layer].chksum
            assert bytes(together[layer].payload) == bytes(BODY)

    port = together[UDP].sport if UDP in together else together[ICMP].id
    layers = UDP(sport=2, dport=port) if UDP in together else ICMP(type=0, id=port)
    back = fragment(fresh(IP(src=REMOTE, dst=WAN, id=99) / layers / BODY), 1000)
    got = [masq.answer(part).packet[IP] for part in back]
    answer = joined4(got)
    assert answer.dst == POD
    for layer, at in ((UDP, "dport"), (ICMP, "id")):
        if layer in answer:
            assert answer[layer].chksum == fresh(answer)[layer].chksum
            assert getattr(answer[layer], at) == (1 if layer is UDP else 9)


def test_fragments_of_ipv6_are_one_packet_again(masq: Rig) -> None:
    """The same."""
    whole = IPv6(src=POD6, dst=REMOTE6) / IPv6ExtHdrFragment(id=4711) / UDP(sport=1, dport=2) / BODY
    runs = [masq.out(part) for part in fragment6(IPv6(bytes(whole)), 1280)]
    seen = [run.packet[IPv6] for run in runs]
    assert {each.src for each in seen} == {WAN6}
    assert len({each[IPv6ExtHdrFragment].id for each in seen}) == 1
    assert seen[0][IPv6ExtHdrFragment].id != 4711
    data = b"".join(bytes(each[IPv6ExtHdrFragment].payload) for each in seen)
    together = IPv6(src=WAN6, dst=REMOTE6, nh=17) / Raw(data)
    together = IPv6(bytes(together))
    assert together[UDP].chksum == fresh(together)[UDP].chksum


def test_a_later_fragment_of_an_answer_that_is_not_known_is_the_stacks(masq: Rig) -> None:
    """It may be the node's own."""
    run = masq.answer(IP(src=REMOTE, dst=WAN, frag=3, id=5, proto=17) / Raw(bytes(30)))
    assert run.moved == {"from_net.pass_other": 1}


def test_a_first_fragment_without_tcps_checksum_does_not_leave(masq: Rig) -> None:
    """RFC 1858."""
    tcp = bytes(TCP(sport=1, dport=2, flags="S"))[:16]
    run = masq.out(IP(src=POD, dst=REMOTE, flags="MF", proto=6) / Raw(tcp))
    assert run.moved == {"from_pod.drop_malformed": 1}
