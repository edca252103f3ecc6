# SPDX-License-Identifier: Apache-2.0
"""Figures of whole nodes, made of counts; and counts that can't be."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from towpath.bench import BenchError, forward_rules
from towpath.bench.forward import Spread, _check_node, _check_shares, pace_of
from towpath.bench.forward_node import Seen
from towpath.bench.forward_ways import WAYS
from towpath.bench.forward_world import Sample

BY_NAME = {way.name: way for way in WAYS}
SNAT, NFTABLES = BY_NAME["towpath-snat"], BY_NAME["nftables"]
BACKENDS = tuple(IPv4Address("198.19.1.0") + n for n in range(2))
SAMPLE = Sample(
    seconds=0.5, sent=2000, arrived=(500, 500), wrong=0, answered=0, unknown=0, cpu=0.25
)


def test_figures_are_of_what_arrived() -> None:
    """Packets a second and CPU of each; a ratio is of two runs of the same turn."""
    samples = [SAMPLE, replace(SAMPLE, arrived=(1000, 1000)), replace(SAMPLE, arrived=(50, 50))]
    base = [replace(SAMPLE, arrived=(250, 250)), replace(SAMPLE, arrived=(200, 200))]
    base.append(replace(SAMPLE, arrived=(10, 15)))
    pace = pace_of(SNAT, samples, base)
    assert pace.packets_per_second == Spread(2000, 200, 4000)
    assert pace.offered_per_second == 4000
    assert pace.cpu_ns == Spread(250_000, 125_000, 2_500_000)
    assert (pace.busy, pace.ratio, pace.runs) == (0.5, Spread(4, 2, 5), 3)


def test_what_cannot_be_seen_is_left_out() -> None:
    """Neither CPU time nor a baseline has to be there."""
    pace = pace_of(SNAT, [replace(SAMPLE, cpu=None)], None)
    assert (pace.cpu_ns, pace.busy, pace.ratio) == (None, None, None)


@pytest.mark.parametrize(
    ("way", "after", "said"),
    [
        ("towpath-snat", Seen(stack=1, redirected=1000), "the kernel's stack forwarded 1 of 1000"),
        ("towpath-snat", Seen(stack=0, redirected=999), "Towpath redirected 999 of 1000"),
        ("towpath-snat", Seen(stack=0, redirected=1000, flows=2), "2 of 1000 packets were of new"),
        ("towpath-snat", Seen(stack=0, redirected=1000, elsewhere=2), "2 of 1000 packets"),
        ("nftables", Seen(stack=999), "the kernel's stack forwarded 999 of 1000"),
        ("nftables", Seen(stack=1000, flows=2), "2 of 1000 packets were of new flows"),
        ("redirect", Seen(stack=1000), "the kernel's stack forwarded 1000 of 1000"),
    ],
)
def test_another_way_is_told(way: str, after: Seen, said: str) -> None:
    """The node's own counters must say what the way's name does."""
    with pytest.raises(BenchError, match=f"{way}: {said}"):
        _check_node(BY_NAME[way], SAMPLE, Seen(0), after)


def test_the_right_way_is_content() -> None:
    """A packet of a thousand may have been of a flow that was forgotten."""
    _check_node(SNAT, SAMPLE, Seen(0), Seen(0, redirected=1000, flows=1))
    _check_node(NFTABLES, SAMPLE, Seen(0), Seen(1000, flows=1))


def test_uneven_shares_are_told_of_many_flows_only() -> None:
    """Few flows may well be for one backend, and a way without balancing always is."""
    uneven = replace(SAMPLE, arrived=(999, 1))
    _check_shares(SNAT, SAMPLE, 1000)
    _check_shares(SNAT, uneven, 3)
    _check_shares(BY_NAME["route"], uneven, 1000)
    with pytest.raises(BenchError, match="of backends one had 1 packets and another 999"):
        _check_shares(SNAT, uneven, 1000)


def test_rules_name_every_backend() -> None:
    """In both rule sets, with the VIP and the port."""
    long = forward_rules.kube_proxy(IPv4Address("203.0.113.10"), 53, BACKENDS)
    assert "203.0.113.10 . udp . 53 : goto service" in long
    assert "numgen random mod 2 vmap { 0 : goto endpoint-0, 1 : goto endpoint-1 }" in long
    assert all(f"dnat to {each}:53" in long for each in BACKENDS)
    short = forward_rules.short(IPv4Address("203.0.113.10"), 53, BACKENDS)
    assert "dnat to numgen random mod 2 map { 0 : 198.19.1.0, 1 : 198.19.1.1 }" in short
