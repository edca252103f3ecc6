# SPDX-License-Identifier: Apache-2.0
"""What was found about backends, laid over what is wished."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from towpath.core.lb.states import BackendKey, effective
from towpath.model import Backend, BackendState, Service

VIP = ip_address("203.0.113.10")
A, B, C = (ip_address(f"192.0.2.{host}") for host in (1, 2, 3))
ACTIVE, DRAINING, QUARANTINED, DOWN = BackendState


def web(**states: BackendState) -> Service:
    """A service of A, B and C, active where nothing else is said."""
    names = {"a": A, "b": B, "c": C}
    backends = (Backend(at, 1, states.get(name, ACTIVE)) for name, at in names.items())
    return Service("web", VIP, 80, backends=tuple(backends))


KEY = web().key


@pytest.mark.parametrize(
    ("wish", "finding", "result"),
    [
        (ACTIVE, ACTIVE, ACTIVE),
        (ACTIVE, QUARANTINED, QUARANTINED),
        (ACTIVE, DOWN, DOWN),
        (QUARANTINED, ACTIVE, QUARANTINED),
        (DRAINING, ACTIVE, DRAINING),
        (DRAINING, QUARANTINED, DRAINING),
        (DRAINING, DOWN, DOWN),
        (DOWN, ACTIVE, DOWN),
        (DOWN, QUARANTINED, DOWN),
    ],
)
def test_the_worse_of_wish_and_finding_holds(
    wish: BackendState, finding: BackendState, result: BackendState
) -> None:
    """For that backend; nothing is said of the others."""
    assert effective([web(a=wish)], {BackendKey(KEY, A): finding}) == (web(a=result),)


def test_what_nothing_was_found_about_is_the_very_object() -> None:
    """So that a plan sees at a glance that nothing changes."""
    one, other = web(), Service("other", VIP, 81, backends=web().backends)
    assert effective([one, other], {})[0] is one
    found = effective([one, other], {BackendKey(KEY, A): DOWN})
    assert found[0] == web(a=DOWN)
    assert found[1] is other
    gone = {BackendKey(KEY, ip_address("192.0.2.9")): DOWN, BackendKey(KEY, A): ACTIVE}
    assert effective([one], gone)[0] is one


def test_findings_about_all_hold() -> None:
    """Also where nobody is left for new flows."""
    verdicts = {BackendKey(KEY, address): QUARANTINED for address in (A, B, C)}
    closed = web(a=QUARANTINED, b=QUARANTINED, c=QUARANTINED)
    assert effective([web()], verdicts) == (closed,)


def test_nobody_to_fall_back_on() -> None:
    """Where the wish alone leaves nobody, the finding holds: it ends flows, if nothing else."""
    one = web(a=DRAINING, b=DRAINING, c=DRAINING)
    verdicts = {BackendKey(KEY, A): DOWN}
    assert effective([one], verdicts) == (web(a=DOWN, b=DRAINING, c=DRAINING),)
