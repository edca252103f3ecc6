# SPDX-License-Identifier: Apache-2.0
"""How long flows of UDP are translated, where their service says so itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import LOST, TX
from tests.prog.lb.wire_fragments import cut
from tests.prog.snat.harness import (
    NatRig,
    answer,
    client_frame,
    established,
    nat_rigged,
    port_of,
    snat_service,
)
from tests.prog.snat.harness_fragments import forget, framed, whole

from towpath.core.lb.states import BackendKey
from towpath.datapath.flows.nat_table import Wanted
from towpath.model import Backend, BackendState, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network

    from towpath.model import Service

VERSIONS = [4, 6]
USUAL, NEW = 60, 30
"""Seconds that flows last, with packets both ways and without, where nobody says otherwise."""
STEP = 3
"""Seconds, more than a step of the table's time has."""
PORTS = range(7000, 7010)


@pytest.fixture(scope="module")
def translating(net: Network) -> Iterator[NatRig]:
    """A load balancer that translates."""
    with nat_rigged(net) as made:
        yield made


@pytest.fixture
def nat(translating: NatRig) -> NatRig:
    """With no translations."""
    translating.serve()
    translating.empty()
    forget(translating)
    return translating


def dns(version: int, timeout: int | None, *more: Backend) -> Service:
    """Two backends, and others."""
    made = snat_service(version, *NEAR[version][:2], protocol=Protocol.UDP, flow_timeout=timeout)
    return replace(made, backends=(*made.backends, *more))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("timeout", [None, 10, 600])
def test_a_pause_ends_a_flow(nat: NatRig, version: int, timeout: int | None) -> None:
    """Its next packet is a new flow's, and may go to another backend. Not before."""
    seconds = timeout or USUAL
    nat.serve(dns(version, timeout))
    had = {port: established(nat, version, 17, port) for port in PORTS}
    heavy = Backend(NEAR[version][5], 200)
    nat.serve(dns(version, timeout, heavy))
    nat.later(seconds - STEP)
    for port, before in had.items():
        after = nat.expect(client_frame(version, 17, sport=port), TX)
        assert (after.backend, after.fresh) == (before.backend, False)
        assert port_of(after) == port_of(before)
    nat.later(seconds + STEP)
    again = [nat.expect(client_frame(version, 17, sport=port), TX) for port in PORTS]
    assert all(each.fresh for each in again)
    assert heavy.address in {each.backend for each in again}
    assert len(nat.balancer.nat_flows.entries()) == len(PORTS)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("timeout", [None, 10, 600])
def test_a_flow_that_nobody_has_answered(nat: NatRig, version: int, timeout: int | None) -> None:
    """Has 30 seconds, or what its service says if that is less."""
    seconds = min(timeout or USUAL, NEW)
    nat.serve(dns(version, timeout))
    assert nat.expect(client_frame(version, 17), TX).fresh
    nat.later(seconds - STEP)
    assert not nat.expect(client_frame(version, 17), TX).fresh
    nat.later(seconds + STEP)
    assert nat.expect(client_frame(version, 17), TX).fresh


@pytest.mark.parametrize("version", VERSIONS)
def test_an_answer_keeps_it(nat: NatRig, version: int) -> None:
    """As the client's packets do; a late one still finds its client, if nobody has its port."""
    nat.serve(dns(version, 10))
    sent = established(nat, version, 17, PORTS[0])
    for _ in range(3):
        nat.later(10 - STEP)
        nat.expect(answer(sent), TX)
    nat.later(10 + STEP)
    nat.expect(answer(sent), TX)
    assert not nat.expect(client_frame(version, 17, sport=PORTS[0]), TX).fresh


