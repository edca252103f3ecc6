# SPDX-License-Identifier: Apache-2.0
"""An agent that begins while slices are written anew loses no endpoint that was in force."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.core.kubernetes.harness_cluster import (
    ADDRESS,
    NAME,
    VIP,
    VIP6,
    Told,
    addresses,
    endpoint,
    ports,
    terminating,
)

EVERY = addresses(0, 250)
NUMBER = {"name": "http", "port": 80, "targetPort": 9090, "protocol": "TCP"}
NAMED = NUMBER | {"targetPort": "web"}


def changing(before: Told | None, port: dict[str, Any], **more: Any) -> Told:
    """An agent that knows a Service whose first slice of three was written anew; 77 are in none."""
    made = Told()
    made.node()
    if before is not None:
        made.cluster.restore(before.take().values())
    made.service(ports=[port])
    made.slice("a", *EVERY[77:127], *EVERY[150:200], ports=ports(9090), **more)
    made.slice("b", *EVERY[100:200], **more)
    made.slice("c", *EVERY[200:], **more)
    return made


def whole(port: dict[str, Any] = NUMBER) -> Told:
    """One that has seen all of them."""
    made = Told()
    made.node()
    made.service(ports=[port | {"targetPort": 8080}])
    for name, first in (("a", 0), ("b", 100), ("c", 200)):
        made.slice(name, *EVERY[first : min(first + 100, 250)])
    assert len(made.backends()) == 250
    return made


def test_whoever_begins_holds_what_is_in_force() -> None:
    """With the port that it had; then slices agree, and it is over."""
    assert len(changing(None, NUMBER).backends()) == 173
    made = changing(whole(), NUMBER)
    found = made.backends()
    assert set(found) == set(EVERY)
    assert {found[each] for each in EVERY[:77]} == {8080}
    assert made.cluster.held() == 77
    made.slice("b", *EVERY[:77], *EVERY[127:150], ports=ports(9090))
    made.slice("c", *EVERY[200:], ports=ports(9090))
    assert made.backends() == dict.fromkeys(EVERY, 9090)
    assert made.cluster.held() == 0


def test_one_after_another() -> None:
    """Each is told by the one before it, while the controller is away."""
    second = changing(whole(), NUMBER)
    third = changing(second, NUMBER)
    assert third.backends() == second.backends()
    third.now += 3600
    assert not third.cluster.forget(third.now)
    assert len(third.backends()) == 250


@pytest.mark.parametrize(("port", "more"), [(NAMED, {}), (NUMBER, {"managed": ""})])
def test_where_slices_may_disagree_for_ever(port: dict[str, Any], more: dict[str, Any]) -> None:
    """It is over after a time: who has gone while no agent was there is told by nobody."""
    made = changing(whole(port), port, **more)
    assert len(made.backends()) == 250
    made.now += 60
    assert not made.cluster.forget(made.now)
    made.now += 1
    assert made.cluster.forget(made.now)
    assert len(made.backends()) == 173
    assert not made.cluster.forget(made.now)


def test_nothing_is_held_that_slices_agree_on() -> None:
    """It has gone while no agent was there."""
    before, made = whole(), Told()
    made.node()
    made.cluster.restore(before.take().values())
    made.service()
    made.slice("a", *EVERY[:100])
    made.slice("b", *EVERY[100:199])
    assert set(made.backends()) == set(EVERY[:199])


def test_a_service_that_is_made_anew_later() -> None:
    """Has nothing of what was in force when the agent began."""
    made = Told()
    made.node()
    made.cluster.restore(whole().take().values())
    assert made.take() == {}
    made.service(ports=[NUMBER])
    made.slice("a", *EVERY[77:127], ports=ports(9090))
    made.slice("b", *EVERY[200:])
    assert len(made.backends()) == 100


def test_what_was_about_to_end_is_not_held() -> None:
    """Nor made ready."""
    first = Told()
    first.node()
    first.service()
    first.slice("a", "10.244.0.1", terminating("10.244.0.2"))
    assert first.draining() == {"10.244.0.2"}
    second = Told()
    second.node()
    second.cluster.restore(first.take().values())
    second.service(ports=[NUMBER])
    second.slice("a", "10.244.0.3", ports=ports(9090))
    second.slice("b", "10.244.0.4")
    assert set(second.backends()) == {"10.244.0.1", "10.244.0.3", "10.244.0.4"}


def test_what_was_terminating_and_is_ready() -> None:
    """What a slice says holds, whatever was in force."""
    first = Told()
    first.node()
    first.service()
    first.slice("a", "10.244.0.1", terminating("10.244.0.2"))
    second = Told()
    second.node()
    second.cluster.restore(first.take().values())
    second.service()
    second.slice("a", "10.244.0.1", "10.244.0.2")
    assert set(second.backends()) == {"10.244.0.1", "10.244.0.2"}


def test_each_address_of_a_service() -> None:
    """Both families, several ports, node ports; those on this node stay so."""
    spec = {
        "type": "NodePort",
        "clusterIPs": [VIP, VIP6],
        "ports": [
            {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": 30080},
            {"port": 53, "targetPort": 5353, "protocol": "UDP"},
        ],
    }

    def told(before: Told | None, number: int) -> Told:
        made = Told(outside=frozenset({4, 6}))
        made.node()
        made.node("n2", "b", "192.0.2.2")
        if before is not None:
            made.cluster.restore(before.take().values())
        made.service(**spec)
        both = [*ports(number), *ports(number + 1, "", "UDP")]
        if before is None:
            made.slice("a", "10.244.0.1", endpoint("10.244.0.2", nodeName="n2"), ports=both)
        made.slice("b", "10.244.0.3", ports=both)
        made.slice("c", "10.244.0.4", ports=[*ports(8080), *ports(8081, "", "UDP")])
        made.slice("d", "fd44::4", addressType="IPv6", ports=both)
        if before is None:
            made.slice("e", "fd44::5", addressType="IPv6", ports=both)
        else:
            made.slice("e", "fd44::6", addressType="IPv6", ports=ports(1))
        return made

    first = told(None, 8080)
    second = told(first, 9090)
    four = {f"10.244.0.{each}" for each in range(1, 5)}
    for name in (NAME, f"default:web:http:node:{ADDRESS}:all", f"default:web:53:cluster:{VIP}"):
        assert set(second.backends(name)) == four, name
        before, after = (each.take()[name] for each in (first, second))
        stayed = {"10.244.0.1", "10.244.0.2"}
        kept = [
            {each for each in found.backends if str(each.address) in stayed}
            for found in (before, after)
        ]
        assert kept[0] == kept[1]
    six = {"fd44::4": 9090, "fd44::5": 8080, "fd44::6": 1}
    assert second.backends(f"default:web:http:cluster:{VIP6}") == six
