# SPDX-License-Identifier: Apache-2.0
"""When packets of pods leave: verdicts, times, and bytes that nobody changes."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from tests.prog.bandwidth.harness import (
    HOST_MAC,
    MARK,
    POD_MAC,
    SECOND,
    SHOT,
    UNSPEC,
    Rig,
)
from tests.prog.bandwidth.oracle import Aggregate

from towpath.datapath.bandwidth.limits import Limit

MS = 1_000_000
# So slow that it doesn't matter how slow the machine is.
SLOW = Limit(egress=1_000_000, horizon=10 * SECOND)
BULK, SMALL = (
    IP(src="10.244.0.2", dst="203.0.113.9") / UDP(sport=port, dport=9) / Raw(bytes(size))
    for port, size in ((4000, 1458), (4001, 58))
)
BULK6 = IPv6(src="fd00::2", dst="2001:db8::9") / TCP(sport=4000, dport=9) / Raw(bytes(1426))
FULL, LITTLE = 1500, 100  # bytes of frames
CHARGE = 12_000_000  # ns that a full one takes at 1 Mbit/s


PLAIN = {
    (flow, size): Ether(src=POD_MAC, dst=HOST_MAC)
    / IP(src="10.244.0.2", dst="203.0.113.9")
    / UDP(sport=5000 + flow, dport=9)
    / Raw(bytes(size - 42))
    for flow in range(12)
    for size in (60, 590, 1500)
}

BY_DELAY = ("", "drop_excess", "drop_full")
SETS, TIME_MASK = 16, (1 << 52) - 1


def framed(packet: Packet) -> bytes:
    """As it is on the wire."""
    return bytes(Ether(src=POD_MAC, dst=HOST_MAC) / packet)


def bulk(bw: Rig, seconds_ahead: int) -> int:
    """Have BULK's flow be so far ahead, and the aggregate too; when all of it has left."""
    while bw.charged(1) - time.monotonic_ns() < seconds_ahead * SECOND:
        assert bw.send(BULK, wire=40 * FULL, segments=40).action == UNSPEC
    return bw.charged(1)


@pytest.mark.parametrize("packet", [BULK, BULK6], ids=["v4", "v6"])
def test_the_first_packet_leaves_now(bw: Rig, packet: Packet) -> None:
    """And is charged; nothing in it is otherwise."""
    bw.limit(1, SLOW)
    began = time.monotonic_ns()
    run = bw.send(packet)
    assert (run.action, run.data) == (UNSPEC, framed(packet))
    assert run.moved == {"1.sent": 1, "1.egress_bytes": FULL}
    assert began <= run.stamp <= time.monotonic_ns()
    # An idle aggregate makes up for 2 ms.
    assert bw.charged(1) == run.now - 2 * MS + CHARGE


def test_a_flow_waits_until_all_has_left(bw: Rig) -> None:
    """A single flow has the whole rate: its packets leave one after the other."""
    bw.limit(1, SLOW)
    bulk(bw, 8)
    frame = framed(BULK)
    for _ in range(5):
        due = bw.charged(1)
        run = bw.send(BULK)
        assert (run.action, run.data) == (UNSPEC, frame)
        assert run.moved == {"1.delayed": 1, "1.egress_bytes": FULL}
        assert run.stamp == due
        assert bw.charged(1) == due + CHARGE


def test_a_small_flow_leaves_now_whatever_waits(bw: Rig) -> None:
    """And the others wait for as long as it takes."""
    bw.limit(1, SLOW)
    due = bulk(bw, 8)
    began = time.monotonic_ns()
    run = bw.send(SMALL)
    assert run.moved == {"1.sent": 1, "1.egress_bytes": LITTLE}
    assert began <= run.stamp <= time.monotonic_ns()
    assert bw.charged(1) == due + CHARGE * LITTLE // FULL
    later = bw.send(BULK)
    assert later.stamp >= due


def test_a_packet_of_several_segments_is_charged_as_on_the_wire(bw: Rig) -> None:
    """With the headers that each of them gets."""
    bw.limit(1, SLOW)
    due = bw.set_next(1, 8 * SECOND)
    run = bw.send(BULK, wire=60_000, segments=40)
    assert run.moved == {"1.sent": 1, "1.egress_bytes": 60_000}
    assert bw.charged(1) == due + 40 * CHARGE


def test_packets_are_limited_too(bw: Rig) -> None:
    """Each costs the more of the two; one of several segments is as many packets."""
    bw.limit(1, Limit(egress=1_000_000, packets=10, horizon=10 * SECOND))
    due = bw.set_next(1, 8 * SECOND)
    bw.send(SMALL)
    assert bw.charged(1) == due + 100 * MS
    bw.send(SMALL, wire=3000, segments=2)
    assert bw.charged(1) == due + 300 * MS
    bw.send(SMALL, wire=60_000, segments=1)
    assert bw.charged(1) == due + 300 * MS + 40 * CHARGE


