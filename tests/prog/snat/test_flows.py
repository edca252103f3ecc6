# SPDX-License-Identifier: Apache-2.0
"""The table of translations as user space lists it, beside what the oracle remembers."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_network
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.guests import examples
from tests.prog.lb.frames import CLIENTS, PORT, VIPS
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import TX
from tests.prog.snat.harness import (
    SOURCES,
    NatRig,
    answer,
    client_frame,
    established,
    nat_rigged,
    port_of,
    snat_service,
)
from tests.prog.snat.harness_flows import Listed, listed
from tests.prog.snat.oracle import NatOutcome
from tests.prog.snat.test_table import LIVES

from towpath.datapath.flows.flow_table import Filter
from towpath.datapath.flows.nat_table import ALL, STATES, Wanted
from towpath.model import Backend, Protocol, Snat

BOTH_WAYS = True

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network

    from towpath.datapath.flows.nat_table import Translations

SEVERAL = examples(60, 20)
STEP = 2.6
"""Seconds of 256 jiffies on the slowest of kernels."""


@pytest.fixture(scope="module")
def wide(net: Network) -> Iterator[NatRig]:
    """Two addresses of IPv4, one of IPv6, and the usual ports."""
    snat = Snat((SOURCES[4], SOURCES[4] + 1), (SOURCES[6],))  # type: ignore[arg-type]
    with nat_rigged(net, snat) as made:
        yield made


@pytest.fixture
def nat(wide: NatRig) -> NatRig:
    """With a service of each kind, and no translations."""
    wide.serve()
    wide.empty()
    wide.serve(
        *(
            snat_service(v, Backend(NEAR[v][0], port=8080), *NEAR[v][1:3], protocol=p, port=PORT)
            for v in (4, 6)
            for p in Protocol
        )
    )
    return wide


def counted(nat: NatRig, found: Translations) -> Counter[Listed]:
    """What was listed, each with how often."""
    return Counter(listed(nat, found))


def known(nat: NatRig) -> Counter[Listed]:
    """What the oracle remembers."""
    return Counter(
        (
            e.flow.source,
            e.flow.source_port,
            e.flow.destination,
            e.flow.destination_port,
            e.source,
            e.port,
            e.backend,
            e.reply.source_port,
        )
        for e in nat.world.table.entries()
    )


def fill(nat: NatRig) -> None:
    """Flows of every service, half of them answered."""
    for number in range(SEVERAL):
        for version, protocol in ((4, 6), (4, 17), (6, 6), (6, 17)):
            sent = nat.expect(client_frame(version, protocol, sport=1000 + number), TX)
            if number % 2:
                nat.expect(answer(sent), TX)


def states(found: Translations) -> list[str]:
    """In words."""
    return [STATES[each] for each in found.states]


# ---- What is listed ------------------------------------------------------------------------------


def test_every_translation_is_listed(nat: NatRig) -> None:
    """Both ends, what it is translated to and its backend; and no other."""
    fill(nat)
    found = nat.balancer.nat_flows.entries()
    assert len(found) == 4 * SEVERAL
    assert counted(nat, found) == known(nat)
    assert (found.places[1:] > found.places[:-1]).all()
    assert {each[4] for each in known(nat)} == {SOURCES[4], SOURCES[4] + 1, SOURCES[6]}
    backends = Counter(each[-2] for each in known(nat).elements())
    members = nat.balancer.members()
    found_by = Counter[object]()
    for handle, flows in nat.balancer.nat_flows.counts().items():
        found_by[members[handle].backend] += flows
    assert found_by == backends


def test_parts_make_the_whole(nat: NatRig) -> None:
    """Each goes on where the one before ended."""
    fill(nat)
    table, parts, start = nat.balancer.nat_flows, Counter[Listed](), 0
    while found := counted(nat, part := table.entries(start=start, limit=50)):
        parts += found
        start = int(part.places[-1]) + 1
    assert parts == known(nat)
    assert len(table.entries(start=table.capacity)) == 0


@pytest.mark.parametrize("version", [4, 6])
def test_by_what_the_backend_sees(nat: NatRig, version: int) -> None:
    """An address, or an address and port, which flows to several backends may share."""
    fill(nat)
    table, everything = nat.balancer.nat_flows, known(nat)
    ours = SOURCES[version] + (version == 4)
    found = counted(nat, table.entries(Wanted(source=ours)))
    assert found == {each: 1 for each in everything if each[4] == ours} != {}
    port = next(each[5] for each in found)
    found = counted(nat, table.entries(Wanted(source=ours, port=port)))
    assert found == {each: 1 for each in everything if each[4:6] == (ours, port)} != {}
    assert not table.entries(Wanted(source=VIPS[version]))
    assert not table.entries(Wanted(source=ours, port=9999))


def test_by_client_backend_and_idle_time(nat: NatRig) -> None:
    """As flows that aren't translated."""
    fill(nat)
    table, everything = nat.balancer.nat_flows, known(nat)
    for version in (4, 6):
        for prefix, matches in ((ip_network(CLIENTS[version]), True), (ip_network("::1"), False)):
            found = counted(nat, table.entries(Wanted(Filter(clients=prefix))))
            mine = {each: 1 for each in everything if matches and each[0] in prefix}
            assert found == mine
    handle = next(h for h, m in nat.balancer.members().items() if m.backend == NEAR[4][0])
    some = counted(nat, table.entries(Wanted(Filter({handle}))))
    assert {each[-2] for each in some} == {NEAR[4][0]}
    assert not table.entries(Wanted(Filter(())))
    nat.later(20)
    nat.expect(client_frame(sport=1000), TX)
    (recent,) = counted(nat, table.entries(Wanted(Filter(max_idle_seconds=15))))
    assert recent[:2] == (CLIENTS[4], 1000)


