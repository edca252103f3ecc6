# SPDX-License-Identifier: Apache-2.0
"""At the pods' devices: whose a packet is, and what they receive."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from tests.prog.bandwidth.harness import (
    HOST_MAC,
    LOOPBACK,
    MARK,
    POD_MAC,
    SHOT,
    UNSPEC,
    Rig,
)

from towpath.datapath.bandwidth.limits import Limit

TO_POD = IP(src="203.0.113.9", dst="10.244.0.2") / UDP(sport=9, dport=4000) / Raw(bytes(1458))
FROM_POD = IP(src="10.244.0.2", dst="203.0.113.9") / UDP(sport=4000, dport=9)
FROM_POD6 = IPv6(src="fd00::2", dst="2001:db8::9") / UDP(sport=4000, dport=9)
FULL, FRAME = 1500, 1_200_000  # bytes, and ns at 10 Mbit/s
MS = 1_000_000


def framed(packet: IP) -> bytes:
    """As it is on the wire."""
    return bytes(Ether(src=POD_MAC, dst=HOST_MAC) / packet)


def test_a_pods_packet_is_told_apart(bw: Rig) -> None:
    """By the device; whatever the pod has written itself is overwritten."""
    bw.limit(3, Limit(egress=10_000_000, priority=2))
    bw.pod(LOOPBACK, 3)
    run = bw.run("tag", FROM_POD, mark=MARK | 4, priority=7)
    assert (run.action, run.data) == (UNSPEC, framed(FROM_POD))
    assert (run.mark, run.priority, run.moved) == (MARK | 3, 2, {"3.tagged": 1})


def test_a_pod_without_a_limit_cant_take_anothers(bw: Rig) -> None:
    """Its mark is none, its priority is the lowest."""
    bw.limit(3, Limit(egress=10_000_000))
    run = bw.run("tag", FROM_POD, mark=MARK | 3, priority=7)
    assert (run.mark, run.priority, run.moved) == (0, 0, {"0.tagged": 1})


def test_devices_whose_indexes_share_a_slot(bw: Rig) -> None:
    """Each is its own pod's, whichever is in the slot."""
    crowd = LOOPBACK + bw.program.constant("bandwidth_limits", "BANDWIDTH_POD_SLOTS")
    slots = bw.program.maps["bw_pod_slots"]
    bw.pod(crowd, 2)
    bw.pod(LOOPBACK, 3)
    assert int(slots.lookup(LOOPBACK)["ifindex"]) == crowd
    assert bw.run("tag", FROM_POD).mark == MARK | 3
    bw.no_pod(crowd)
    assert int(slots.lookup(LOOPBACK)["ifindex"]) == LOOPBACK
    assert bw.run("tag", FROM_POD).mark == MARK | 3
    bw.pod(LOOPBACK, 4)
    assert bw.run("tag", FROM_POD).mark == MARK | 4
    bw.no_pod(LOOPBACK)
    assert not any(slots.lookup(LOOPBACK).tobytes())
    assert bw.run("tag", FROM_POD).mark == 0


@pytest.mark.parametrize("packet", [FROM_POD, FROM_POD6], ids=["v4", "v6"])
def test_pods_behind_one_device_are_told_by_their_addresses(bw: Rig, packet: IP) -> None:
    """The device's own aggregate is for the rest."""
    bw.pod(LOOPBACK, 2, by_address=True)
    bw.address("10.244.0.2", 3)
    bw.address("fd00::2", 3)
    assert bw.run("tag", packet).mark == MARK | 3
    other = packet.copy()
    other.src = "10.244.0.3" if IP in packet else "fd00::3"
    run = bw.run("tag", other)
    assert (run.mark, run.moved) == (MARK | 2, {"2.tagged": 1})


def fill(bw: Rig, packet: IP, wire: int) -> int:
    """Receive so many bytes at a time until one is dropped; how many weren't."""
    number = 0
    while True:
        run = bw.run("receive", packet, wire=wire)
        if run.action == SHOT:
            assert run.moved == {"1.drop_received": 1}
            return number
        assert (run.action, run.data) == (UNSPEC, framed(packet))
        assert run.moved == {"1.received": 1, "1.ingress_bytes": wire}
        number += 1