def test_what_is_beyond_the_horizon_is_dropped_and_not_charged(bw: Rig) -> None:
    """Of the flow that has it, and of no other, until all together have twice as much."""
    bw.limit(1, SLOW)
    run, before = bw.send(BULK), bw.state(1)
    while run.action == UNSPEC:
        before = bw.state(1)
        run = bw.send(BULK, wire=40 * FULL, segments=40)
    # The last one was taken just below it.
    assert before["next"] - time.monotonic_ns() < 10 * SECOND + 40 * CHARGE
    assert (run.action, run.moved) == (SHOT, {"1.drop_excess": 1})
    after = bw.state(1)
    assert (after["next"], after["flow"].tolist()) == (before["next"], before["flow"].tolist())
    assert bw.send(SMALL).moved == {"1.sent": 1, "1.egress_bytes": LITTLE}
    due = bw.set_next(1, 30 * SECOND)
    run = bw.send(IP(dst="203.0.113.9") / UDP(sport=4002))
    assert (run.action, run.moved) == (SHOT, {"1.drop_full": 1})
    assert bw.charged(1) == due


@pytest.mark.parametrize(("tos", "marked"), [(0, False), (1, True), (2, True)])
def test_who_can_is_told_of_congestion(bw: Rig, tos: int, *, marked: bool) -> None:
    """By ECN, above a quarter of the horizon; others aren't changed."""
    bw.limit(1, SLOW)
    packet = BULK.copy()
    packet.tos = tos
    for _ in range(3):
        assert "1.marked" not in bw.send(packet).moved
    bulk(bw, 4)
    run = bw.send(packet)
    assert run.moved == {"1.marked" if marked else "1.delayed": 1, "1.egress_bytes": FULL}
    if marked:
        packet.tos = 3
    assert run.data == framed(packet)


def test_what_is_no_ip_is_charged_and_not_delayed(bw: Rig) -> None:
    """The kernel takes no time for it."""
    bw.limit(1, SLOW)
    due = bw.set_next(1, 8 * SECOND)
    packet = Ether(src=POD_MAC, dst=HOST_MAC) / ARP(pdst="10.0.0.1")
    run = bw.send(packet, wire=0)
    assert (run.action, run.data) == (UNSPEC, bytes(packet))
    assert run.moved == {"1.unpaced": 1, "1.egress_bytes": len(packet)}
    assert bw.charged(1) == due + len(packet) * 8000
    bw.set_next(1, 30 * SECOND)
    assert bw.send(packet).moved == {"1.drop_full": 1}


def test_a_group_is_charged_as_well(bw: Rig) -> None:
    """The packet leaves when both allow it."""
    bw.limit(2, Limit(egress=500_000, horizon=10 * SECOND))
    bw.limit(1, SLOW, group=2)
    own, common = bw.set_next(1, 3 * SECOND), bw.set_next(2, 4 * SECOND)
    first = bw.send(BULK, wire=40 * FULL)
    assert (bw.charged(1), bw.charged(2)) == (own + 40 * CHARGE, common + 80 * CHARGE)
    run = bw.send(BULK)
    # As far as its flow is concerned, that is when the first has left at the group's rate.
    assert 0 <= run.stamp - (first.now + 80 * CHARGE) < 64
    assert run.moved == {"1.delayed": 1, "1.egress_bytes": FULL}


def test_what_the_group_refuses_nobody_is_charged_for(bw: Rig) -> None:
    """Drops are found out before."""
    bw.limit(2, Limit(egress=500_000, horizon=10 * SECOND))
    bw.limit(1, SLOW, group=2)
    own, common = bw.set_next(1, 8 * SECOND), bw.set_next(2, 30 * SECOND)
    run = bw.send(BULK)
    assert (run.action, run.moved) == (SHOT, {"1.drop_group": 1})
    assert (bw.charged(1), bw.charged(2)) == (own, common)


def test_a_pod_with_no_limit_but_its_groups(bw: Rig) -> None:
    """It is the group's rate that is shared."""
    bw.limit(2, SLOW)
    bw.limit(1, Limit(), group=2)
    due = bw.set_next(2, 8 * SECOND)
    bw.send(BULK)
    assert (bw.charged(1), bw.charged(2)) == (0, due + CHARGE)


def test_no_limit_is_no_charge(bw: Rig) -> None:
    """Whoever sends it."""
    bw.limit(1, Limit(ingress=10_000_000))
    for mark, name in ((0, "0.unlimited"), (MARK | 1, "1.unlimited")):
        run = bw.run("pace", BULK, mark=mark)
        assert (run.action, run.data, run.mark, run.stamp) == (UNSPEC, framed(BULK), mark, 0)
        assert run.moved == {name: 1}
    assert bw.charged(0) == bw.charged(1) == 0


