# SPDX-License-Identifier: Apache-2.0
"""What is believed of slices that are wrong for a while: events in an order that real ones had."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from tests.unit.core.kubernetes.harness_cluster import (
    CONTROLLER,
    NAME,
    Told,
    addresses,
    endpoint,
    ports,
    terminating,
    unready,
)

from towpath.model.sources.kubernetes import objects


@pytest.fixture
def told() -> Told:
    """A node and a Service."""
    made = Told()
    made.node()
    made.node("n2", "b", "192.0.2.2")
    made.service()
    return made


def test_pods_are_known_by_their_addresses(told: Told) -> None:
    """Of their Service; what is no pod has no name."""
    pod = {"kind": "Pod", "name": "web-6d4b-hx2vq", "namespace": "default"}
    told.slice("a", endpoint("10.244.0.1", targetRef=pod), endpoint("10.244.0.2"))
    told.slice("b", endpoint("10.244.0.3", targetRef=pod | {"kind": "Node"}))
    found = [
        told.cluster.pod(("default", name), ip_address(f"10.244.0.{number}"))
        for name, number in (("web", 1), ("web", 2), ("web", 3), ("web", 4), ("other", 1))
    ]
    assert found == ["web-6d4b-hx2vq.default", None, None, None, None]


def test_a_change_of_a_port_loses_nobody(told: Told) -> None:
    """Of 250 in three slices some are in none until all slices have been written."""
    every = addresses(0, 250)
    told.slice("a", *every[:100])
    told.slice("b", *every[100:200])
    told.slice("c", *every[200:])
    assert len(told.backends()) == 250
    # The Service first, then each slice with endpoints dealt anew: 77 are in none, 27 in two.
    port = {"name": "http", "port": 80, "targetPort": 9090, "protocol": "TCP"}
    told.service(ports=[port])
    assert len(told.backends()) == 250
    told.slice("a", *every[77:127], *every[150:200], ports=ports(9090))
    found = told.backends()
    assert set(found) == set(every)
    assert {found[each] for each in every[:77]} == {8080}
    assert {found[each] for each in every[77:127]} == {9090}
    assert told.cluster.held() == 77
    told.slice("b", *every[:77], *every[127:150], ports=ports(9090))
    assert set(told.backends()) == set(every)
    told.slice("c", *every[200:], ports=ports(9090))
    assert told.backends() == dict.fromkeys(every, 9090)
    assert told.cluster.held() == 0


def test_a_controller_that_has_stopped_between_two_writes(told: Told) -> None:
    """What vanished is held for as long as nobody writes; a word much later ends it."""
    told.slice("a", "10.244.0.1", "10.244.0.2")
    told.slice("b", "10.244.0.3")
    told.backends()
    told.slice("a", "10.244.0.1", ports=ports(9090))
    assert "10.244.0.2" in told.backends()
    told.now += 3600
    assert "10.244.0.2" in told.backends()
    told.slice("b", "10.244.0.3", "10.244.0.4")
    assert set(told.backends()) == {"10.244.0.1", "10.244.0.3", "10.244.0.4"}


def test_without_a_change_of_ports_what_vanishes_is_gone(told: Told) -> None:
    """All slices agree: one write, no gap."""
    told.slice("a", "10.244.0.1", "10.244.0.2")
    told.backends()
    told.slice("a", "10.244.0.1")
    assert set(told.backends()) == {"10.244.0.1"}


@pytest.mark.parametrize("other", [unready, terminating])
def test_what_is_said_of_an_endpoint_is_believed_while_ports_change(
    told: Told, other: object
) -> None:
    """It is held only if nothing is said of it."""
    told.slice("a", "10.244.0.1", "10.244.0.2")
    told.slice("b", "10.244.0.3")
    told.backends()
    assert callable(other)
    told.slice("a", "10.244.0.1", other("10.244.0.2"), ports=ports(9090))
    assert set(told.backends()) == {"10.244.0.1", "10.244.0.3"}


def test_a_port_that_is_called_otherwise(told: Told) -> None:
    """The Service comes first: its endpoints stay until a slice has that name."""
    told.slice("a", "10.244.0.1")
    told.backends()
    port = {"name": "web", "port": 80, "targetPort": 8080, "protocol": "TCP"}
    told.service(ports=[port])
    name = NAME.replace(":http:", ":web:")
    assert set(told.backends(name)) == {"10.244.0.1"}
    told.slice("a", "10.244.0.1", ports=ports(8080, "web"))
    assert set(told.backends(name)) == {"10.244.0.1"}
    assert told.cluster.held() == 0


def test_an_endpoint_in_two_slices_counts_once(told: Told) -> None:
    """Of two ports the one that the Service names holds, else the later."""
    told.slice("a", "10.244.0.1", ports=ports(8080))
    told.slice("b", "10.244.0.1", ports=ports(9090))
    assert told.backends() == {"10.244.0.1": 8080}
    port = {"name": "http", "port": 80, "targetPort": "named", "protocol": "TCP"}
    told.service(ports=[port])
    assert told.backends() == {"10.244.0.1": 9090}


def test_a_selector_that_is_taken_away(told: Told) -> None:
    """Slices freeze, and are mirrored: each endpoint once."""
    every = addresses(0, 150)
    told.slice("a", *every[:100])
    told.slice("b", *every[100:])
    told.slice("m", *every, managed="endpointslicemirroring-controller.k8s.io", owner=None)
    assert set(told.backends()) == set(every)


def test_an_address_that_is_in_use_again(told: Told) -> None:
    """Terminating and ready at once, in whatever order: ready."""
    for first, second in (
        (endpoint("10.244.0.1"), terminating("10.244.0.1")),
        (terminating("10.244.0.1", serving=False), endpoint("10.244.0.1")),
    ):
        told.slice("a", first)
        told.slice("b", second)
        assert set(told.backends()) == {"10.244.0.1"}
        told.slice("a", first, second)
        told.slice("b")
        assert set(told.backends()) == {"10.244.0.1"}


def test_terminating_and_ready_again(told: Told) -> None:
    """Whatever was said before."""
    told.slice("a", terminating("10.244.0.1"), "10.244.0.2")
    assert set(told.backends()) == {"10.244.0.2"}
    assert told.draining() == {"10.244.0.1"}
    told.slice("a", "10.244.0.1", "10.244.0.2")
    assert set(told.backends()) == {"10.244.0.1", "10.244.0.2"}


def test_who_only_serves_gets_connections_if_nobody_is_ready(told: Told) -> None:
    """And none that neither serves nor is ready."""
    told.slice("a", terminating("10.244.0.1"), terminating("10.244.0.2", serving=False))
    assert set(told.backends()) == {"10.244.0.1"}
    told.slice("a", unready("10.244.0.1"))
    assert told.backends() == {}


def test_addresses_that_are_published_though_not_ready(told: Told) -> None:
    """``publishNotReadyAddresses``: the slice says ready, and is believed."""
    told.slice("a", terminating("10.244.0.1", ready=True))
    assert set(told.backends()) == {"10.244.0.1"}


def test_what_is_unknown_counts_as_ready(told: Told) -> None:
    """No conditions at all; and those of fields that no one knows yet."""
    told.slice("a", {"addresses": ["10.244.0.1"]}, endpoint("10.244.0.2", conditions={"new": 1}))
    assert set(told.backends()) == {"10.244.0.1", "10.244.0.2"}


def test_a_node_that_is_gone(told: Told) -> None:
    """Its pods stay ready for a minute: not here. What others have written isn't doubted."""
    there = endpoint("10.244.0.1", nodeName="n2")
    told.slice("a", there, "10.244.0.2")
    told.slice("own", endpoint("10.244.0.3", nodeName="elsewhere"), managed=None, owner=None)
    assert len(told.backends()) == 3
    told.cluster.remove(objects.Node, "", "n2")
    assert set(told.backends()) == {"10.244.0.2", "10.244.0.3"}
    told.node("n2", "b", "192.0.2.2")
    assert len(told.backends()) == 3