def test_a_pod_receives_what_its_bucket_holds(bw: Rig) -> None:
    """Then what is more is dropped, and costs no tokens."""
    # What comes in 50 ms is less than two of the longest packets, so it is these.
    bw.limit(1, Limit(ingress=1_000_000))
    bw.pod(LOOPBACK, 1)
    taken = fill(bw, TO_POD, 65_536)
    # Two fill it; the machine may be slow.
    assert taken >= 2


def test_tokens_are_exact(bw: Rig) -> None:
    """Each packet takes its length's time, dropped ones none."""
    bw.limit(1, Limit(ingress=100_000, burst=130_000))
    bw.pod(LOOPBACK, 1)
    assert bw.run("receive", TO_POD, wire=60_000).moved["1.received"] == 1
    first = int(bw.program.maps["bw_buckets"].lookup(1)["next"])
    assert bw.run("receive", TO_POD, wire=65_000, segments=43).moved["1.received"] == 1
    second = int(bw.program.maps["bw_buckets"].lookup(1)["next"])
    assert second - first == 65_000 * 80_000
    assert bw.run("receive", TO_POD, wire=60_000).action == UNSPEC
    for _ in range(3):
        assert bw.run("receive", TO_POD).moved == {"1.drop_received": 1}
    assert int(bw.program.maps["bw_buckets"].lookup(1)["next"]) == second + 60_000 * 80_000


def test_a_low_bucket_is_told_of_by_ecn(bw: Rig) -> None:
    """From half on."""
    packet = TO_POD.copy()
    packet.tos = 2
    bw.limit(1, Limit(ingress=10_000, burst=15_000))  # 12 seconds
    bw.pod(LOOPBACK, 1)
    assert bw.run("receive", packet, wire=14_000).data == framed(packet)
    run = bw.run("receive", packet)
    packet.tos = 3
    assert (run.data, run.moved) == (
        framed(packet),
        {"1.received_marked": 1, "1.ingress_bytes": FULL},
    )


def test_a_group_receives_too(bw: Rig) -> None:
    """Both have to have tokens, and both are charged."""
    bw.limit(2, Limit(ingress=100_000, burst=15_000))
    bw.limit(1, Limit(ingress=1_000_000_000), group=2)
    bw.pod(LOOPBACK, 1)
    assert fill(bw, TO_POD, 15_000) in {1, 2}
    buckets = bw.program.maps["bw_buckets"]
    before = [int(buckets.lookup(number)["next"]) for number in (1, 2)]
    assert bw.run("receive", TO_POD).moved == {"1.drop_received": 1}
    assert [int(buckets.lookup(number)["next"]) for number in (1, 2)] == before


def test_what_isnt_a_pods_passes(bw: Rig) -> None:
    """Uncounted: it is none of ours."""
    assert bw.run("receive", TO_POD).moved == {}
    bw.pod(LOOPBACK, 0, by_address=True)
    assert bw.run("receive", TO_POD).moved == {}
    bw.address("10.244.0.2", 1)
    bw.limit(1, Limit(ingress=10_000_000))
    assert bw.run("receive", TO_POD).moved == {"1.received": 1, "1.ingress_bytes": FULL}


def test_without_fq_what_leaves_is_policed(bw: Rig) -> None:
    """By the same clock, which then is a bucket."""
    bw.limit(2, Limit(egress=100_000, burst=130_000))
    bw.limit(1, Limit(egress=100_000, burst=130_000), group=2)
    run = bw.run("police", TO_POD, mark=MARK | 1, wire=60_000, stamp=1234)
    assert (run.action, run.data, run.stamp) == (UNSPEC, framed(TO_POD), 1234)
    assert run.moved == {"1.sent": 1, "1.egress_bytes": 60_000}
    first = bw.charged(1), bw.charged(2)
    assert first[0] == first[1]
    bw.run("police", TO_POD, mark=MARK | 1, wire=60_000)
    assert (bw.charged(1), bw.charged(2)) == tuple(each + 60_000 * 80_000 for each in first)
    bw.run("police", TO_POD, mark=MARK | 1, wire=60_000)
    run = bw.run("police", TO_POD, mark=MARK | 1)
    assert (run.action, run.moved) == (SHOT, {"1.drop_policed": 1})
    bw.limit(1, Limit(), group=2)
    assert bw.run("police", TO_POD, mark=MARK | 1).moved == {"1.drop_group": 1}
    assert bw.run("police", TO_POD).moved == {"0.unlimited": 1}
