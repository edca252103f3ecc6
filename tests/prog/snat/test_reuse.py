# SPDX-License-Identifier: Apache-2.0
"""A client's port that is used again, where packets are translated: see lb/test_reuse.py."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import NO_BACKEND, NO_VIP, TX
from tests.prog.lb.oracle_flows import IDLE_SECONDS
from tests.prog.snat.harness import NatRig, answer, client_frame, nat_rigged, snat_service
from tests.prog.snat.oracle import NatOutcome

from towpath.model import BackendState

BOTH_WAYS = True

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network
    from tests.prog.lb.oracle import Outcome
    from tests.prog.lb.oracle_parse import Address

AWAY: dict[str, dict[str, Any]] = {
    "draining": {"state": BackendState.DRAINING},
    "quarantined": {"state": BackendState.QUARANTINED},
    "weight 0": {"weight": 0},
}
WAYS = [(4, "draining"), (6, "draining"), (4, "quarantined"), (4, "weight 0")]
PORTS = range(3000, 3008)
STEP = 3
"""Seconds, more than a step of the table's time has."""


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
    return translating


def serve(nat: NatRig, version: int, gone: Address | None = None, **fields: Any) -> None:
    """Three backends, one of them with other fields."""
    web = snat_service(version, *NEAR[version][:3])
    changed = (replace(b, **fields) if b.address == gone else b for b in web.backends)
    nat.serve(replace(web, backends=tuple(changed)))


def went(nat: NatRig, version: int, port: int, *steps: str) -> Outcome:
    """Segments of the client, those of its backend written ``<flags``; the client's last."""
    outcome: Outcome | None = None
    for step in steps:
        if step.startswith("<"):
            assert outcome is not None
            nat.expect(answer(outcome, flags=step[1:]), TX)
        else:
            outcome = nat.expect(client_frame(version, sport=port, flags=step), TX)
    assert outcome is not None
    return outcome


OVER = (
    ("S",),
    ("S", "S"),
    ("S", "<SA"),
    ("S", "<SA", "A", "<FA", "FA"),
    ("S", "<SA", "A", "R"),
    ("S", "<RA"),
)
GOES_ON = (("S", "<SA", "A"), ("S", "<SA", "A", "S"), ("S", "<SA", "A", "FA", "A"))


@pytest.mark.parametrize(("version", "how"), WAYS)
@pytest.mark.parametrize("before", OVER, ids=" ".join)
def test_a_port_used_again_leaves_a_backend_that_takes_no_flows(
    nat: NatRig, version: int, before: tuple[str, ...], how: str
) -> None:
    """With all that follows, and the old backend's answers are nobody's any more."""
    serve(nat, version)
    had = {port: went(nat, version, port, *before) for port in PORTS}
    gone = had[PORTS[0]].backend
    serve(nat, version, gone, **AWAY[how])
    for port, old in had.items():
        began = nat.expect(client_frame(version, sport=port), TX)
        assert began.backend != gone
        if old.backend == gone:
            assert began.fresh
            nat.expect(answer(old), NO_VIP)
        nat.expect(answer(began), TX)
        for flags in ("A", "PA"):
            after = nat.expect(client_frame(version, sport=port, flags=flags), TX)
            assert (after.backend, after.fresh) == (began.backend, False)


@pytest.mark.parametrize(("version", "how"), WAYS)
@pytest.mark.parametrize("before", GOES_ON, ids=" ".join)
def test_a_forged_syn_moves_nothing(
    nat: NatRig, version: int, before: tuple[str, ...], how: str
) -> None:
    """Nor does it change what the flow is translated to."""
    serve(nat, version)
    had = {port: went(nat, version, port, *before) for port in PORTS}
    gone = had[PORTS[0]].backend
    serve(nat, version, gone, **AWAY[how])
    for port, old in had.items():
        for flags in ("S", "PA", "S", "A"):
            after = nat.expect(client_frame(version, sport=port, flags=flags), TX)
            assert isinstance(old, NatOutcome)
            assert isinstance(after, NatOutcome)
            assert after.entry is old.entry
        nat.expect(answer(old, flags="A"), TX)


def test_idle_for_long(nat: NatRig) -> None:
    """Longer than the stated time; a backend that takes flows keeps them for longer."""
    for seconds, moves in ((IDLE_SECONDS - STEP, False), (IDLE_SECONDS + STEP, True)):
        nat.serve()
        nat.empty()
        serve(nat, 4)
        owner = went(nat, 4, PORTS[0], "S", "<SA", "A").backend
        nat.later(seconds)
        if moves:
            assert not nat.expect(client_frame(sport=PORTS[0]), TX).fresh
            nat.later(seconds)
        serve(nat, 4, owner, state=BackendState.DRAINING)
        again = nat.expect(client_frame(sport=PORTS[0]), TX)
        assert (again.backend != owner, again.fresh) == (moves, moves)


def test_nobody_takes_it(nat: NatRig) -> None:
    """As any new flow where no backend is active."""
    web = snat_service(4, NEAR[4][0])
    nat.serve(web)
    went(nat, 4, PORTS[0], "S")
    (only,) = web.backends
    nat.serve(replace(web, backends=(replace(only, state=BackendState.DRAINING),)))
    assert nat.expect(client_frame(sport=PORTS[0]), NO_BACKEND).fresh
