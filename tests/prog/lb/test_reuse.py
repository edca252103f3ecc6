# SPDX-License-Identifier: Apache-2.0
"""A client's port that is used again, while the backend that had it takes no new flows.

A SYN then begins a new flow, elsewhere, if the old one has ended, has never been more than
SYNs, or was idle for long. One that goes on is not moved by a SYN, which may be forged
(RFC 5961, 4).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scapy.layers.inet import TCP
from scapy.packet import Raw
from tests.prog.lb.frames import CLIENTS, VIPS, ether, frame, ip
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import NO_BACKEND, TX
from tests.prog.lb.oracle_flows import IDLE_SECONDS

from towpath.core.lb.states import BackendKey
from towpath.datapath.flows.count import ENDED_SECONDS
from towpath.kernel.jiffies import per_second
from towpath.model import Backend, BackendState, Protocol, TracedPacket
from towpath.model.service import Affinity

if TYPE_CHECKING:
    from tests.prog.lb.oracle import Outcome

    from towpath.model import Service

KINDS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "4in4": (4, 4, {}),
    "4in6": (4, 6, {}),
    "6in6": (6, 6, {}),
    "l2 v4": (4, 4, {"forwarding": "l2"}),
    "l2 v6": (6, 6, {"forwarding": "l2"}),
    "affinity": (4, 4, {"affinity": Affinity(3600)}),
}
AWAY: dict[str, dict[str, Any]] = {
    "draining": {"state": BackendState.DRAINING},
    "quarantined": {"state": BackendState.QUARANTINED},
    "weight 0": {"weight": 0},
}
WAYS = [*((kind, "draining") for kind in KINDS), ("4in4", "quarantined"), ("4in4", "weight 0")]
PORTS = range(3000, 3008)
ENDED = (["S", "A", "FA"], ["S", "A", "R"], ["S", "A", "RA"], ["A", "FA", "A"], ["FA"])
ONLY_SYNS = (["S"], ["S", "S", "S"], ["A", "FA", "S"])
GOES_ON = (["S", "A"], ["A"], ["S", "PA", "S"], ["A", "S", "S", "A"], ["A", "SA"])


class Reuse:
    """A service of four backends, of which those that had flows can be sent away."""

    def __init__(self, rig: Rig, kind: str) -> None:
        self.rig = rig
        self.family, self.outside, fields = KINDS[kind]
        self.web = service(VIPS[self.family], *NEAR[self.outside][:4], **fields)
        rig.serve()
        rig.serve(self.web)

    def send(self, port: int, flags: str, verdict: str = TX) -> Outcome:
        """A segment of the flow from a port."""
        tcp = TCP(sport=port, dport=80, flags=flags) / Raw(b"towpath")
        return self.rig.expect(bytes(ether() / ip(self.family) / tcp), verdict)

    def send_away(self, address: Any, **fields: Any) -> None:
        """Have one of the backends take no new flows, or all for None."""
        self.rig.serve(away(self.web, address, **fields))

    def grow_older(self, seconds: float) -> None:
        """Have every flow been seen so much longer ago."""
        ways = self.rig.balancer._program.rows("flows")["way"]
        units = int(seconds * per_second()) >> 6
        ways["seen"][ways["ref"] != 0] -= np.uint16(units)
        for each in self.rig.world.lives.values():
            each.seconds_ago += seconds


def away(web: Service, address: Any, **fields: Any) -> Service:
    """The service with one of its backends changed, or with all of them for None."""
    return replace(
        web,
        backends=tuple(
            replace(each, **fields) if address in (None, each.address) else each
            for each in web.backends
        ),
    )


@pytest.fixture(params=KINDS)
def reuse(rig: Rig, request: pytest.FixtureRequest) -> Reuse:
    """Each way of forwarding that leaves packets as they are."""
    return Reuse(rig, request.param)


@pytest.mark.parametrize(("kind", "how"), WAYS)
@pytest.mark.parametrize("before", [*ENDED, *ONLY_SYNS], ids=" ".join)
def test_a_port_used_again_leaves_a_backend_that_takes_no_flows(
    rig: Rig, before: list[str], kind: str, how: str
) -> None:
    """And what follows the SYN follows it; once more an active backend keeps it."""
    reuse = Reuse(rig, kind)
    had = {port: [reuse.send(port, flags) for flags in before][-1].backend for port in PORTS}
    gone = had[PORTS[0]]
    reuse.send_away(gone, **AWAY[how])
    for port, backend in had.items():
        began = reuse.send(port, "S")
        assert began.backend != gone
        assert began.fresh == (backend == gone)
        if backend != gone:
            assert began.backend == backend
        for flags in ("S", "A", "PA", "FA", "A"):
            after = reuse.send(port, flags)
            assert (after.backend, after.fresh) == (began.backend, False)


@pytest.mark.parametrize(("kind", "how"), WAYS)
@pytest.mark.parametrize("before", GOES_ON, ids=" ".join)
def test_a_forged_syn_moves_nothing(rig: Rig, before: list[str], kind: str, how: str) -> None:
    """However many come, nor do they end the flow or make it one that has only begun."""
    reuse = Reuse(rig, kind)
    had = {port: [reuse.send(port, flags) for flags in before][-1].backend for port in PORTS}
    gone = had[PORTS[0]]
    reuse.send_away(gone, **AWAY[how])
    for port, backend in had.items():
        for flags in ("S", "S", "PA", "S", "A", "SA", "S"):
            after = reuse.send(port, flags)
            assert (after.backend, after.fresh) == (backend, False)


def test_idle_for_long(reuse: Reuse) -> None:
    """Longer than the stated time, and not a second less; other segments go where they went."""
    for seconds, moves in ((IDLE_SECONDS - 3, False), (IDLE_SECONDS + 3, True)):
        reuse.rig.serve()
        reuse.rig.serve(reuse.web)
        had = {port: reuse.send(port, "A").backend for port in PORTS}
        gone = had[PORTS[0]]
        reuse.send_away(gone, state=BackendState.DRAINING)
        mine = [port for port in PORTS if had[port] == gone]
        reuse.grow_older(seconds)
        if len(mine) > 1:
            assert reuse.send(mine[-1], "A").backend == gone
            assert reuse.send(mine[-1], "S").backend == gone
        assert (reuse.send(mine[0], "S").backend != gone) == moves


def test_nobody_takes_it(reuse: Reuse) -> None:
    """As any new flow where no backend is active; the entry is left as it was."""
    owner = reuse.send(PORTS[0], "S").backend
    reuse.send_away(None, state=BackendState.DRAINING)
    assert reuse.send(PORTS[0], "S", NO_BACKEND).fresh
    reuse.rig.serve(reuse.web)
    assert not reuse.send(PORTS[0], "S").fresh
    assert reuse.send(PORTS[0], "A").backend == owner


def test_an_active_backend_keeps_its_clients_ports(reuse: Reuse) -> None:
    """Whatever else changes, and even if the table would say otherwise."""
    had = {port: [reuse.send(port, flags) for flags in ("S", "A", "FA")][-1] for port in PORTS}
    reuse.rig.serve(
        replace(reuse.web, backends=(*reuse.web.backends, Backend(NEAR[reuse.outside][4])))
    )
    for port, before in had.items():
        after = reuse.send(port, "S")
        assert (after.backend, after.fresh) == (before.backend, False)


def test_a_drain_doesnt_wait_for_syns(rig: Rig) -> None:
    """A connection that nobody has answered is counted as long as one that has ended."""
    reuse = Reuse(rig, "4in4")
    for port in PORTS:
        reuse.send(port, "S")
    reuse.send(PORTS[0], "A")
    keys = [BackendKey(reuse.web.key, each.address) for each in reuse.web.backends]
    count = rig.balancer.flow_counter(keys).count
    assert sum(count(IDLE_SECONDS).values()) == len(PORTS)
    reuse.grow_older(ENDED_SECONDS + 1)
    assert sum(count(IDLE_SECONDS).values()) == 1
    found = rig.balancer.flow_table.entries()
    assert sorted(found.opening.tolist()) == [False] + [True] * (len(PORTS) - 1)
    assert not found.ending.any()


def test_datagrams_have_no_flags(rig: Rig) -> None:
    """Whatever is where a segment has its flags: a flow of UDP goes on."""
    rig.serve()
    dns = service(VIPS[4], *NEAR[4][:4], protocol=Protocol.UDP)
    rig.serve(dns)
    datagrams = [frame(4, 17, sport=port, payload=b"\x02" * 40) for port in PORTS]
    had = [rig.expect(each, TX).backend for each in datagrams]
    rig.serve(away(dns, had[0], state=BackendState.DRAINING))
    assert [rig.expect(each, TX).backend for each in datagrams] == had


def test_a_trace_of_a_syn_says_where_it_would_go(rig: Rig) -> None:
    """And leaves the flow as it is."""
    reuse = Reuse(rig, "4in4")
    owner = [reuse.send(PORTS[0], flags) for flags in ("S", "A", "FA")][-1].backend
    reuse.send_away(owner, state=BackendState.DRAINING)
    ways = rig.balancer._program.rows("flows")["way"]
    before = ways.copy()
    flow = f"{CLIENTS[4]}:{PORTS[0]} -> {VIPS[4]}:80 tcp"
    asks = rig.balancer.trace(TracedPacket.parse(f"{flow} syn"))
    assert asks.backend != owner
    assert not asks.flow_hit
    goes_on = rig.balancer.trace(TracedPacket.parse(flow))
    assert (goes_on.backend, goes_on.flow_hit) == (owner, True)
    assert (ways == before).all()