def test_a_number_that_no_aggregate_has(bw: Rig) -> None:
    """A row is missing: the packet passes."""
    run = bw.run("pace", BULK, mark=MARK | 0x3FFF)
    assert (run.action, run.data, run.moved) == (UNSPEC, framed(BULK), {})


def test_a_mark_is_of_one_device_only(bw: Rig) -> None:
    """A bond's packets pass its members: they are charged once. The priority is the limit's."""
    bw.limit(1, Limit(egress=1_000_000, priority=5))
    bw.pod(7, 1)
    run = bw.send(BULK, came_by=7, priority=3)
    assert run.priority == 5
    again = bw.run("pace", BULK, mark=run.mark, came_by=7)
    assert again.moved == {"0.unlimited": 1}


def test_a_mark_that_was_written_over(bw: Rig) -> None:
    """The device that the packet came in by tells whose it is, or its address behind that."""
    bw.limit(1, SLOW)
    bw.limit(2, SLOW)
    bw.pod(7, 1)
    bw.pod(8, 0, by_address=True)
    bw.address("10.244.0.2", 2)
    bw.address("fd00::2", 2)
    assert bw.run("pace", BULK, mark=0x4000, came_by=7).moved.keys() == {"1.sent", "1.egress_bytes"}
    for packet in (BULK, BULK6):
        assert "2.egress_bytes" in bw.run("pace", packet, came_by=8).moved
    other = IP(src="10.244.0.9", dst="203.0.113.9") / UDP()
    assert bw.run("pace", other, came_by=8).moved == {"0.unlimited": 1}
    assert bw.run("pace", BULK, came_by=9).moved == {"0.unlimited": 1}


@pytest.mark.thorough
def test_rates_are_shared_as_the_model_says(bw: Rig) -> None:
    """Flows of all kinds, thousands of packets: each leaves when the model has it leave.

    The model is told when the program has seen a packet. A flow's time is kept in steps of 64 ns.
    """
    chance = random.Random(19)  # noqa: S311 -- the same packets each time
    rate = sustained(bw) // 3  # a third of what is offered: some wait and some are dropped
    bw.limit(2, Limit(egress=rate))
    # Three of the longest packets have room, if they take less than 4 s.
    horizon = max(Fraction(1, 10), min(Fraction(3 * 8 * 65536, rate), Fraction(4)))
    model = Aggregate(rate, horizon, Fraction(2, 1000))
    flows = [chance.choice((1, 1, 2, 8)) for _ in range(12)]
    offered = dict.fromkeys(range(12), 0)
    verdicts: dict[str, int] = {}
    for _ in range(3000):
        (flow,) = chance.choices(range(12), flows)
        size = chance.choice((60, 590, 1500))
        before = time.monotonic_ns()
        run = bw.send(PLAIN[flow, size], 2)
        after = time.monotonic_ns()
        (verdict,) = (name.removeprefix("2.") for name in run.moved if "bytes" not in name)
        verdicts[verdict] = verdicts.get(verdict, 0) + 1
        if run.action == UNSPEC:
            told, leaves = model.offer(Fraction(run.now, SECOND), flow, size)
            assert told == verdict
            assert leaves is not None
            offered[flow] += 1
            assert abs(run.stamp - leaves * SECOND) <= 64 * (offered[flow] + 1)
        else:
            most, least = (model.refuses(Fraction(at, SECOND), flow) for at in (before, after))
            assert BY_DELAY.index(least) <= BY_DELAY.index(verdict) <= BY_DELAY.index(most)
        model.counted = counted(bw, model, before, after)
    assert verdicts.keys() >= {"sent", "delayed", "drop_excess"}


def sustained(bw: Rig) -> int:
    """Bits a second that one process offers."""
    began = time.monotonic_ns()
    for _ in range(100):
        bw.send(PLAIN[0, 590])
    return 100 * 8 * 700 * SECOND // (time.monotonic_ns() - began)


def counted(bw: Rig, model: Aggregate, before: int, after: int) -> tuple[int, int]:
    """When flows were counted, and how many were ahead: as the model has it, but for an instant.

    Every set in which one is ahead is noted.
    """
    state = bw.state(2)
    active = int(state["active"])
    tick, ahead = active >> 32, active & 0xFFFF
    for number, words in enumerate(state["flow"].reshape(SETS, -1).tolist()):
        if any((word & TIME_MASK) << 6 > after for word in words):
            assert active >> 16 & 1 << number
    if tick != model.counted[0]:
        # At that time one may have been just at the present; or the program has seen a drop since.
        slack = Fraction(10_000, SECOND)
        least = sum(each > Fraction(after, SECOND) + slack for each in model.flows.values())
        most = sum(each > Fraction(before, SECOND) - slack for each in model.flows.values())
        assert least <= ahead <= most
    return tick, ahead
