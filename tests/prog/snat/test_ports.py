# SPDX-License-Identifier: Apache-2.0
"""Backends of translated services that listen at a port of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.guests import examples
from tests.prog.lb.frames import PORT, VIPS
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import NO_VIP, TX
from tests.prog.snat.harness import (
    BOTH,
    PORTS,
    NatRig,
    answer,
    client_frame,
    established,
    port_of,
    snat_service,
)
from tests.prog.snat.harness_flows import listed
from tests.prog.snat.oracle import NatOutcome

from towpath.model import Backend, BackendState, Protocol
from towpath.model.flow import FlowTuple

if TYPE_CHECKING:
    from tests.prog.lb.oracle import Outcome

    from towpath.model import Service

OWN = 8080
MANY = examples(100, 20)


@pytest.fixture
def nat(narrow: NatRig) -> NatRig:
    """One address, sixteen ports, neither services nor translations."""
    narrow.serve()
    narrow.empty()
    return narrow


def web(version: int, protocol: int = 6, *, own: int | None = OWN, port: int = PORT) -> Service:
    """A service of one backend, which has a port of its own or none."""
    which = Protocol.TCP if protocol == 6 else Protocol.UDP
    return snat_service(version, Backend(NEAR[version][0], port=own), protocol=which, port=port)


def reached(outcome: Outcome) -> int:
    """The port that a packet was sent to."""
    assert isinstance(outcome, NatOutcome)
    assert outcome.entry is not None
    at = {4: 36, 6: 56}[outcome.entry.source.version]
    return int.from_bytes(outcome.frame[at : at + 2], "big")


@pytest.mark.parametrize(("version", "protocol"), BOTH)
@pytest.mark.parametrize("own", [1, OWN, 65535, PORT, None])
def test_there_and_back(nat: NatRig, version: int, protocol: int, own: int | None) -> None:
    """To the backend's port, and the answer from the VIP's; checksums as they must be."""
    nat.serve(web(version, protocol, own=own))
    for length in range(9):
        sent = nat.expect(client_frame(version, protocol, payload=b"x" * length), TX)
        assert reached(sent) == (own or PORT)
        back = nat.expect(answer(sent, payload=b"y" * length), TX)
        at = {4: 34, 6: 54}[version]
        assert int.from_bytes(back.frame[at : at + 2], "big") == PORT


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_some_have_one_and_some_have_none(nat: NatRig, version: int, protocol: int) -> None:
    """Each flow goes to its backend's."""
    first, second, third = NEAR[version][:3]
    backends = Backend(first, port=OWN), Backend(second), Backend(third, port=OWN + 1)
    which = Protocol.TCP if protocol == 6 else Protocol.UDP
    nat.serve(snat_service(version, *backends, protocol=which))
    found = set()
    for number in range(MANY):
        sent = nat.check(client_frame(version, protocol, sport=1000 + number))
        if sent.verdict == TX:
            nat.expect(answer(sent), TX)
            found.add((sent.backend, reached(sent)))
    assert found == {(first, OWN), (second, PORT), (third, OWN + 1)}


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_two_services_at_one_address(nat: NatRig, version: int, protocol: int) -> None:
    """With different ports there: each has all of our ports for itself, and its own answers."""
    nat.serve(web(version, protocol), web(version, protocol, own=OWN + 1, port=81))
    flows = {
        dport: [
            established_at(nat, version, protocol, dport, 1000 + number) for number in range(PORTS)
        ]
        for dport in (PORT, 81)
    }
    for dport, sent in flows.items():
        assert sorted(map(port_of, sent)) == list(range(20000, 20000 + PORTS))
        assert {reached(each) for each in sent} == {OWN if dport == PORT else OWN + 1}
    for sent in flows.values():
        for each in sent:
            nat.expect(answer(each, flags="A"), TX)


