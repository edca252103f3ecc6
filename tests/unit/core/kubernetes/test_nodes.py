# SPDX-License-Identifier: Apache-2.0
"""What Nodes say of the network, and when a list of them isn't believed."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from tests.unit.core.kubernetes.harness_cluster import read

from towpath.core.kubernetes.nodes import believed, networks, rules
from towpath.model.masquerade import Rule, SourcedRules
from towpath.model.masquerade import Section as Masquerade
from towpath.model.sources.kubernetes import Section, objects


def node(number: int, *ranges: str, **more: Any) -> Any:
    """A Node with prefixes for its pods."""
    raw = {
        "metadata": {"name": f"n{number}"},
        "spec": {"podCIDRs": list(ranges) or None},
        "status": {
            "addresses": [
                {"type": "Hostname", "address": f"n{number}"},
                {"type": "InternalIP", "address": f"192.0.2.{number}"},
                {"type": "ExternalIP", "address": f"198.51.100.{number}"},
            ]
        },
    }
    return read(objects.Node, raw | more)


def prefixes(*texts: str) -> tuple[Any, ...]:
    """As objects."""
    return tuple(map(ip_network, texts))


def test_networks() -> None:
    """This node's prefixes, all, and the others' internal addresses; what isn't one is left out."""
    found = networks(
        [
            node(2, "10.244.2.0/24", "nonsense"),
            node(1, "10.244.1.0/24", "fd00:1::/64"),
            node(3),
            read(objects.Node, {"metadata": {"name": "n4"}}),
        ],
        "n1",
    )
    assert found.own == prefixes("10.244.1.0/24", "fd00:1::/64")
    assert found.pods == prefixes("10.244.1.0/24", "fd00:1::/64", "10.244.2.0/24")
    assert [str(each) for each in found.others] == ["192.0.2.2", "192.0.2.3"]


def test_rules() -> None:
    """One of the node's own prefixes; destinations of all pods and of the configuration."""
    section = Section(masquerade_devices=("cni0",), non_masquerade_cidrs=prefixes("172.16.0.0/12"))
    found = rules(section, networks([node(1, "10.244.1.0/24"), node(2, "10.244.2.0/24")], "n1"))
    configured = Rule(("veth*",), prefixes("10.9.0.0/16"), prefixes("203.0.113.0/24"))
    made = found.added(Masquerade((configured,)))
    assert made.rules == (
        Rule(
            ("veth*",),
            prefixes("10.9.0.0/16"),
            prefixes("10.244.1.0/24", "10.244.2.0/24", "172.16.0.0/12", "203.0.113.0/24"),
        ),
        Rule(
            ("cni0",),
            prefixes("10.244.1.0/24"),
            prefixes("10.244.1.0/24", "10.244.2.0/24", "172.16.0.0/12"),
        ),
    )


def test_nothing_is_told_as_long_as_nothing_is_asked_for() -> None:
    """Rules are then what they are configured to be."""
    section = Masquerade((Rule(("cni0",), prefixes("10.9.0.0/16")),))
    assert SourcedRules().added(section) == section
    assert not Section().masquerades


def test_prefixes_that_a_rule_has_already() -> None:
    """The configuration's rule holds."""
    configured = Rule(("cni*",), prefixes("10.244.0.0/16"))
    told = SourcedRules(("cni0",), prefixes("10.244.1.0/24", "fd00:1::/64"))
    made = told.added(Masquerade((configured,)))
    assert made.rules == (configured, Rule(("cni0",), prefixes("fd00:1::/64")))


def test_a_list_that_lacks_many_nodes() -> None:
    """Their prefixes stay; what a watch says is believed, as is a list that lacks a few."""
    many = prefixes(*(f"10.244.{number}.0/24" for number in range(10)))
    before = SourcedRules(("cni0",), many[:1], many)
    fewer = SourcedRules(("cni0",), many[:1], many[:4])
    kept, held = believed(before, fewer, 50, listed=True)
    assert (set(kept.exclude), held) == (
        set(many),
        "6 of 10 prefixes that aren't masqueraded",
    )
    assert believed(before, fewer, 50, listed=False) == (fewer, "")
    assert believed(before, fewer, 70, listed=True) == (fewer, "")
    few = SourcedRules(("cni0",), many[:1], many[:6])
    assert believed(before, few, 10, listed=True) == (few, "")


def test_this_node_is_not_in_a_list() -> None:
    """Its pods stay masqueraded."""
    mine = prefixes("10.244.1.0/24")
    kept, _ = believed(
        SourcedRules(("cni0",), mine, mine), SourcedRules(("cni0",)), 50, listed=True
    )
    assert kept.prefixes == mine
