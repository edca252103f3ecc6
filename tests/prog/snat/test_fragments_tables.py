# SPDX-License-Identifier: Apache-2.0
"""Fragments where there are many addresses or too few ports, and across an upgrade."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
from tests.guests import examples
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import LOST, NO_VIP, TX
from tests.prog.lb.oracle_parse import FRAGMENT
from tests.prog.snat.harness import (
    NARROW,
    PORTS,
    SNAT,
    answer,
    client_frame,
    nat_rigged,
    services,
    snat_service,
)
from tests.prog.snat.harness_fragments import (
    assert_whole,
    entry_ends,
    framed,
    pieces,
    reversed_ends,
    talk,
    whole,
)
from tests.prog.snat.oracle import NO_HOP, NO_PORT

from towpath.model import Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from tests.prog.lb.network import Network
    from tests.prog.lb.oracle_parse import Flow

OLD = 5.0


def test_translated_to_several_addresses(net: Network) -> None:
    """All fragments of a packet come from one of them."""
    wide = replace(SNAT, ipv4=tuple(IPv4Address("192.0.2.208") + n for n in range(16)))
    with nat_rigged(net, wide) as nat:
        nat.serve(snat_service(4, NEAR[4][0], protocol=Protocol.UDP))
        seen = set()
        for number in range(1, 30):
            packet = whole(4, sport=1000 + number)
            first = talk(nat, packet, number)
            seen.add(entry_ends(first)[0].source)
        assert len(seen) > 5


@pytest.mark.thorough
def test_no_port_left(net: Network) -> None:
    """Nothing of the packet is sent, and no other flow's port is taken."""
    with nat_rigged(net, NARROW) as nat:
        nat.serve(snat_service(4, NEAR[4][0], protocol=Protocol.UDP))
        for sport in range(1000, 1000 + 8 * PORTS):
            sent = nat.check(client_frame(4, 17, sport=sport))
            if sent.verdict == TX:
                nat.expect(answer(sent), TX)
                nat.expect(client_frame(4, 17, sport=sport), TX)
        made = pieces(whole(4, sport=9))
        nat.expect(made[0], NO_PORT)
        nat.expect(made[1], LOST)


@pytest.mark.parametrize("version", [4, 6])
def test_another_process_goes_on(net: Network, pins: Path, version: int) -> None:
    """In the middle of a packet: its later fragments are its own still."""
    packet = whole(version)
    with nat_rigged(net, pins=pins) as nat:
        nat.serve(*services())
        sent = [nat.expect(pieces(packet)[0], TX)]
        there, back = entry_ends(sent[0])
        answered = whole(version, ends=reversed_ends(there))
        came = [nat.expect(pieces(answered)[0], TX)]
    with nat_rigged(net, pins=pins) as after:
        after.world.table = nat.world.table
        after.world.fragments = nat.world.fragments
        sent += [after.expect(each, TX) for each in pieces(packet)[1:]]
        assert_whole(after, sent, packet, there)
        came += [after.expect(each, TX) for each in pieces(answered)[1:]]
        assert_whole(after, came, answered, back)
        after.balancer.detach()


@pytest.mark.thorough
@pytest.mark.parametrize("version", [4, 6])
def test_any_sequence(net: Network, version: int) -> None:
    """Few identifications, few ports, both sides, any order: bytes and counters as foretold."""
    dice = random.Random(version)  # noqa: S311 - a test that repeats
    sizes = (0, 200, 592, 1500, 1501)
    with nat_rigged(net, NARROW) as nat:
        nat.serve(*(snat_service(version, *NEAR[version][:3], protocol=p) for p in Protocol))
        known: list[Flow] = []
        began = time.monotonic()
        for _ in range(examples(2000, 400)):
            protocol, flags = dice.choice([6, 17]), dice.choice(["S", "A", "A", "A", "FA", "R"])
            size, hops = dice.choice(sizes), dice.choice([1, 2, 64, 64, 64])
            ends = None
            if known and dice.random() < 0.5:
                ends = reversed_ends(dice.choice(known[-40:]))
                if dice.random() < 0.1:
                    ends = replace(ends, destination_port=dice.choice([53, 20000, 20007]))
            packet = whole(
                version,
                protocol,
                ends=ends,
                size=size,
                flags=flags,
                hops=hops,
                sport=dice.randrange(1, 60),
            )
            cuts = [framed(packet), *pieces(packet, dice.randrange(1, 5))]
            outcome = nat.check(dice.choice(cuts if dice.random() < 0.7 else cuts[1:2]))
            if ends is None and outcome.verdict == TX:
                known.append(entry_ends(outcome)[0])
            # Whether something is a second older or younger is for other tests to say.
            if time.monotonic() - began > OLD:
                nat.empty()
                began = time.monotonic()
        assert {TX, LOST, FRAGMENT, NO_HOP, NO_VIP} <= set(nat.seen), nat.seen
