# SPDX-License-Identifier: Apache-2.0
"""Who leaves, for how long, and how that is told."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from towpath.core.lb.plan import plan
from towpath.core.lb.states import BackendKey
from towpath.core.lb.terminating import (
    Terminating,
    TerminatingByKey,
    find_terminating,
    merge_terminating,
    plan_terminating,
)
from towpath.model import Backend, BackendState, Quic, Service
from towpath.model.kinds import Ports

if TYPE_CHECKING:
    from towpath.documents import Plan

VIP = ip_address("203.0.113.10")
A, B, C = (ip_address(f"192.0.2.{host}") for host in (1, 2, 3))
NOW, TIMEOUT = 1000.0, 60.0


def web(*addresses: object, **fields: Any) -> Service:
    """A service of these backends."""
    backends = tuple(Backend(ip_address(str(each))) for each in addresses)
    return replace(Service("web", VIP, 80, backends=backends, table_size=251), **fields)


KEY = web().key


def terminating(service: Service, address: object, since: float = NOW) -> TerminatingByKey:
    """One that left at a time."""
    each = Terminating(*service.key[:3], ip_address(str(address)), since, since + TIMEOUT)
    return {each.key: each}


def gone(
    observed: Service, desired: Service, known: TerminatingByKey | None = None, **more: Any
) -> TerminatingByKey:
    """Who leaves when that becomes desired."""
    options: dict[str, Any] = {"now": NOW, "timeout": TIMEOUT} | more
    return find_terminating([observed], [desired], known or {}, **options)


def test_what_is_there_and_not_desired_leaves() -> None:
    """For as long as is said; whoever is desired does not."""
    assert gone(web(A, B), web(A)) == terminating(web(), B)
    assert gone(web(A), web(A, B)) == {}
    assert gone(web(A), web(A)) == {}


def test_who_leaves_is_named_until_another_has_the_id() -> None:
    """Connection ids go on naming it, as its connections go on."""
    ids = Quic(length=1)
    one, other = Backend(A, server_id=(7, 9)), Backend(B, server_id=(8,))
    served = web(quic=ids, backends=(one, other))
    left = replace(served, backends=(other,))
    leaving = gone(served, left)
    assert [each.server_id for each in leaving.values()] == [(7, 9)]
    (merged,) = merge_terminating([left], leaving)
    assert [(each.address, each.server_id) for each in merged.backends] == [(B, (8,)), (A, (7, 9))]
    taken = replace(left, backends=(replace(other, server_id=(7,)),))
    (merged,) = merge_terminating([taken], gone(served, taken))
    assert [(each.address, each.server_id) for each in merged.backends] == [(B, (7,)), (A, (9,))]


def test_a_service_takes_its_backends_along() -> None:
    """Packets to a VIP that isn't there pass to the kernel: there are no flows to keep."""
    assert find_terminating([web(A)], [], {}, now=NOW, timeout=TIMEOUT) == {}


def test_times_stay() -> None:
    """A change of something else begins nothing anew, nor does a longer or no timeout."""
    known = terminating(web(), B, NOW - 30)
    for timeout in (TIMEOUT, 1000.0, 0.0):
        assert gone(web(A, B), web(A), known, timeout=timeout) == known


def test_other_ports_change_nothing() -> None:
    """The service goes on under another key, and so does who leaves it."""
    moved = web(A, port=Ports.of([(80, 81)]))
    assert gone(web(A, B), moved, terminating(web(), B, NOW - 30)) == terminating(
        moved, B, NOW - 30
    )


def test_without_flows_to_keep_nobody_leaves() -> None:
    """No time, no flow table, down, or by force: removed at once."""
    assert gone(web(A, B), web(A), timeout=0) == {}
    assert gone(web(A, B, flow_table=False), web(A, flow_table=False)) == {}
    down = Backend(B, 1, BackendState.DOWN)
    assert gone(web(A, backends=(down,)), web(A)) == {}
    forced = BackendKey(KEY, B)
    assert gone(web(A, B, C), web(A), at_once=forced.__eq__) == terminating(web(), C)


def test_they_drain_without_weight() -> None:
    """Only services that somebody leaves are other objects."""
    one, other = web(A), Service("other", VIP, 81)
    found = merge_terminating([one, other], terminating(web(), B))
    assert found[0].backends == (Backend(A), Backend(B, 0, BackendState.DRAINING))
    assert found[1] is other
    assert merge_terminating([one], {})[0] is one


def test_it_stays_where_it_was_until_the_end() -> None:
    """At its port, which new flows go to until the table is without it; on this node, if it was."""
    here = replace(web(A, B), backends=(Backend(A), Backend(B, port=8080, local=True)))
    (found,) = merge_terminating([web(A)], gone(here, web(A)))
    assert found.backends[1] == Backend(B, 0, BackendState.DRAINING, port=8080, local=True)


def changed(
    before: Service, after: Service, was: TerminatingByKey, leaves: TerminatingByKey
) -> Plan:
    """A plan as it is told."""
    made = plan(merge_terminating([before], was), merge_terminating([after], leaves))
    return plan_terminating(made.plan, was, leaves)


def test_it_is_told_as_it_is_meant() -> None:
    """Who leaves is removed, who comes back is added; who is gone is removed, in the end."""
    nobody: TerminatingByKey = {}
    b = terminating(web(), B)
    (change,) = changed(web(A, B), web(A), nobody, b).changes
    assert change.backends_removed == (B,)
    assert change.backends_leaving == change.backends_removed
    assert change.backends_reweighted == change.backends_restated == ()
    assert change.moved == pytest.approx(0.5, abs=0.01)

    (change,) = changed(web(A), web(A, B), b, nobody).changes
    assert change.backends_added == (B,)
    assert change.backends_reweighted == change.backends_restated == ()

    (change,) = changed(web(A), web(A), b, nobody).changes
    assert change.backends_removed == (B,)
    assert change.backends_leaving == ()
    assert change.moved == 0


def test_a_backend_that_leaves_has_no_new_port() -> None:
    """Its flows keep the old one, and nobody asks for another."""
    own = web(A, backends=(Backend(A), Backend(B, port=8080)))
    (change,) = changed(own, web(A), {}, terminating(web(), B)).changes
    assert change.backends_leaving == (B,)
    assert change.backends_redirected == ()
    (change,) = changed(own, web(A, B), {}, {}).changes
    assert change.backends_redirected == (B,)


def test_other_changes_are_told_as_they_are() -> None:
    """Beside somebody who leaves."""
    heavier = web(A, backends=(Backend(A, 2),))
    (change,) = changed(web(A, B), heavier, {}, terminating(web(), B)).changes
    assert change.backends_reweighted == (A,)
    assert change.backends_removed == (B,)
    assert changed(web(A), web(A), terminating(web(), B), terminating(web(), B)).changes == ()
