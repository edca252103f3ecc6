# SPDX-License-Identifier: Apache-2.0
"""What an authentication header covers can't be translated: such packets are the kernel's."""

from __future__ import annotations

import pytest
from tests.prog.lb.authentication import authenticated
from tests.prog.lb.frames import VIPS
from tests.prog.lb.harness import service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import LOST, NO_VIP, TX
from tests.prog.lb.oracle_parse import FRAGMENT, OTHER_PROTOCOL
from tests.prog.lb.wire_fragments import cut
from tests.prog.snat.harness import NatRig, answer, client_frame, services
from tests.prog.snat.harness_fragments import entry_ends, forget, framed, reversed_ends, whole
from tests.prog.snat.test_icmp import ROUTERS, TOO_BIG, error

BOTH = [(version, protocol) for version in (4, 6) for protocol in (6, 17)]


@pytest.fixture(autouse=True)
def nothing_known(nat: NatRig) -> None:
    """Each test starts with a service of each kind, no translations, and no fragments."""
    nat.serve()
    nat.empty()
    forget(nat)
    nat.serve(*services())


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_packets_of_clients_and_of_backends(nat: NatRig, version: int, protocol: int) -> None:
    """Even those of a flow that is translated without; no byte changes, nothing is learnt."""
    sent = nat.expect(client_frame(version, protocol), TX)
    nat.expect(answer(sent), TX)
    before = len(nat.balancer.nat_flows.entries())
    client = framed(authenticated(client_frame(version, protocol, sport=40001)[14:]))
    for frame in (client, framed(authenticated(client_frame(version, protocol)[14:]))):
        assert nat.expect(frame, OTHER_PROTOCOL).key is None
    nat.expect(framed(authenticated(answer(sent)[14:])), NO_VIP)
    assert len(nat.balancer.nat_flows.entries()) == before


@pytest.mark.parametrize("version", [4, 6])
def test_fragments(nat: NatRig, version: int) -> None:
    """All of a packet pass, from either side, also where a flow of theirs is translated."""
    sent = nat.expect(client_frame(version, 6), TX)
    there, _ = entry_ends(sent)
    for number, packet in enumerate(
        (whole(version, 6), whole(version, ends=reversed_ends(there))), 1
    ):
        parts = [framed(each) for each in cut(authenticated(packet), 600, number)]
        for each in (*parts, *parts[1:]):
            assert nat.expect(each, FRAGMENT).key is None
        forget(nat)
        # Of those without the header only later ones that nobody knows are dropped.
        plain = [framed(each) for each in cut(packet, 600, 7)]
        if number == 1:
            nat.expect(plain[1], LOST)
        assert nat.expect(plain[0], TX)


@pytest.mark.parametrize("version", [4, 6])
def test_errors_that_quote_one(nat: NatRig, version: int) -> None:
    """Are about no flow that is translated, whatever the ports behind the header are."""
    sent = nat.expect(client_frame(version, 6), TX)
    back = nat.expect(answer(sent), TX)
    for to, quoted in (
        (entry_ends(sent)[0].source, sent.frame[14:]),
        (VIPS[version], back.frame[14:]),
    ):
        for quote, verdict in ((quoted, TX), (authenticated(quoted), OTHER_PROTOCOL)):
            made = framed(error(ROUTERS[version], to, quote, kind=TOO_BIG[version]))
            before = nat.counters()
            run = nat.run(made)
            moved = nat.moved(before, nat.counters())
            assert moved[verdict] == 1
            assert (run.data == made) == (verdict == OTHER_PROTOCOL)
            assert verdict == TX or moved == {OTHER_PROTOCOL: 1}


@pytest.mark.parametrize("version", [4, 6])
def test_beside_a_service_that_balances_them(nat: NatRig, version: int) -> None:
    """What a service can't do another one can."""
    tunnel = service(VIPS[version] + 1, *NEAR[version])
    nat.serve(*services(), tunnel)
    frame = client_frame(version, 6, vip=VIPS[version] + 1)
    plain = nat.expect(frame, TX)
    assert nat.expect(framed(authenticated(frame[14:])), TX).backend == plain.backend