@pytest.mark.parametrize("version", VERSIONS)
def test_a_service_that_changes_its_mind(nat: NatRig, version: int) -> None:
    """Its flows have the new time from their next packet on, the table of flows tells it."""
    nat.serve(dns(version, None))
    established(nat, version, 17, PORTS[0])
    step = nat.balancer.nat_flows.resolution_seconds
    for timeout in (600, 10, None):
        nat.serve(dns(version, timeout))
        assert not nat.expect(client_frame(version, 17, sport=PORTS[0]), TX).fresh
        found = nat.balancer.nat_flows.entries()
        assert (timeout or USUAL) - step <= found.remaining_seconds[0] <= (timeout or USUAL) + step


@pytest.mark.parametrize("version", VERSIONS)
def test_ports_used_again_leave_a_backend_that_drains(nat: NatRig, version: int) -> None:
    """And the drain doesn't wait for flows whose time is over."""
    plain = dns(version, 10)
    nat.serve(plain)
    had = {port: established(nat, version, 17, port).backend for port in PORTS}
    gone = had[PORTS[0]]
    drained = tuple(
        replace(each, state=BackendState.DRAINING) if each.address == gone else each
        for each in plain.backends
    )
    nat.serve(replace(plain, backends=drained))
    assert gone is not None
    key = BackendKey(plain.key, gone)
    count = nat.balancer.flow_counter([key]).count
    mine = sum(each == gone for each in had.values())
    assert count(300) == {key: mine}
    nat.later(10 + STEP)
    assert count(300) == {key: 0}
    for port in PORTS:
        assert nat.expect(client_frame(version, 17, sport=port), TX).backend != gone


@pytest.mark.parametrize("version", VERSIONS)
def test_one_whose_time_is_over_gives_its_place(nat: NatRig, version: int) -> None:
    """Each entry by its own service's time, whoever wants its way."""
    slow = replace(dns(version, 600), name="slow", port=81)
    nat.serve(dns(version, 10), slow)
    ports = list(PORTS)
    for port in ports:
        established(nat, version, 17, port)
        sent = nat.expect(client_frame(version, 17, sport=port, dport=81), TX)
        nat.expect(answer(sent), TX)
        nat.expect(client_frame(version, 17, sport=port, dport=81), TX)
    nat.later(20)
    table = nat.balancer.nat_flows
    assert sorted(table.entries().vip_ports.tolist()) == [81] * len(ports)
    everything = table.entries(Wanted(expired=True))
    assert sorted(everything.vip_ports.tolist()) == [80] * len(ports) + [81] * len(ports)
    assert (everything.expired == (everything.vip_ports == 80)).all()


@pytest.mark.parametrize("version", VERSIONS)
def test_later_fragments_of_a_flow_that_has_ended(nat: NatRig, version: int) -> None:
    """Are lost, as those of any flow that isn't there; the first one would have begun it."""
    nat.serve(dns(version, 10))
    parts = [framed(each) for each in cut(whole(version, 17), 600, 3)]
    for each in parts:
        nat.expect(each, TX)
    nat.later(10 + STEP)
    nat.expect(parts[1], LOST)
    for each in parts:
        nat.expect(each, TX)


@pytest.mark.parametrize("version", VERSIONS)
def test_connections_have_their_own_time(nat: NatRig, version: int) -> None:
    """A segment that begins none brings its flow back, as long as nobody has its port."""
    nat.serve(snat_service(version, *NEAR[version]))
    sent = established(nat, version, 6, PORTS[0])
    assert not nat.balancer._program.rows("nat_flows")["way"]["timeout"].any()
    nat.later(7200 + STEP)
    after = nat.expect(client_frame(version, 6, sport=PORTS[0], flags="A"), TX)
    assert (after.fresh, port_of(after)) == (False, port_of(sent))


def test_the_longest_time_fits(nat: NatRig) -> None:
    """In 16 bits of steps, whatever the kernel's clock."""
    nat.serve(dns(4, 1800))
    established(nat, 4, 17, PORTS[0])
    timeout = nat.balancer._program.rows("nat_flows")["way"]["timeout"].max()
    assert timeout == np.uint16(-(-1800 // nat.balancer.nat_flows.resolution_seconds))
