# SPDX-License-Identifier: Apache-2.0
"""A flow of UDP ends when no packet came for its service's time: what comes then is another's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scapy.layers.inet import UDP
from scapy.packet import Raw
from tests.prog.lb.frames import CLIENTS, VIPS, ether, frame, ip
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import NO_BACKEND, TX
from tests.prog.lb.test_icmp_errors import answered, error
from tests.prog.lb.test_reuse import KINDS, away
from tests.prog.lb.wire_fragments import cut

from towpath.core.lb.states import BackendKey
from towpath.datapath.lb.contents import Contents
from towpath.kernel.jiffies import per_second
from towpath.model import Backend, BackendState, FlowTuple, Protocol

if TYPE_CHECKING:
    from typing import Any

    from tests.prog.lb.oracle import Outcome

    from towpath.model import Service

PORTS = range(6000, 6016)
TIMEOUTS = [None, 5, 30, 1800]
USUAL = 300


class Datagrams:
    """A service for UDP, of whose flows all are known."""

    def __init__(self, rig: Rig, kind: str, timeout: int | None) -> None:
        self.rig = rig
        self.family, self.outside, fields = KINDS[kind]
        self.seconds = timeout or USUAL
        self.dns = service(
            VIPS[self.family],
            *NEAR[self.outside][:4],
            protocol=Protocol.UDP,
            flow_timeout=timeout,
            **fields,
        )
        rig.serve()
        for name in ("flows", "flow_tags", "clients"):
            rig.balancer._program.rows(name).view(np.uint8)[:] = 0
        rig.world.remembered.clear()
        rig.world.lives.clear()
        rig.world.clients.clear()
        rig.serve(self.dns)

    def send(self, port: int, verdict: str = TX) -> Outcome:
        """A datagram of the flow from a port."""
        return self.rig.expect(frame(self.family, 17, sport=port), verdict)

    def all(self) -> dict[int, Outcome]:
        """One of each flow."""
        return {port: self.send(port) for port in PORTS}

    def weigh(self) -> Any:
        """Another table: most new flows go to a backend that had none. Returns which."""
        heavy = Backend(NEAR[self.outside][5], 200)
        self.rig.serve(replace(self.dns, backends=(*self.dns.backends, heavy)))
        return heavy.address

    def grow_older(self, seconds: float) -> None:
        """Have every flow been seen so much longer ago."""
        ways = self.rig.balancer._program.rows("flows")["way"]
        ways["seen"][ways["ref"] != 0] -= np.uint16(int(seconds * per_second()) >> 6)
        for each in self.rig.world.lives.values():
            each.seconds_ago += seconds


@pytest.fixture(params=[(kind, t) for kind in KINDS for t in TIMEOUTS if kind == "4in4" or t == 5])
def dns(rig: Rig, request: pytest.FixtureRequest) -> Datagrams:
    """Each way of forwarding that leaves packets as they are."""
    return Datagrams(rig, *request.param)


def test_a_pause_ends_a_flow(dns: Datagrams) -> None:
    """Of the stated time and not a second less; after it the table says where the next one goes."""
    had = dns.all()
    heavy = dns.weigh()
    dns.grow_older(dns.seconds - 2)
    assert {port: each.backend for port, each in dns.all().items()} == {
        port: each.backend for port, each in had.items()
    }
    assert not any(each.fresh for each in dns.all().values())
    dns.grow_older(dns.seconds + 2)
    again = dns.all()
    assert all(each.fresh for each in again.values())
    if not dns.dns.affinity:
        assert heavy in {each.backend for each in again.values()}
    # It is the one that is remembered from then on.
    dns.rig.serve(dns.dns)
    kept = {port: each.backend for port, each in again.items() if each.backend != heavy}
    assert {port: dns.send(port).backend for port in kept} == kept


def test_a_flow_that_goes_on_keeps_its_backend(dns: Datagrams) -> None:
    """However long it lasts, if no pause is too long."""
    had = dns.all()
    dns.weigh()
    for _ in range(4):
        dns.grow_older(dns.seconds * 0.7)
        for port, before in had.items():
            after = dns.send(port)
            assert (after.backend, after.fresh) == (before.backend, False)


def test_ports_used_again_leave_a_backend_that_drains(dns: Datagrams) -> None:
    """After a pause, as a client's SYN does; not in the midst of a flow."""
    had = {port: each.backend for port, each in dns.all().items()}
    gone = had[PORTS[0]]
    dns.rig.serve(away(dns.dns, gone, state=BackendState.DRAINING))
    assert {port: each.backend for port, each in dns.all().items()} == had
    dns.grow_older(dns.seconds + 2)
    assert gone not in {each.backend for each in dns.all().values()}