def test_slices_of_a_service_made_anew(told: Told) -> None:
    """Those of the one before don't count, in whatever order they come."""
    told.slice("old", "10.244.0.1")
    assert set(told.backends()) == {"10.244.0.1"}
    told.slice("new", "10.244.0.2", owner="s2")
    assert set(told.backends()) == {"10.244.0.1"}
    told.cluster.remove(objects.Service, "default", "web")
    assert told.take() == {}
    told.service(meta={"uid": "s2"})
    assert set(told.backends()) == {"10.244.0.2"}


def test_slices_before_their_service() -> None:
    """And deleted after it."""
    told = Told()
    told.slice("a", "10.244.0.1")
    assert told.take() == {}
    told.service()
    assert set(told.backends()) == {"10.244.0.1"}
    told.no_slice("a")
    assert told.backends() == {}


def test_only_the_label_names_the_service(told: Told) -> None:
    """And a slice that gets another label leaves."""
    told.slice("anything-at-all", "10.244.0.1")
    assert set(told.backends()) == {"10.244.0.1"}
    raw = read_slice_of("other")
    told.cluster.put(raw)
    assert told.backends() == {}


def read_slice_of(name: str) -> objects.EndpointSlice:
    """The same slice, of another Service."""
    labels = {"kubernetes.io/service-name": name}
    meta = objects.Meta("anything-at-all", "default", labels=labels)
    return objects.EndpointSlice(meta, "IPv4")


