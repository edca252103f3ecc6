# SPDX-License-Identifier: Apache-2.0
"""A reset ends a flow that is known, and begins none: nothing is learnt from it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import TCP
from tests.prog.lb.frames import CLIENTS, VIPS, ether, ip
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import TX
from tests.prog.lb.test_reuse import KINDS, Reuse
from tests.prog.lb.wire_fragments import cut

from towpath.model import Backend, TracedPacket

if TYPE_CHECKING:
    from tests.prog.lb.oracle import Outcome

RESETS = ["R", "RA", "SR", "FR", "PR"]
PORTS = range(4000, 4020)


@pytest.fixture(params=KINDS)
def made(rig: Rig, request: pytest.FixtureRequest) -> Reuse:
    """Each way of forwarding that leaves packets as they are; nobody is known."""
    reuse = Reuse(rig, request.param)
    for name in ("flows", "flow_tags", "clients"):
        rig.balancer._program.rows(name).view("u1")[:] = 0
    rig.world.remembered.clear()
    rig.world.clients.clear()
    return reuse


def known(rig: Rig) -> tuple[int, int]:
    """How many flows and how many clients are remembered."""
    clients = rig.balancer._program.rows("clients")["way"]["ref"]
    return len(rig.balancer.flow_table.entries()), int((clients != 0).sum())


@pytest.mark.parametrize("flags", RESETS)
def test_a_reset_of_no_flow_goes_by_maglev(made: Reuse, flags: str) -> None:
    """It isn't counted as a flow, leaves nothing, and the next packet is a new flow's."""
    for port in PORTS:
        outcome = made.send(port, flags)
        assert outcome.key is not None
        assert outcome.flow is not None
        assert outcome.backend == made.rig.world.by_maglev(outcome.key, outcome.flow)
        assert not outcome.fresh
    assert known(made.rig) == (0, 0)
    assert made.send(PORTS[0], "S").fresh


def test_a_reset_follows_its_flow_and_ends_it(made: Reuse) -> None:
    """Though the table says otherwise by then."""
    had = {port: made.send(port, "A").backend for port in PORTS}
    heavy = (*made.web.backends, Backend(NEAR[made.outside][5], 50))
    made.rig.serve(replace(made.web, backends=heavy))
    for port, backend in had.items():
        outcome = made.send(port, "R")
        assert (outcome.backend, outcome.fresh) == (backend, False)
    assert made.rig.balancer.flow_table.entries().ending.all()


def test_a_reset_of_a_flow_whose_backend_is_gone(made: Reuse) -> None:
    """Goes to another, which doesn't have the flow from then on."""
    had = {port: made.send(port, "A").backend for port in PORTS}
    rest = [each for each in made.web.backends if each.address != had[PORTS[0]]]
    made.rig.serve(replace(made.web, backends=tuple(rest)))
    before = known(made.rig)
    mine = [port for port in PORTS if had[port] == had[PORTS[0]]]
    for port in mine:
        assert made.send(port, "R").backend in {each.address for each in rest}
    assert known(made.rig) == before
    assert made.send(mine[0], "A").fresh


def test_nor_does_a_clients_memory_grow_younger(rig: Rig) -> None:
    """Of a service with affinity: a client is as long away as if the reset had not come."""
    made = Reuse(rig, "affinity")
    began = made.send(PORTS[0], "S").backend
    table = rig.balancer._program.rows("clients")["way"]
    table["seen"][table["ref"] != 0] -= 100
    before = table.copy()
    assert made.send(PORTS[1], "R").backend == began
    assert (table == before).all()
    made.send(PORTS[1], "S")
    assert not (table == before).all()


@pytest.mark.parametrize("family", [4, 6])
def test_where_no_flow_is_remembered(rig: Rig, family: int) -> None:
    """Each packet is counted as a flow, as ever there."""
    rig.serve(service(VIPS[family], *NEAR[family], flow_table=False))
    made = ether() / ip(family) / TCP(sport=PORTS[0], dport=80, flags="R")
    assert rig.expect(bytes(made), TX).fresh


@pytest.mark.parametrize("kind", ["4in4", "6in6"])
def test_in_fragments(rig: Rig, kind: str) -> None:
    """All of them go to one backend, and nothing is left of the flow."""
    made = Reuse(rig, kind)
    whole = bytearray(made.send(4999, "R").frame[-27 - {4: 20, 6: 40}[made.family] :])
    rig.fragments.ways["ref"] = 0
    rig.world.fragments.clear()
    parts = cut(bytes(whole), 24, 7)
    link = bytes.fromhex("020000000002020000000001") + {4: b"\x08\0", 6: b"\x86\xdd"}[made.family]
    outcomes: list[Outcome] = [rig.check(link + each) for each in parts]
    assert len(parts) == 2
    assert len({each.backend for each in outcomes}) == 1
    assert {each.verdict for each in outcomes} == {"tx"}
    assert not any(each.fresh for each in outcomes)
    assert made.send(4999, "S").fresh


def test_a_trace_says_the_same(rig: Rig) -> None:
    """Of a flow that is known, and of one that isn't."""
    made = Reuse(rig, "4in4")
    owner = made.send(PORTS[0], "A").backend
    other = next(a for a in NEAR[4] if a != owner)
    rig.serve(
        replace(
            made.web,
            backends=tuple(
                replace(each, weight=50) if each.address == other else each
                for each in made.web.backends
            ),
        )
    )
    known_one, unknown = (
        rig.balancer.trace(TracedPacket.parse(f"{CLIENTS[4]}:{port} -> {VIPS[4]}:80 tcp rst"))
        for port in (PORTS[0], 9)
    )
    assert (known_one.backend, known_one.flow_hit) == (owner, True)
    assert (unknown.verdict, unknown.flow_hit) == ("tx", False)
    assert unknown.slot is not None
