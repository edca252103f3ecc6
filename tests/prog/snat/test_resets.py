# SPDX-License-Identifier: Apache-2.0
"""A reset of no flow that is translated is dropped: it would take a port and give it up at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import CLIENTS, VIPS
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import LOST, NO_VIP, TX
from tests.prog.lb.wire_fragments import cut
from tests.prog.snat.harness import NatRig, answer, client_frame, nat_rigged, snat_service
from tests.prog.snat.harness_fragments import forget, framed, whole
from tests.prog.snat.oracle import NO_FLOW, NO_HOP

from towpath.model import TracedPacket
from towpath.model.service import Affinity

BOTH_WAYS = True

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network

RESETS = ["R", "RA", "SR", "FR", "PR"]
SERVICES = {
    "plain": {},
    "affinity": {"affinity": Affinity(3600)},
}


@pytest.fixture(scope="module")
def translating(net: Network) -> Iterator[NatRig]:
    """A load balancer that translates."""
    with nat_rigged(net) as made:
        yield made


@pytest.fixture(params=SERVICES)
def nat(translating: NatRig, request: pytest.FixtureRequest) -> NatRig:
    """With no translations."""
    translating.serve()
    translating.empty()
    translating.serve(*(snat_service(v, **SERVICES[request.param]) for v in (4, 6)))
    return translating


def entries(nat: NatRig) -> int:
    """How many flows are translated, and clients known."""
    clients = nat.balancer._program.rows("clients")["way"]["ref"]
    return len(nat.balancer.nat_flows.entries()) + int((clients != 0).sum())


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("flags", RESETS)
def test_a_reset_of_no_flow(nat: NatRig, version: int, flags: str) -> None:
    """Is dropped under a name of its own, and leaves no flow, whatever came before it."""
    before = entries(nat)
    for port in range(5000, 5010):
        sent = client_frame(version, flags=flags, sport=port)
        outcome = nat.expect(sent, NO_FLOW)
        assert not outcome.fresh
    nat.expect(client_frame(version, flags=flags, hops=1), NO_HOP)
    assert entries(nat) == before
    assert nat.expect(client_frame(version, sport=5000), TX).fresh
    nat.expect(client_frame(version, flags=flags, sport=5000), TX)


@pytest.mark.parametrize("version", [4, 6])
def test_a_reset_of_a_flow_whose_backend_is_gone(nat: NatRig, version: int) -> None:
    """There is nobody to be told, and the port is free."""
    nat.serve(snat_service(version, NEAR[version][0]))
    sent = nat.expect(client_frame(version), TX)
    nat.serve(snat_service(version, NEAR[version][1]))
    nat.expect(client_frame(version, flags="R"), NO_FLOW)
    assert not len(nat.balancer.nat_flows.entries())
    nat.expect(answer(sent), NO_VIP)


@pytest.mark.parametrize("version", [4, 6])
def test_in_fragments(nat: NatRig, version: int) -> None:
    """The first one is dropped, and so are those that follow it."""
    forget(nat)
    first, *rest = (framed(each) for each in cut(whole(version, 6, flags="R"), 600, 3))
    nat.expect(first, NO_FLOW)
    for each in rest:
        nat.expect(each, LOST)


def test_a_trace_says_so(nat: NatRig) -> None:
    """And changes nothing."""
    asked = TracedPacket.parse(f"{CLIENTS[4]}:40000 -> {VIPS[4]}:80 tcp rst")
    found = nat.balancer.trace(asked)
    assert (found.verdict, found.backend, found.flow_hit) == (NO_FLOW, None, False)
    nat.expect(client_frame(4), TX)
    assert nat.balancer.trace(asked).verdict == TX
