# SPDX-License-Identifier: Apache-2.0
"""Source NAT together with what else a service may have: affinity, sources, states, ports."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.prog.lb.frames import CLIENTS, VIPS, frame
from tests.prog.lb.harness import service
from tests.prog.lb.network import GATEWAY, IN, NEAR, neighbour
from tests.prog.lb.network import ip as run_ip
from tests.prog.lb.oracle import NO_BACKEND, NO_VIP, NOT_FOR_YOU, TX
from tests.prog.snat.harness import (
    BOTH,
    NatRig,
    answer,
    client_frame,
    established,
    nat_rigged,
    services,
    snat_service,
)
from tests.prog.snat.oracle import NatOutcome
from tests.prog.snat.test_icmp import (
    ROUTERS,
    TOO_BIG,
    assert_becomes,
    conversation,
    error,
    framed,
)

from towpath import quic
from towpath.model import Affinity, Backend, BackendState, Protocol, Quic, SourceRoute
from towpath.model.kinds import ANY_PORT, Ports

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.prog.lb.network import Network
    from tests.prog.lb.oracle import Outcome
    from tests.prog.lb.oracle_parse import Address

    from towpath.model import Service

NETWORKS = {4: ip_network("198.51.100.0/24"), 6: ip_network("2001:db8:3::/64")}
VIP_NETWORKS = {4: ip_network("203.0.113.0/24"), 6: ip_network("2001:db8:4::/64")}
FLOWS = 16
TIMEOUT = 600
MARGIN = 60  # seconds that a test may take
DRAINING, QUARANTINED, DOWN = (
    BackendState.DRAINING,
    BackendState.QUARANTINED,
    BackendState.DOWN,
)
LIST = Ports.of([(80, 80), (443, 443), (8000, 8999)])
EDGES = (1, 79, 80, 443, 444, 8000, 8191, 8192, 8999, 9000, 65535)


@pytest.fixture(scope="module")
def nat(net: Network) -> Iterator[NatRig]:
    """A load balancer that translates, and knows the way to many clients."""
    with nat_rigged(net) as made:
        for version, network in NETWORKS.items():
            run_ip(f"route replace {network} via {neighbour(IN, version, GATEWAY)} dev {IN}")
            for client in clients(version):
                made.world.ways[client] = made.world.ways[CLIENTS[version]]
        yield made


@pytest.fixture(autouse=True)
def nothing_known(nat: NatRig) -> None:
    """Each test starts without services, translations and clients."""
    nat.serve()
    nat.empty()


def clients(version: int) -> list[Address]:
    """Some of one family."""
    return [NETWORKS[version].network_address + 100 + n for n in range(FLOWS)]


def begin(nat: NatRig, client: Address, sport: int, protocol: int = 6) -> Outcome:
    """A flow of a client's, there and back."""
    sent = nat.expect(client_frame(client.version, protocol, source=client, sport=sport), TX)
    nat.expect(answer(sent), TX)
    return sent


def next_of(nat: NatRig, client: Address, sport: int) -> Outcome:
    """A segment of a flow that was begun."""
    return nat.expect(client_frame(client.version, source=client, sport=sport, flags="A"), TX)


def others(whole: Service, address: Address, state: BackendState) -> Service:
    """The service with one of its backends in that state."""
    return replace(
        whole,
        backends=tuple(
            replace(each, state=state) if each.address == address else each
            for each in whole.backends
        ),
    )


# ---- Connection ids ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_new_flows_go_where_their_connection_id_says(nat: NatRig, version: int) -> None:
    """A client that has moved is a new flow; one that there is has its backend already."""
    backends = [Backend(each, server_id=(n,)) for n, each in enumerate(NEAR[version][:3])]
    config = Quic(length=1)
    nat.serve(snat_service(version, *backends, protocol=Protocol.UDP, quic=config))
    client = CLIENTS[version]
    for number, backend in enumerate(backends):
        data = b"\x40" + quic.make(number, config) + bytes(20)
        for sport in range(3000, 3003):
            made = frame(version, 17, payload=data, sport=sport + 10 * number)
            found = nat.expect(made, TX)
            assert (found.said, found.backend) == ("named", backend.address)
            again = nat.expect(made, TX)
            assert (again.said, again.backend, again.fresh) == ("", backend.address, False)
    found = nat.expect(client_frame(version, 17, source=client, sport=3999), TX)
    assert found.said == "unknown"


