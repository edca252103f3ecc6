# SPDX-License-Identifier: Apache-2.0
"""Generated rules are like those of real filters, and packets are in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from towpath.bench.flavours import FLAVOURS
from towpath.bench.rulesets import (
    columns,
    generate,
    masks,
    matching_packets,
    packet_text,
    random_packets,
    text,
)

# Of sets by ClassBench itself, the mean of several seeds: masks of prefixes, and with the rest.
REAL = {
    ("acl", 1_000): (81, 140),
    ("acl", 10_000): (152, 303),
    ("fw", 1_000): (76, 146),
    ("fw", 10_000): (122, 272),
    ("ipc", 1_000): (205, 342),
    ("ipc", 10_000): (302, 720),
}


@pytest.mark.parametrize(("flavour", "count"), REAL)
def test_masks_are_as_many_as_in_real_sets(flavour: str, count: int) -> None:
    """Within a third, on average of three seeds."""
    found = np.mean([masks(generate(FLAVOURS[flavour], count, seed=s)) for s in range(3)], axis=0)
    ratio = found / REAL[flavour, count]
    assert (ratio > 2 / 3).all(), ratio
    assert (ratio < 4 / 3).all(), ratio


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_rules_are_different_and_whole(flavour: str, version: int) -> None:
    """As many as asked for, no two alike, prefixes without bits behind them, ranges not empty."""
    rules = generate(FLAVOURS[flavour], 2000, seed=1, version=version)
    assert len(np.unique(rules)) == len(rules) == 2000
    width = 32 if version == 4 else 128
    for source, destination, source_length, destination_length, *ports, _ in columns(rules):
        for halves, length in ((source, source_length), (destination, destination_length)):
            address = halves[0] << 64 | halves[1]
            assert 0 <= length <= width
            assert address < 1 << width
            assert address & ((1 << width - length) - 1) == 0
        assert all(0 <= first <= last < 65536 for first, last in ports)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("locality", [False, True])
def test_packets_match_a_rule(version: int, *, locality: bool) -> None:
    """Each is in the rule that it was made for; with locality many come again at once."""
    rules = generate(FLAVOURS["ipc"], 300, seed=2, version=version)
    packets = matching_packets(rules, 500, seed=3, locality=locality)
    width = 32 if version == 4 else 128
    known = list(columns(rules))
    for packet in columns(packets):
        assert any(_is_in(packet, rule, width) for rule in known)
    again = (packets[1:] == packets[:-1]).mean()
    assert (again > 0.5) == locality


def _is_in(packet: tuple[Any, ...], rule: tuple[Any, ...], width: int) -> bool:
    *addresses, sport, dport, protocol = packet
    *networks, source_length, destination_length, sports, dports, wanted = rule
    return (
        all(
            (address[0] << 64 | address[1]) >> width - length
            == (network[0] << 64 | network[1]) >> width - length
            for address, network, length in zip(
                addresses, networks, (source_length, destination_length), strict=True
            )
        )
        and sports[0] <= sport <= sports[1]
        and dports[0] <= dport <= dports[1]
        and wanted in (-1, protocol)
    )


def test_the_same_seed_makes_the_same() -> None:
    """Rules and packets depend on the seed alone."""
    one, same, other = (generate(FLAVOURS["fw"], 100, seed=seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
    assert (random_packets(9, seed=1) == random_packets(9, seed=1)).all()
    with pytest.raises(ValueError, match="version: 5; allowed: 4 or 6"):
        generate(FLAVOURS["fw"], 100, seed=1, version=5)


def test_others_can_read_them() -> None:
    """Rules and packets in ClassBench's formats."""
    rules = generate(FLAVOURS["acl"], 50, seed=1)
    for line in text(rules):
        source, destination, *rest = line.split("\t")
        assert source.startswith("@")
        assert "/" in destination
        assert [each.count(":") for each in rest[:2]] == [1, 1]
        assert rest[2].startswith("0x")
    lines = list(packet_text(matching_packets(rules, 5, seed=1)))
    assert [len(line.split("\t")) for line in lines] == [6] * 5