def test_nobody_takes_it(dns: Datagrams) -> None:
    """As any new flow where no backend is active."""
    dns.all()
    dns.rig.serve(away(dns.dns, None, state=BackendState.DRAINING))
    assert not dns.send(PORTS[0]).fresh
    dns.grow_older(dns.seconds + 2)
    assert dns.send(PORTS[0], NO_BACKEND).fresh


def test_a_service_that_changes_its_mind(rig: Rig) -> None:
    """Has its flows go by the new time at once, those that there are among them."""
    dns = Datagrams(rig, "4in4", None)
    dns.all()
    dns.grow_older(20)
    assert not dns.send(PORTS[0]).fresh
    rig.serve(replace(dns.dns, flow_timeout=10))
    assert not dns.send(PORTS[0]).fresh
    assert dns.send(PORTS[1]).fresh
    rig.serve(replace(dns.dns, flow_timeout=None))
    assert not dns.send(PORTS[2]).fresh


def test_a_trace_and_an_error_see_it_and_change_nothing(rig: Rig) -> None:
    """They go where the next datagram goes."""
    dns = Datagrams(rig, "4in4", 10)
    had = dns.send(PORTS[0]).backend
    flow = FlowTuple.parse(f"{CLIENTS[4]}:{PORTS[0]} -> {VIPS[4]}:80 udp")
    heavy = dns.weigh()
    asked = rig.balancer.trace(flow)
    assert (asked.backend, asked.flow_hit) == (had, True)
    dns.grow_older(12)
    ways = rig.balancer._program.rows("flows")["way"]
    before = ways.copy()
    asked = rig.balancer.trace(flow)
    assert not asked.flow_hit
    told = rig.expect(error(answered(4, 17, client_port=PORTS[0])), TX)
    assert (told.backend, told.fresh) == (asked.backend, False)
    assert (ways == before).all()
    assert dns.send(PORTS[0]).backend == asked.backend
    assert heavy in {dns.send(port).backend for port in PORTS}


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_of_the_datagram_that_begins_anew(rig: Rig, family: int) -> None:
    """Go where the first one goes."""
    dns = Datagrams(rig, {4: "4in4", 6: "6in6"}[family], 10)
    dns.all()
    dns.weigh()
    dns.grow_older(12)
    for port in PORTS:
        whole = bytes(ip(family) / UDP(sport=port, dport=80) / Raw(bytes(1500)))
        kind = {4: b"\x08\0", 6: b"\x86\xdd"}[family]
        parts = [bytes(ether())[:12] + kind + each for each in cut(whole, 600, port)]
        outcomes = [rig.expect(each, TX) for each in parts]
        assert len({each.backend for each in outcomes}) == 1
        assert [each.fresh for each in outcomes] == [True, False, False]


def test_segments_are_no_datagrams(rig: Rig) -> None:
    """A TCP connection goes on after any pause, and a flow of UDP beside it has its own time."""
    web = service(VIPS[4], *NEAR[4][:4])
    dns = Datagrams(rig, "4in4", 5)
    rig.serve(web, dns.dns)
    had = {port: rig.expect(frame(4, 6, sport=port), TX).backend for port in PORTS}
    dns.all()
    rig.serve(replace(web, backends=(*web.backends, Backend(NEAR[4][5], 200))), dns.dns)
    dns.grow_older(1000)
    assert {port: rig.expect(frame(4, 6, sport=port), TX).backend for port in PORTS} == had
    assert all(each.fresh for each in dns.all().values())


@pytest.mark.parametrize("timeout", [None, 20])
def test_a_drain_doesnt_wait_for_a_flow_that_has_ended(rig: Rig, timeout: int | None) -> None:
    """Nor for one that the drain says has ended."""
    dns = Datagrams(rig, "4in4", timeout)
    dns.all()
    keys = [BackendKey(dns.dns.key, each.address) for each in dns.dns.backends]
    count = rig.balancer.flow_counter(keys).count
    assert sum(count(1000).values()) == len(PORTS)
    dns.grow_older(dns.seconds - 8)
    assert sum(count(1000).values()) == len(PORTS)
    assert sum(count(10).values()) == 0
    dns.grow_older(10)
    assert sum(count(1000).values()) == 0


def test_it_is_read_back(rig: Rig) -> None:
    """By whoever takes over."""
    services: list[Service] = [
        service(VIPS[4], *NEAR[4][:2], protocol=Protocol.UDP, flow_timeout=seconds, port=port)
        for port, seconds in enumerate((1, 30, None, 1800), 80)
    ]
    rig.serve(*services)
    heir = Contents(rig.balancer._maps)
    heir.adopt()
    assert [each.flow_timeout for each in heir.observed()] == [1, 30, None, 1800]