@pytest.mark.parametrize(
    ("listed", "why"),
    [
        (None, "whose ports are: none"),
        ([{"name": "other", "port": 8080}], "whose ports are: 'other'"),
        ([{"name": "http"}], "has no number"),
        ([{"name": "http", "port": 8080, "protocol": "UDP"}], "has no number"),
    ],
)
def test_ports_match_by_name(told: Told, listed: object, why: str) -> None:
    """What doesn't is told: ready endpoints that serve nothing."""
    told.slice("hand-made", "10.244.0.1", ports=listed, managed=None)
    assert told.backends() == {}
    assert why in told.refused()


def test_lists_that_are_null(told: Told) -> None:
    """No endpoints."""
    told.slice("a", endpoints=None)
    assert told.backends() == {}
    assert told.refused() == ""


def test_an_address_that_is_none(told: Told) -> None:
    """It fails no other."""
    told.slice("a", "10.244.0.1", "::1.2", "127.0.0.1", {"addresses": []}, {"addresses": None})
    assert set(told.backends()) == {"10.244.0.1"}
    assert "EndpointSlice a has addresses that can't be served: '::1.2': " in told.refused()
    told.slice("a", "10.244.0.1")
    assert told.refused() == ""


@pytest.mark.parametrize("other", ["2001:db8::7", "::ffff:10.244.0.300"])
def test_an_address_of_the_other_family(told: Told, other: str) -> None:
    """It is told, and the Service has the rest."""
    told.slice("a", "10.244.0.1", other)
    assert set(told.backends()) == {"10.244.0.1"}
    assert f"can't be served: {other!r}: " in told.refused()


def test_a_slice_of_a_persons_with_another_port(told: Told) -> None:
    """It serves nothing, and is told, whatever other slices serve."""
    told.slice("a", "10.244.0.1")
    told.slice("mine", "10.244.0.2", managed=None, ports=ports(8080, "htpp"))
    assert set(told.backends()) == {"10.244.0.1"}
    assert "EndpointSlice mine, whose ports are: 'htpp'; ports match by name" in told.refused()
    told.slice("mine", "10.244.0.2", managed=None)
    assert told.refused() == ""


def test_slices_of_one_port_each_are_right(told: Told) -> None:
    """By hand, for a Service of two."""
    two = (("http", 80), ("https", 443))
    told.service(ports=[{"name": name, "port": n, "protocol": "TCP"} for name, n in two])
    told.slice("a", "10.244.0.1", managed=None, ports=ports(8080, "http"))
    told.slice("b", "10.244.0.2", managed=None, ports=ports(8443, "https"))
    assert told.refused() == ""


def test_a_change_has_only_its_own_service_looked_at(told: Told) -> None:
    """Whatever else there is."""
    told.take()
    told.slice("a", "10.244.0.1", managed=CONTROLLER)
    told.take()
    assert told.changed is not None
    assert told.changed.names == {("default", "web")}
    assert [each.name for each in told.changed.put] == [NAME]
    told.slice("a", "10.244.0.1")
    told.take()
    assert (told.changed.put, told.changed.remove) == ((), ())