# ---- Affinity ------------------------------------------------------------------------------------


def sticky(version: int, *backends: Address | Backend, protocol: int = 6) -> Service:
    """A service with affinity."""
    kind = Protocol.TCP if protocol == 6 else Protocol.UDP
    return snat_service(version, *backends, protocol=kind, affinity=Affinity(TIMEOUT))


def let_pass(nat: NatRig, seconds: int) -> None:
    """Make as if every client had been seen so long ago."""
    ways = nat.balancer._program.rows("clients")["way"].reshape(-1)
    ways["seen"][np.flatnonzero(ways["ref"])] -= seconds
    nat.world.now += seconds


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_all_flows_of_a_client_go_to_one_backend(nat: NatRig, version: int, protocol: int) -> None:
    """Whatever its ports; the flows have a translation each."""
    nat.serve(sticky(version, *NEAR[version], protocol=protocol))
    chosen = set()
    for client in clients(version):
        found = [begin(nat, client, sport, protocol) for sport in (1, 2, 65535)]
        (backend,) = {each.backend for each in found}
        chosen.add(backend)
        assert len({_reply(each) for each in found}) == 3
        assert all(each.fresh for each in found)
    assert len(chosen) > 3


def _reply(outcome: Outcome) -> object:
    assert isinstance(outcome, NatOutcome)
    assert outcome.entry is not None
    return outcome.entry.reply


@pytest.mark.parametrize("version", [4, 6])
def test_a_client_keeps_its_backend_until_its_time_is_up(nat: NatRig, version: int) -> None:
    """New flows too, after the table has changed; afterwards they go by the new one."""
    first, *more = NEAR[version]
    nat.serve(sticky(version, first))
    for client in clients(version):
        begin(nat, client, 1)
    nat.serve(sticky(version, first, *more))
    for sport in (2, 3):
        let_pass(nat, TIMEOUT - MARGIN)
        assert {begin(nat, client, sport).backend for client in clients(version)} == {first}
    let_pass(nat, TIMEOUT)
    assert {begin(nat, client, 1).backend for client in clients(version)} == {first}
    found = [begin(nat, client, 4).backend for client in clients(version)]
    assert len(set(found)) > 3
    assert [begin(nat, client, 5).backend for client in clients(version)] == found


@pytest.mark.parametrize("state", [DRAINING, QUARANTINED, DOWN])
@pytest.mark.parametrize("version", [4, 6])
def test_a_client_whose_backend_takes_no_flows(
    nat: NatRig, version: int, state: BackendState
) -> None:
    """Goes on with those it has, unless that is down; its next one goes elsewhere, and stays."""
    whole = sticky(version, *NEAR[version][:3])
    nat.serve(whole)
    homes = {client: begin(nat, client, 1).backend for client in clients(version)}
    assert {client: next_of(nat, client, 1).backend for client in homes} == homes
    gone = NEAR[version][0]
    assert gone in homes.values()
    nat.serve(others(whole, gone, state))
    moved = {client: begin(nat, client, 2).backend for client in homes}
    assert gone not in moved.values()
    for client, home in homes.items():
        went_on = next_of(nat, client, 1)
        assert (went_on.backend == home) == (home != gone or state is not DOWN)
        assert home == gone or moved[client] == home
    nat.serve(whole)
    assert {client: begin(nat, client, 3).backend for client in homes} == moved


# ---- Sources -------------------------------------------------------------------------------------


def allowing(version: int, *networks: object, protocol: int = 6) -> Service:
    """A service for these sources."""
    kind = Protocol.TCP if protocol == 6 else Protocol.UDP
    made = snat_service(version, protocol=kind)
    return replace(made, allow_from=tuple(ip_network(str(each)) for each in networks))


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_who_is_refused_takes_no_translation(nat: NatRig, version: int, protocol: int) -> None:
    """And is counted; others go on."""
    inside, outside = clients(version)[:2]
    nat.serve(allowing(version, inside, protocol=protocol))
    for sport in range(FLOWS):
        frame = client_frame(version, protocol, source=outside, sport=sport)
        nat.expect(frame, NOT_FOR_YOU)
    assert not nat.tables["nat_flows"]["way"]["ref"].any()
    begin(nat, inside, 1, protocol)


