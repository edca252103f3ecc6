# SPDX-License-Identifier: Apache-2.0
"""Which port a flow gets, for how long, and what becomes of the rest when there are no more."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from random import Random
from statistics import median
from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import NO_VIP, TX, XDP_DROP, XDP_TX
from tests.prog.lb.test_flood import one_cpu
from tests.prog.snat.harness import (
    BOTH,
    NARROW,
    PORTS,
    SOURCES,
    NatRig,
    answer,
    client_frame,
    established,
    port_of,
    snat_service,
)
from tests.prog.snat.oracle import NO_PORT, NatOutcome, flow_hash64

from towpath.kernel.jiffies import per_second
from towpath.model import Backend

if TYPE_CHECKING:
    from tests.prog.lb.oracle import Outcome


@pytest.fixture
def nat(narrowed: NatRig) -> NatRig:
    """As narrow as can be: flows meet."""
    return narrowed


# ---- Room ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_every_port_is_used_once(nat: NatRig, version: int, protocol: int) -> None:
    """Towards one backend; then new flows are refused, and those that are there go on."""
    flows = [established(nat, version, protocol, 1000 + n) for n in range(PORTS)]
    assert sorted(map(port_of, flows)) == list(range(20000, 20000 + PORTS))
    for _ in range(3):
        refused = nat.expect(client_frame(version, protocol, sport=5), NO_PORT)
        assert refused.fresh
    for number, flow in enumerate(flows):
        again = nat.expect(client_frame(version, protocol, sport=1000 + number, flags="A"), TX)
        assert port_of(again) == port_of(flow)
        nat.expect(answer(flow, flags="A"), TX)


def test_one_port_for_each_backend_and_protocol(nat: NatRig) -> None:
    """What a backend answers to tells its flows from others': they may have the same port."""
    for protocol in (6, 17):
        for number in range(PORTS):
            established(nat, 4, protocol, 1000 + number)
    nat.serve(snat_service(4, NEAR[4][0]), snat_service(4, NEAR[4][1], port=81))
    for number in range(PORTS):
        sent = nat.expect(client_frame(dport=81, sport=1000 + number), TX)
        nat.expect(answer(sent), TX)


def test_ports_and_addresses_are_spread_over_the_sets(narrow: NatRig) -> None:
    """Neighbouring ports and addresses too: else some would be full far too early.

    By the same seeds in each run: with some the fullest set has twice what it has with others.
    """
    chance = Random(1)  # noqa: S311 -- the same in each run
    tables = [
        replace(narrow.world.table, sets=1024, seed=chance.getrandbits(64)) for _ in range(20)
    ]
    for sources, ports in ((1, 2048), (16, 128)):
        found = [
            Counter(
                table.set_of(SOURCES[4] + n, 10000 + port, 6)
                for n in range(sources)
                for port in range(ports)
            )
            for table in tables
        ]
        # Two to a set on average.
        assert median(max(each.values()) for each in found) <= 8
        assert max(max(each.values()) for each in found) <= 16
        assert median(map(len, found)) > 768