def established_at(nat: NatRig, version: int, protocol: int, dport: int, sport: int) -> Outcome:
    """A flow that both sides have agreed on."""
    sent = nat.expect(client_frame(version, protocol, sport=sport, dport=dport), TX)
    nat.expect(answer(sent), TX)
    again = client_frame(version, protocol, sport=sport, dport=dport, flags="A")
    return nat.expect(again, TX)


@pytest.mark.parametrize("version", [4, 6])
def test_two_services_that_share_a_backends_port(nat: NatRig, version: int) -> None:
    """Then a port of ours is one service's or the other's."""
    nat.serve(web(version), web(version, port=81))
    first = [established_at(nat, version, 6, PORT, 1000 + n) for n in range(PORTS // 2)]
    second = [established_at(nat, version, 6, 81, 1000 + n) for n in range(PORTS // 2)]
    assert sorted(map(port_of, first + second)) == list(range(20000, 20000 + PORTS))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("before", "after"), [(None, OWN), (OWN, OWN + 1), (OWN, None)])
def test_a_port_that_changes(
    nat: NatRig, version: int, before: int | None, after: int | None
) -> None:
    """Flows that there are keep theirs, new ones go to the new one."""
    nat.serve(web(version, own=before))
    old = established(nat, version, 6, 1000)
    nat.serve(web(version, own=after))
    again = nat.expect(client_frame(version, sport=1000, flags="A"), TX)
    assert (again.fresh, reached(again)) == (False, before or PORT)
    nat.expect(answer(old, flags="A"), TX)
    new = nat.expect(client_frame(version, sport=1001), TX)
    assert reached(new) == (after or PORT)
    nat.expect(answer(new), TX)


def test_only_the_port_that_was_asked_answers(nat: NatRig) -> None:
    """What comes from the VIP's port or any other at the backend is no answer."""
    nat.serve(web(4))
    sent = nat.expect(client_frame(), TX)
    frame = bytearray(answer(sent))
    nat.expect(bytes(frame), TX)
    for port in (PORT, OWN + 1):
        frame[34:36] = port.to_bytes(2, "big")
        nat.expect(bytes(frame), NO_VIP)


def test_a_trace_says_where_it_goes(nat: NatRig) -> None:
    """Of a new flow and of one that is there, whatever its backend's port is by now."""
    nat.serve(web(4))
    flow = FlowTuple.parse(f"198.51.100.7:40000 -> {VIPS[4]}:{PORT} tcp")
    assert nat.balancer.trace(flow).destination_port == OWN
    sent = nat.expect(client_frame(), TX)
    assert isinstance(sent, NatOutcome)
    assert sent.flow is not None
    known = FlowTuple.parse(f"{sent.flow.source}:40000 -> {VIPS[4]}:{PORT} tcp")
    nat.serve(web(4, own=OWN + 1))
    assert nat.balancer.trace(known).destination_port == OWN
    assert nat.balancer.trace(flow).destination_port == OWN + 1
    ((*_, backend, port),) = listed(nat, nat.balancer.nat_flows.entries())
    assert (backend, port) == (NEAR[4][0], OWN)


def test_states_and_weights_leave_it_alone(nat: NatRig) -> None:
    """And it them."""
    whole = Backend(NEAR[4][0], 3, BackendState.DRAINING, OWN)
    others = Backend(NEAR[4][1])
    nat.serve(snat_service(4, whole, others))
    assert set(nat.balancer.observed()[0].backends) == {whole, others}
    for changed in (
        Backend(NEAR[4][0], 3, BackendState.ACTIVE, OWN),
        Backend(NEAR[4][0], 65535, BackendState.ACTIVE, OWN),
        Backend(NEAR[4][0], 65535, BackendState.ACTIVE, OWN + 1),
    ):
        nat.serve(snat_service(4, changed, others))
        assert set(nat.balancer.observed()[0].backends) == {changed, others}
        (change,) = nat.balancer.plan([snat_service(4, whole, others)]).plan.changes
        assert bool(change.backends_redirected) == (changed.port != OWN)
