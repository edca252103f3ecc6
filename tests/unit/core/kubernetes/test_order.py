# SPDX-License-Identifier: Apache-2.0
"""What a cluster amounts to follows from what there is, not from how it came to be told."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.core.kubernetes.harness_cluster import NODE, Told, endpoint, terminating, unready

from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from towpath.core.kubernetes.cluster import Changed, Cluster

NODES = (NODE, "n2", "n3")
NAMES = [f"web{number}" for number in range(6)]


class History:
    """Objects that come, change and go, one after another."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - not a secret
        self.there: dict[tuple[str, str], Any] = {}

    def step(self) -> tuple[str, str]:
        """Make one event; returns what it is about."""
        match self.chance.randrange(8):
            case 0:
                key = ("Node", self.chance.choice(NODES))
                made: Any = self.chance.choice(["a", "b"])
            case 1 | 2:
                key = ("Service", self.chance.choice(NAMES))
                made = self._service(int(key[1][-1]))
            case _:
                name = self.chance.choice(NAMES)
                key = ("EndpointSlice", f"{name}-{self.chance.randrange(3)}")
                made = self._endpoints()
        if self.chance.random() < 0.2:
            self.there.pop(key, None)
        else:
            self.there[key] = made
        return key

    def _service(self, number: int) -> dict[str, Any]:
        vip = f"10.96.0.{number + 10}"
        spec: dict[str, Any] = {"clusterIP": vip, "clusterIPs": [vip], "type": "LoadBalancer"}
        spec |= {"externalTrafficPolicy": self.chance.choice(["Local", "Cluster"])}
        spec |= {"healthCheckNodePort": 31000 + number}
        spec |= {"externalIPs": self.chance.choice([[], ["198.51.100.1"]])}
        return spec

    def _endpoints(self) -> list[dict[str, Any]]:
        kinds = (endpoint, endpoint, terminating, unready)
        addresses = self.chance.sample(range(1, 20), self.chance.randrange(5))
        return [
            self.chance.choice(kinds)(f"10.128.0.{each}") | {"nodeName": self.chance.choice(NODES)}
            for each in addresses
        ]


def tell(told: Told, history: History, key: tuple[str, str]) -> None:
    """Tell a cluster of an object as it is by now."""
    kind, name = key
    found = history.there.get(key)
    if found is None:
        space = "" if kind == "Node" else "default"
        told.cluster.remove(getattr(objects, kind), space, name)
    elif kind == "Node":
        told.node(name, found)
    elif kind == "Service":
        told.service(**found, meta={"name": name, "uid": name})
    else:
        owner = name.partition("-")[0]
        labels = {
            "kubernetes.io/service-name": owner,
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        }
        meta = {"name": name, "namespace": "default", "labels": labels}
        told.slice(name, *found, metadata=meta)


def plain(cluster: Cluster) -> dict[str, object]:
    """What it amounts to; a table's size depends on what there was."""
    return {
        name: (each.vip, each.port, each.protocol, each.scope, {*each.backends}, each.allow_from)
        for name, each in cluster.services().items()
    }


def follow(known: dict[str, Any], changed: Changed) -> None:
    """Take over what has changed, as the source does."""
    assert not {each.name for each in changed.put} & set(changed.remove)
    for name in changed.remove:
        del known[name]
    known |= {each.name: each for each in changed.put}


@pytest.mark.parametrize("seed", range(20))
def test_any_history_ends_alike(seed: int) -> None:
    """Some events are told late and in another order; some are passed over by a later one."""
    history, told = History(seed), Told()
    known: dict[str, Any] = {}
    waiting: list[tuple[str, str]] = []
    for _ in range(120):
        waiting.append(history.step())
        if history.chance.random() < 0.4:
            history.chance.shuffle(waiting)
            for key in dict.fromkeys(waiting):
                tell(told, history, key)
            waiting.clear()
            follow(known, told.cluster.take(told.now))
        assert known == told.cluster.services()
    for key in waiting:
        tell(told, history, key)
    follow(known, told.cluster.take(told.now))

    fresh = Told()
    for key in history.there:
        tell(fresh, history, key)
    fresh.cluster.take(fresh.now)
    assert plain(told.cluster) == plain(fresh.cluster)
    assert known == told.cluster.services()
    told_of, anew = told.cluster, fresh.cluster
    assert sorted(told_of.refusals()) == sorted(anew.refusals())
    assert told_of.health() == anew.health()
    assert told_of.held() == anew.held() == 0
    for kind in (objects.Service, objects.EndpointSlice, objects.Node):
        assert told_of.number(kind) == len(told_of.names(kind)) == anew.number(kind)


def test_what_is_held_is_counted() -> None:
    """As long as it is, and no longer than its Service is there."""
    told = Told()
    told.service()
    told.slice("a", "10.128.0.1", "10.128.0.2")
    told.slice("b", "10.128.0.3")
    told.take()
    told.slice("b", ports=[{"name": "http", "port": 8081, "protocol": "TCP"}])
    told.slice("a", "10.128.0.1", ports=[{"name": "http", "port": 8081, "protocol": "TCP"}])
    told.slice("c", "10.128.0.2")
    told.take()
    assert told.cluster.held() == 1
    refused = told.cluster.refused
    told.cluster.remove(objects.Service, "default", "web")
    told.take()
    assert told.cluster.held() == 0
    assert told.cluster.refused == refused