@pytest.mark.parametrize("version", [4, 6])
def test_who_has_not_confirmed_gives_way(nat: NatRig, version: int) -> None:
    """In a flood of SYNs: to new flows, the oldest of a set first; to none that is confirmed."""
    kept = [established(nat, version, 6, 1000 + n) for n in range(PORTS // 2)]
    nat.later(5)
    for number in range(200):
        sent = nat.expect(client_frame(version, sport=2000 + number), TX)
        if number % 3 == 0:
            nat.expect(answer(sent), TX)  # a SYN's answer alone confirms nothing
    for number, flow in enumerate(kept):
        again = nat.expect(client_frame(version, sport=1000 + number, flags="A"), TX)
        assert (again.fresh, port_of(again)) == (False, port_of(flow))


@pytest.mark.host  # a guest may be too slow for two packets in a jiffy
def test_a_flood_is_limited(nat: NatRig) -> None:
    """A CPU translates so many new flows in a jiffy; known flows never count."""
    known = client_frame(sport=3)
    nat.expect(known, TX)
    made = [client_frame(sport=5000 + number) for number in range(1000)]
    rows = nat.tables["flow_cpus"]
    before = nat.balancer.verdicts()
    with one_cpu() as cpu:
        for first, second in itertools.pairwise(made):
            nat.run(first)
            rows["learnt"][cpu] = NARROW.rate // per_second()
            # In a jiffy of its own it is translated.
            if nat.run(second, new_jiffy=False).retval == XDP_DROP:
                break
        else:
            pytest.fail("no two packets in a thousand were of one jiffy")
        assert nat.run(known, new_jiffy=False).retval == XDP_TX
    assert nat.balancer.verdicts()["drop_nat_rate"] - before["drop_nat_rate"] == 1
    nat.empty()
    assert nat.expect(second, TX).fresh


# ---- Time ----------------------------------------------------------------------------------------

LIVES = [
    # protocol, what both sides have sent, seconds that the entry then has
    (6, [], 60),
    (6, ["answer SA"], 60),
    (6, ["answer SA", "client A"], 7200),
    (6, ["answer SA", "client A", "client FA"], 7200),
    (6, ["answer SA", "client A", "client FA", "answer FA"], 30),
    (6, ["answer SA", "client A", "answer FA", "client FA", "answer A"], 30),
    (6, ["answer SA", "client A", "client RA"], 30),
    (6, ["answer RA"], 30),
    (17, [], 30),
    (17, ["answer"], 30),
    (17, ["answer", "client"], 60),
]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("protocol", "steps", "seconds"), LIVES)
def test_lives(nat: NatRig, version: int, protocol: int, steps: list[str], seconds: int) -> None:
    """How long a flow's port is its own, and that it can be another's right after."""
    sent = nat.expect(client_frame(version, protocol, sport=7), TX)
    for step in steps:
        who, _, flags = step.partition(" ")
        made = answer(sent, flags=flags or "A")
        if who == "client":
            made = client_frame(version, protocol, sport=7, flags=flags or "A")
        nat.expect(made, TX)
    rival, late = (rival_of(nat, sent, after) for after in (1000, 30000))
    nat.later(seconds - 3)
    beside = nat.expect(client_frame(version, protocol, sport=rival), TX)
    assert port_of(beside) != port_of(sent)
    nat.later(6)
    taken = nat.expect(client_frame(version, protocol, sport=late), TX)
    assert port_of(taken) == port_of(sent)
    nat.expect(answer(taken), TX)


@pytest.mark.parametrize("version", [4, 6])
def test_what_another_cpu_has_seen_is_not_old(nat: NatRig, version: int) -> None:
    """Although its clock may be a unit ahead: no port is taken away, and no SYN begins anew."""
    flows = [established(nat, version, 6, 1000 + n) for n in range(PORTS)]
    seen = nat.tables["nat_heads"]["life"]["seen"]
    used = nat.tables["nat_flows"]["way"]["ref"] != 0
    ahead = seen[used] + 3
    seen[used] = ahead
    assert nat.run(client_frame(version, sport=5)).retval == XDP_DROP
    for number, flow in enumerate(flows):
        seen[used] = ahead
        out = nat.run(client_frame(version, sport=1000 + number))
        at = {4: 34, 6: 54}[version]
        assert out.data[at : at + 2] == port_of(flow).to_bytes(2, "big")


def rival_of(nat: NatRig, sent: Outcome, after: int) -> int:
    """A client's port whose flow would rather have the port that another flow has."""
    assert isinstance(sent, NatOutcome)
    assert sent.flow is not None
    for sport in range(after, 65536):
        flow = replace(sent.flow, source_port=sport)
        _, port, _ = next(nat.world.table.candidates(flow, flow_hash64(flow, nat.world.seed)))
        if port == port_of(sent):
            return sport
    raise AssertionError("no flow wants that port first")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("end", ["closed", "reset", "old"])
def test_a_client_port_that_is_used_again(nat: NatRig, version: int, end: str) -> None:
    """A SYN for a connection that is over begins a new one, with whatever backend is its turn."""
    first = established(nat, version, 6, 1000)
    if end == "closed":
        nat.expect(client_frame(version, sport=1000, flags="FA"), TX)
        nat.expect(answer(first, flags="FA"), TX)
    elif end == "reset":
        nat.expect(answer(first, flags="R"), TX)
    else:
        nat.later(7300)
    nat.serve(snat_service(version, NEAR[version][1], Backend(NEAR[version][0], 0)))
    late = nat.expect(client_frame(version, sport=1000, flags="A"), TX)
    assert (late.fresh, late.backend) == (False, first.backend)
    if end == "old":
        nat.later(7300)
    again = nat.expect(client_frame(version, sport=1000), TX)
    assert (again.fresh, again.backend) == (True, NEAR[version][1])
    nat.expect(answer(again), TX)
    nat.expect(answer(first, flags="A"), NO_VIP)


@pytest.mark.parametrize("version", [4, 6])
def test_a_syn_that_comes_again(nat: NatRig, version: int) -> None:
    """For a connection that goes on it begins nothing: port and backend stay."""
    first = nat.expect(client_frame(version, sport=1000), TX)
    assert port_of(nat.expect(client_frame(version, sport=1000), TX)) == port_of(first)
    nat.expect(answer(first), TX)
    nat.expect(client_frame(version, sport=1000, flags="A"), TX)
    again = nat.expect(client_frame(version, sport=1000), TX)
    assert (again.fresh, port_of(again)) == (False, port_of(first))
