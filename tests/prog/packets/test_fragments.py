# SPDX-License-Identifier: Apache-2.0
"""Fragments: the first one has the ports, and the others go its way."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.packet import Raw
from tests.prog.masquerade.oracle import fresh
from tests.prog.masquerade.test_fragments import joined4
from tests.prog.packets.harness import (
    BACKENDS,
    BACKENDS6,
    NODE_MAC,
    POD,
    POD6,
    POD_MAC,
    SHOT,
    VIP,
    VIP6,
    Rig,
    service,
)
from tests.prog.packets.oracle import between, framed

BODY = Raw(bytes(range(256)) * 12)
BALANCED = {"from_pod.balanced": 1}


def test_fragments_of_ipv4_are_one_packet_again(rig: Rig) -> None:
    """To the backend with their identification; answers with one of the backend's own."""
    rig.apply(service(VIP, BACKENDS[:1], protocol="udp"))
    whole = fresh(IP(src=POD, dst=VIP, id=4711) / UDP(sport=1, dport=8080) / BODY)
    runs = [rig.out(part) for part in fragment(whole, 1000)]
    assert [run.moved for run in runs] == [
        BALANCED | {"from_pod.begun": 1},
        *[BALANCED] * (len(runs) - 1),
    ]
    seen = [run.packet for run in runs]
    assert {each.id for each in seen} == {4711}
    assert all(fresh(each).chksum == each.chksum for each in seen)
    wanted = between(whole, None, (BACKENDS[0], 8080))
    assert bytes(joined4(seen).payload) == bytes(wanted.payload)

    back = fresh(IP(src=BACKENDS[0], dst=POD, id=99) / UDP(sport=8080, dport=1) / BODY)
    got = [rig.to_pod(part) for part in fragment(back, 1000)]
    assert {tuple(run.moved.items()) for run in got} == {(("to_pod.restored", 1),)}
    parts = [run.packet for run in got]
    assert len({each.id for each in parts}) == 1
    assert all(fresh(each).chksum == each.chksum for each in parts)
    together = joined4(parts)
    assert together.src == VIP
    wanted = between(back, (VIP, 8080), None)
    assert bytes(together.payload) == bytes(wanted.payload)
    return_id = parts[0].id
    about = IP(bytes(IP(src=POD, dst=VIP) / ICMP(type=11, code=1) / Raw(bytes(parts[0])[:64])))
    error = rig.out(about).packet
    assert return_id != 99
    assert IP(bytes(error[ICMP].payload)).id == 99


def test_fragments_of_ipv6_are_one_packet_again(rig: Rig) -> None:
    """The same."""
    rig.apply(service(VIP6, BACKENDS6[:1], protocol="udp"))
    ip6 = IPv6(src=POD6, dst=VIP6)
    whole = IPv6(bytes(ip6 / IPv6ExtHdrFragment(id=4711) / UDP(sport=1, dport=8080) / BODY))
    seen = [rig.out(part).packet for part in fragment6(whole, 1280)]
    assert {each.dst for each in seen} == {BACKENDS6[0]}
    assert {each[IPv6ExtHdrFragment].id for each in seen} == {4711}
    together = joined6(seen)
    assert together[UDP].chksum == fresh(together)[UDP].chksum

    back = IPv6(src=BACKENDS6[0], dst=POD6) / IPv6ExtHdrFragment(id=99)
    parts = fragment6(IPv6(bytes(back / UDP(sport=8080, dport=1) / BODY)), 1280)
    got = [rig.to_pod(part).packet for part in parts]
    assert {each.src for each in got} == {VIP6}
    assert len({each[IPv6ExtHdrFragment].id for each in got}) == 1
    together = joined6(got)
    assert together[UDP].chksum == fresh(together)[UDP].chksum


def joined6(parts: list[IPv6]) -> IPv6:
    """Put fragments together, which are in order."""
    data = b"".join(bytes(each[IPv6ExtHdrFragment].payload) for each in parts)
    return IPv6(bytes(IPv6(src=parts[0].src, dst=parts[0].dst, nh=17) / Raw(data)))


def test_a_later_fragment_that_comes_first(rig: Rig) -> None:
    """To a VIP it is lost; to anybody else it may be anybody's."""
    rig.apply(service(VIP, BACKENDS[:1], protocol="udp"), service(VIP6, BACKENDS6[:1]))
    part = IP(src=POD, dst=VIP, frag=3, id=5, proto=17) / Raw(bytes(30))
    run = rig.out(part)
    assert (run.moved, run.action) == ({"from_pod.drop_fragment": 1}, SHOT)
    part6 = IPv6(src=POD6, dst=VIP6) / IPv6ExtHdrFragment(offset=3, id=5, nh=17) / Raw(bytes(30))
    assert rig.out(part6).moved == {"from_pod.drop_fragment": 1}
    other = IP(src=POD, dst="203.0.113.9", frag=3, id=5, proto=17) / Raw(bytes(30))
    run = rig.out(other)
    assert run.moved == {"from_pod.pass_fragment": 1}
    assert run.data == framed(other, POD_MAC, NODE_MAC)
    back = IP(src=BACKENDS[0], dst=POD, frag=3, id=5, proto=17) / Raw(bytes(30))
    assert rig.to_pod(back).moved == {"to_pod.pass_fragment": 1}


APART = {
    "another port": (UDP(sport=1, dport=8081), "no_service"),
    "a ping": (ICMP(type=8, id=7), "other"),
}


@pytest.mark.parametrize("name", APART)
def test_fragments_to_no_service_of_a_vip_stay_together(rig: Rig, name: str) -> None:
    """They are left alone, all of them."""
    rig.apply(service(VIP, BACKENDS[:1], protocol="udp"))
    layer, verdict = APART[name]
    whole = fresh(IP(src=POD, dst=VIP, id=4711) / layer / BODY)
    for part in fragment(whole, 1000):
        run = rig.out(part)
        assert run.moved == {f"from_pod.pass_{verdict}": 1}
        assert run.data == framed(part, POD_MAC, NODE_MAC)
