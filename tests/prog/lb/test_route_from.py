# SPDX-License-Identifier: Apache-2.0
"""Services whose new flows go to some of their backends by their source, as the oracle has it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from tests.guests import examples
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import IN, NEAR
from tests.prog.lb.oracle import TX
from tests.prog.lb.test_allow_from import CLIENTS, edges, sent_by, stored
from tests.prog.lb.test_trace import assert_tells

from towpath.model import Affinity, Backend, BackendState, FlowTuple, SourceRoute
from towpath.model.kinds import Ports

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Address

    from towpath.model import Service

BOTH_WAYS = True
Prefix = IPv4Network | IPv6Network
LISTS = examples(20, 4)
FEW = {family: tuple(NEAR[family][:2]) for family in NEAR}


def around(family: int, length: int) -> Prefix:
    """The prefix of that length that the client is in."""
    return ip_network(f"{CLIENTS[family]}/{length}", strict=False)


def near(family: int) -> Prefix:
    """256 addresses, the client's among them."""
    return around(family, CLIENTS[family].max_prefixlen - 8)


def routing(
    family: int, *routes: tuple[tuple[Prefix, ...], tuple[Address, ...]], **options: Any
) -> Service:
    """The usual service, with these routes."""
    made = tuple(SourceRoute(*each) for each in routes)
    return service(VIPS[family], *NEAR[family], route_from=made, **options)


@pytest.mark.parametrize("family", [4, 6])
def test_any_routes(rig: Rig, family: int) -> None:
    """At the edges of each prefix, of prefixes within each other: the longest holds."""
    random = Random(family)  # noqa: S311 - to be the same again
    longest = CLIENTS[family].max_prefixlen
    ways = set()
    for _ in range(LISTS):
        lengths = random.sample(range(longest - 24, longest + 1), 6)
        prefixes = [around(family, each) for each in lengths]
        parts = [tuple(prefixes[:1]), tuple(prefixes[1:3]), tuple(prefixes[3:])]
        wanted = routing(
            family,
            *((each, tuple(random.sample(NEAR[family], random.randint(1, 3)))) for each in parts),
            flow_table=random.random() < 0.5,
        )
        rig.serve(wanted)
        for prefix in prefixes:
            for source in edges(prefix):
                ways.add(rig.check(sent_by(source)).route)
    assert None in ways
    assert len(ways) > LISTS


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("options", [{}, {"forwarding": "l2"}, {"encap": "gue"}])
def test_flows_are_shared_by_the_routes_backends(
    rig: Rig, family: int, options: dict[str, Any]
) -> None:
    """By their weights, and others by all; one backend has a table of one slot."""
    few = FEW[family]
    rig.serve(routing(family, ((near(family),), few), **options))
    sent = [frame(family, sport=port) for port in range(1024, 1064)]
    assert {rig.expect(each, TX).backend for each in sent} == set(few)
    rig.serve(routing(family, ((near(family),), few[:1]), **options, flow_table=False))
    assert {rig.expect(each, TX).backend for each in sent} == {few[0]}
    elsewhere = [sent_by(CLIENTS[family] + (1 << 16), sport=port) for port in range(1024, 1064)]
    assert len({rig.expect(each, TX).backend for each in elsewhere}) > 2


@pytest.mark.parametrize("family", [4, 6])
def test_flows_that_are_known_stay(rig: Rig, family: int) -> None:
    """However rules change; those that begin then go by the new ones."""
    rig.serve(routing(family))
    sent = [frame(family, sport=port) for port in range(2048, 2068)]
    before = [rig.expect(each, TX).backend for each in sent]
    for number, chosen in enumerate(NEAR[family][:3]):
        rig.serve(routing(family, ((near(family),), (chosen,))))
        assert [rig.expect(each, TX).backend for each in sent] == before
        assert rig.expect(frame(family, sport=1 + number), TX).backend == chosen


@pytest.mark.parametrize("state", [BackendState.DRAINING, BackendState.DOWN])
def test_while_nobody_of_a_route_takes_flows_all_do(rig: Rig, state: BackendState) -> None:
    """And the route holds again when one is back."""
    first, *others = NEAR[4]
    usual = routing(4, ((near(4),), (first,)), flow_table=False)
    sent = [frame(sport=port) for port in range(3000, 3030)]
    for each in (BackendState.ACTIVE, state, BackendState.ACTIVE):
        backends = (Backend(first, state=each), *map(Backend, others))
        rig.serve(replace(usual, backends=backends))
        found = {rig.expect(one, TX).backend for one in sent}
        assert found == {first} if each is BackendState.ACTIVE else first not in found


@pytest.mark.parametrize("family", [4, 6])
def test_a_client_that_is_known_stays(rig: Rig, family: int) -> None:
    """With affinity; a route decides for those that aren't."""
    first, second = FEW[family]
    for chosen, source, expected in (
        (first, CLIENTS[family], first),
        (second, CLIENTS[family], first),
        (second, CLIENTS[family] + 1, second),
    ):
        rig.serve(routing(family, ((near(family),), (chosen,)), affinity=Affinity(3600)))
        for port in range(5000, 5004):
            sent = sent_by(source, sport=port, dport=80)
            assert rig.expect(sent, TX).backend == expected


@pytest.mark.parametrize("hash_by", ["client", "port"])
def test_beside_what_new_flows_go_by(rig: Rig, hash_by: str) -> None:
    """The hash is asked for a slot of the route's table."""
    few = FEW[4]
    ports = Ports.of([(8000, 8031)])
    wanted = routing(4, ((near(4),), few), port=ports, hash_by=hash_by, flow_table=False)
    rig.serve(wanted)
    found = {rig.expect(frame(dport=port), TX).backend for port in range(8000, 8032)}
    assert found == ({few[0]} | {few[1]} if hash_by == "port" else found & set(few))


def test_a_trace_tells_the_route(rig: Rig) -> None:
    """Of a flow that is new; and changes nothing."""
    rig.serve(routing(4, ((near(4), around(4, 32)), FEW[4])))
    flow = FlowTuple.parse(f"{CLIENTS[4]}:7777 -> {VIPS[4]}:80 tcp")
    trace = rig.balancer.trace(flow, IN)
    assert trace.route == SourceRoute((near(4), around(4, 32)), FEW[4])
    assert_tells(rig, trace, rig.check(sent_by(CLIENTS[4], sport=7777)))


def test_what_is_no_more_takes_no_room(rig: Rig) -> None:
    """Neither prefixes nor rows, once no packet can be reading them."""
    for family in (4, 6) * 40:
        rig.serve(routing(family, ((near(family),), FEW[family])))
        rig.expect(frame(family), TX)
    assert stored(rig) < 80
    rig.serve(service(VIPS[4], *NEAR[4]))
    assert rig.check(frame()).route is None
