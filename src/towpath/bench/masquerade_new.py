# SPDX-License-Identifier: Apache-2.0
"""New flows a second through a node that masquerades them: every packet is of a flow of its own."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from towpath.bench.errors import BenchError
from towpath.bench.forward import check_arrivals, choose_cpus, pace_of
from towpath.bench.forward_network import forward_network
from towpath.bench.forward_node import node
from towpath.bench.forward_ways import MASQUERADE_WAYS, NFT_MASQUERADE
from towpath.bench.forward_world import world

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.bench.forward import Pace
    from towpath.bench.forward_node import Seen
    from towpath.bench.forward_ways import Way
    from towpath.bench.forward_world import Sample

REMOTES = 64
PACKETS = 60_000
"""Of a run. Conntrack keeps what comes through for 30 s, and has room for 262,144 on most hosts."""
ROUNDS = 40
"""So many runs have ports enough, each flow having one of its own towards its remote."""
_SHARE = 0.99  # of packets that arrive, how many must have been of new flows


def measure_new(runs: int, progress: Callable[[str], None] = lambda _: None) -> tuple[Pace, ...]:
    """Send packets by nftables and Towpath in turn, each the first of a flow.

    More are offered than can go on; what finds a queue full begins no flow. BenchError: flows
    weren't new, or a packet arrived as it shouldn't.
    """
    ways = tuple(way for way in MASQUERADE_WAYS if way.translated)
    samples: dict[Way, list[Sample]] = {way: [] for way in ways}
    cpus = choose_cpus(apart=False)
    with ExitStack() as undo:
        sites = {}
        for way in ways:
            network = undo.enter_context(forward_network(REMOTES))
            around = undo.enter_context(world(network, cpus, apart=False))
            sites[way] = around, undo.enter_context(node(way.by, network, 1 << 17, {}))
        for turn in range(min(runs, ROUNDS)):
            for way, (around, ask) in sites.items():
                progress(f"new flows, run {turn + 1} of {runs}, {way.name}")
                before = ask()
                sample = around.send(way, PACKETS, PACKETS, cpus, first=turn * PACKETS)
                check_arrivals(way, sample)
                _check_new(way, sample, before, ask())
                samples[way].append(sample)
    base = next(taken for way, taken in samples.items() if way.name == NFT_MASQUERADE)
    return tuple(pace_of(way, taken, base) for way, taken in samples.items())


def _check_new(way: Way, sample: Sample, before: Seen, after: Seen) -> None:
    fresh = after.flows - before.flows
    if fresh < _SHARE * sample.total:
        raise BenchError(f"{way.name}: {fresh} of {sample.total} packets were of new flows")
    if after.elsewhere != before.elsewhere:
        raise BenchError(f"{way.name}: {after.elsewhere - before.elsewhere} flows found no place")