@pytest.mark.parametrize("version", [4, 6])
def test_flows_go_to_the_backends_of_their_sources_route(nat: NatRig, version: int) -> None:
    """And stay there, translated as they were, when routes change."""
    client, other = clients(version)[:2]
    made = snat_service(version)
    routes = [
        replace(made, route_from=(SourceRoute((ip_network(str(client)),), (backend,)),))
        for backend in NEAR[version][:2]
    ]
    nat.serve(routes[0])
    assert {begin(nat, client, sport).backend for sport in range(FLOWS)} == {NEAR[version][0]}
    assert {begin(nat, other, sport).backend for sport in range(FLOWS)} - {NEAR[version][0]}
    nat.serve(routes[1])
    assert next_of(nat, client, 1).backend == NEAR[version][0]
    assert begin(nat, client, FLOWS).backend == NEAR[version][1]


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_a_flow_that_is_refused_later(nat: NatRig, version: int, protocol: int) -> None:
    """What the client sends is dropped, errors too; answers that are under way still get there."""
    client = CLIENTS[version]
    nat.serve(allowing(version, NETWORKS[version], protocol=protocol))
    talk = conversation(nat, version, protocol)
    nat.serve(allowing(version, clients(version)[0], protocol=protocol))
    nat.expect(talk.sent, NOT_FOR_YOU)
    nat.expect(talk.answered, TX)
    key = talk.sent_on.key
    quote = talk.answered_on.frame[14:]
    came = framed(error(ROUTERS[version], VIPS[version], quote, kind=TOO_BIG[version]))
    assert nat.run(came).data == came
    counts: dict[object, int] = {(key, "packets"): 1, (key, "bytes"): len(came) - 14}
    counts |= {(key, "drops"): 1, (key, NOT_FOR_YOU): 1}
    assert_becomes(nat, came, (NOT_FOR_YOU, came), counts)
    nat.serve(allowing(version, client, protocol=protocol))
    assert not nat.expect(talk.sent, TX).fresh


@pytest.mark.parametrize("version", [4, 6])
def test_an_error_about_a_flow_that_was_never_let_in_passes(nat: NatRig, version: int) -> None:
    """We have sent nothing that it could be about."""
    nat.serve(allowing(version, NETWORKS[version]))
    talk = conversation(nat, version, 6)
    nat.serve(allowing(version, clients(version)[0]))
    nat.empty()
    quote = talk.answered_on.frame[14:]
    came = framed(error(ROUTERS[version], VIPS[version], quote, kind=TOO_BIG[version]))
    assert_becomes(nat, came, ("pass_protocol", came), {})


# ---- States --------------------------------------------------------------------------------------


def flows(nat: NatRig, version: int, protocol: int, first: int = 1000) -> dict[int, object]:
    """Who has each of some flows, by the client's port: known ones, or new ones."""
    return {
        sport: established(nat, version, protocol, sport).backend
        for sport in range(first, first + FLOWS)
    }


def go_on(nat: NatRig, version: int, protocol: int, sports: Iterable[int]) -> dict[int, object]:
    """A packet of each of these, and its answer: who has them."""
    found: dict[int, object] = {}
    for sport in sports:
        sent = nat.expect(client_frame(version, protocol, sport=sport, flags="A"), TX)
        nat.expect(answer(sent, flags="A"), TX)
        found[sport] = sent.backend
    return found