# ---- State and time ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("protocol", "steps", "seconds"), LIVES)
def test_states_and_what_is_left(
    nat: NatRig, version: int, protocol: int, steps: list[str], seconds: int
) -> None:
    """As long as the program keeps a flow's port for it."""
    sent = nat.expect(client_frame(version, protocol, sport=7), TX)
    for step in steps:
        who, _, flags = step.partition(" ")
        made = answer(sent, flags=flags or "A")
        if who == "client":
            made = client_frame(version, protocol, sport=7, flags=flags or "A")
        nat.expect(made, TX)
    state = {(6, 30): "closing", (6, 7200): "established", (17, 60): "established"}
    nat.later(seconds / 2)
    table = nat.balancer.nat_flows
    found = table.entries()
    assert states(found) == [state.get((protocol, seconds), "new")]
    assert found.idle_seconds[0] == pytest.approx(seconds / 2, abs=STEP)
    assert found.remaining_seconds[0] == pytest.approx(seconds / 2, abs=STEP)
    nat.later(seconds / 2 - 3 * STEP)
    assert table.entries().expired.tolist() == [False]
    nat.later(6 * STEP)
    assert len(table.entries()) == table.counts().total() == 0
    late = table.entries(Wanted(expired=True))
    assert (states(late), late.expired.tolist()) == (states(found), [True])
    assert late.remaining_seconds.tolist() == [0]
    nat.expect(client_frame(version, protocol, sport=7, flags="A"), TX)
    assert len(table.entries()) == 1


def test_what_is_left_is_never_more_than_the_whole(nat: NatRig) -> None:
    """Right after the packet."""
    established(nat, 4, 6, 1000)
    found = nat.balancer.nat_flows.entries()
    assert 7200 - STEP <= found.remaining_seconds[0] <= 7200 + STEP
    assert found.idle_seconds[0] <= STEP


def test_very_old_entries_stay_old(nat: NatRig) -> None:
    """Their age has 16 bits; who reads at least that often knows better."""
    established(nat, 4, 6, 1000)
    table = nat.balancer.nat_flows
    nat.later(8000)
    assert len(table.entries()) == 0
    # So much later, with nothing read in between but what the agent reads for its age.
    for _ in range(4):
        table._clock._last += round(table.span_seconds / 4 / table.resolution_seconds) << 8
        assert not table.counts()
    (late,) = table.entries(Wanted(expired=True)).idle_seconds
    assert late > table.span_seconds


# ---- What isn't ----------------------------------------------------------------------------------


def test_flows_of_a_removed_backend_are_left_out(nat: NatRig) -> None:
    """Also when another one gets its index."""
    first, second, third = NEAR[4][:3]
    nat.serve(snat_service(4, first, second))
    for number in range(SEVERAL):
        nat.expect(client_frame(sport=1000 + number), TX)
    stays = {each: 1 for each in known(nat) if each[-2] == second}
    for backends in ([second], [second, third]):
        nat.serve(snat_service(4, *backends))
        assert counted(nat, nat.balancer.nat_flows.entries()) == stays
    nat.serve()
    assert not nat.balancer.nat_flows.entries()


def test_entries_that_are_not_published_are_left_out(nat: NatRig) -> None:
    """As they are while they are written, whatever is in them."""
    fill(nat)
    ways = nat.tables["nat_flows"]["way"]
    sets, at = np.nonzero(ways["ref"])
    ways["ref"][sets[0], at[0]] = 0
    assert len(nat.balancer.nat_flows.entries(ALL)) == 4 * SEVERAL - 1


def test_a_backend_that_is_asked_for_by_its_port(nat: NatRig) -> None:
    """What a backend's log says leads to the client."""
    sent = established(nat, 4, 6, 1234)
    assert isinstance(sent, NatOutcome)
    assert sent.entry is not None
    wanted = Wanted(source=sent.entry.source, port=port_of(sent))
    ((client, port, *_),) = counted(nat, nat.balancer.nat_flows.entries(wanted))
    assert (client, port) == (CLIENTS[4], 1234)