@pytest.mark.parametrize("state", [DRAINING, QUARANTINED])
@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_translated_flows_go_on_and_new_ones_go_elsewhere(
    nat: NatRig, version: int, protocol: int, state: BackendState
) -> None:
    """Draining and quarantined alike; back again, it has no other flows than before."""
    kind = Protocol.TCP if protocol == 6 else Protocol.UDP
    whole, drained = snat_service(version, *NEAR[version][:3], protocol=kind), NEAR[version][0]
    nat.serve(whole)
    before = flows(nat, version, protocol)
    assert drained in before.values()
    nat.serve(others(whole, drained, state))
    assert go_on(nat, version, protocol, before) == before
    assert drained not in flows(nat, version, protocol, 2000).values()
    nat.serve(whole)
    assert go_on(nat, version, protocol, before) == before
    assert drained in flows(nat, version, protocol, 3000).values()


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_down_moves_its_flows_and_no_other(nat: NatRig, version: int, protocol: int) -> None:
    """Its late answers are nobody's; when it is back they stay where they have gone."""
    kind = Protocol.TCP if protocol == 6 else Protocol.UDP
    whole, fallen = snat_service(version, *NEAR[version][:3], protocol=kind), NEAR[version][0]
    nat.serve(whole)
    sent = [established(nat, version, protocol, 1000 + number) for number in range(FLOWS)]
    before = {1000 + number: each.backend for number, each in enumerate(sent)}
    nat.serve(others(whole, fallen, DOWN))
    for each in sent:
        nat.expect(answer(each), NO_VIP if each.backend == fallen else TX)
    after = go_on(nat, version, protocol, before)
    assert fallen not in after.values()
    assert all(after[sport] == home for sport, home in before.items() if home != fallen)
    nat.serve(whole)
    assert go_on(nat, version, protocol, before) == after


@pytest.mark.parametrize("version", [4, 6])
def test_nobody_active_takes_nothing_new(nat: NatRig, version: int) -> None:
    """Flows that there are go on."""
    whole = snat_service(version, *NEAR[version][:2])
    nat.serve(whole)
    before = flows(nat, version, 6)
    drained = [Backend(each.address, 1, DRAINING) for each in whole.backends]
    nat.serve(replace(whole, backends=tuple(drained)))
    assert go_on(nat, version, 6, before) == before
    for sport in range(5):
        nat.expect(client_frame(version, sport=sport), NO_BACKEND)


# ---- Sets of ports and addresses -----------------------------------------------------------------


@pytest.mark.parametrize(("version", "protocol"), BOTH)
@pytest.mark.parametrize("ports", [LIST, ANY_PORT], ids=str)
@pytest.mark.parametrize("prefix", [False, True])
def test_ports_and_prefixes(
    nat: NatRig,
    version: int,
    protocol: int,
    ports: Ports,
    prefix: bool,  # noqa: FBT001 - a parameter
) -> None:
    """The backend's port is the one asked for, and an answer comes from the VIP that was asked."""
    kind = Protocol.TCP if protocol == 6 else Protocol.UDP
    network = VIP_NETWORKS[version]
    made = snat_service(version, port=ports, protocol=kind)
    nat.serve(replace(made, vip=network) if prefix else made)
    addresses = [VIPS[version]]
    addresses += [network.network_address + 1, network.network_address + 200] if prefix else []
    seen = set()
    for vip in addresses:
        for dport in EDGES:
            sent = nat.check(client_frame(version, protocol, vip=vip, dport=dport))
            seen.add(sent.verdict)
            if sent.verdict == TX:
                nat.expect(answer(sent), TX)
    beside = network.network_address - 1
    nat.expect(client_frame(version, protocol, vip=beside, dport=80), NO_VIP)
    assert seen == ({TX} if ports == ANY_PORT else {TX, NO_VIP})


@pytest.mark.parametrize("version", [4, 6])
def test_a_flow_is_its_services(nat: NatRig, version: int) -> None:
    """When a more exact service comes and goes, its packets go to that one's backends."""
    first, second, third = NEAR[version][:3]
    wide = snat_service(version, first, second, port=LIST)
    exact = snat_service(version, second, third, port=443)
    sports = range(1000, 1000 + FLOWS)
    for services_now in ((wide,), (wide, exact), (wide,)):
        nat.serve(*services_now)
        (backends,) = {s.backends for s in services_now[-1:]}
        for sport in sports:
            sent = nat.expect(client_frame(version, sport=sport, dport=443, flags="A"), TX)
            assert sent.backend in {each.address for each in backends}
            nat.expect(answer(sent), TX)


def test_services_of_all_kinds_side_by_side(nat: NatRig) -> None:
    """One VIP, a port each: in a tunnel, on the link, translated."""
    kinds: dict[int, dict[str, Any]] = {81: {}, 82: {"forwarding": "l2"}}
    nat.serve(
        *services(),
        *(
            service(VIPS[version], *NEAR[version], port=port, **options)
            for version in (4, 6)
            for port, options in kinds.items()
        ),
    )
    for version in (4, 6):
        nat.forget_ways()
        for dport in (80, 81, 82, 80):
            nat.expect(client_frame(version, dport=dport), TX)
