# SPDX-License-Identifier: Apache-2.0
"""What the section ``kubernetes`` asks for has to be there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from towpath.model import ConfigError, parse_config
from towpath.model.sources.kubernetes.pools import parse_pools

BANDWIDTH: dict[str, Any] = {"bandwidth": {"devices": ["eth0"]}}
RULE: dict[str, Any] = {"devices": "cni0", "prefixes": ["10.244.0.0/24"]}


def parsed(section: dict[str, Any], **others: Any) -> Any:
    """What a file with the section says of it."""
    text = yaml.safe_dump({"kubernetes": section, "socket": {}} | others)
    return parse_config(text, "towpath.yaml").sections["kubernetes"]


def test_nothing_is_asked_for_by_default() -> None:
    """An agent that is upgraded does what it did."""
    found = parsed({})
    assert (found.pod_limits, found.node_neighbours, found.masquerades) == (False, False, False)
    assert str(found.cni_results) == "/var/lib/cni/results"


def test_what_it_takes() -> None:
    """With what it needs; then masquerade has no rules of its own."""
    found = parsed(
        {
            "pod_limits": True,
            "node_neighbours": True,
            "masquerade_devices": ["cni0"],
            "non_masquerade_cidrs": ["10.0.0.0/8"],
        },
        devices=["eth0"],
        masquerade={"rules": []},
        **BANDWIDTH,
    )
    assert found.masquerades
    assert found.masquerade_devices == ("cni0",)


@pytest.mark.parametrize(
    ("section", "others", "said"),
    [
        ({"pod_limits": True}, {}, "kubernetes.pod_limits: needs bandwidth"),
        ({"node_neighbours": True}, {}, "kubernetes.node_neighbours: needs devices"),
        ({"masquerade_devices": "cni0"}, {}, "kubernetes.masquerade_devices: needs masquerade"),
        (
            {"non_masquerade_cidrs": ["10.0.0.0/8"]},
            {},
            "kubernetes.non_masquerade_cidrs: needs masquerade",
        ),
        ({}, {"masquerade": {"rules": []}}, "masquerade.rules: there is none; allowed: at least"),
        ({}, {"snat": {"ipv4": "0.0.0.0"}}, "snat.ports: 10000-32767 has node ports (30000-32767)"),
        ({"cni_results": "results"}, {}, "kubernetes.cni_results"),
        ({"masquerade_devices": ["a*b"]}, {"masquerade": {"rules": [RULE]}}, "a * before its end"),
    ],
)
def test_what_is_not_there(section: dict[str, Any], others: dict[str, Any], said: str) -> None:
    """It is named, with what it needs."""
    with pytest.raises(ConfigError) as caught:
        parsed(section, **others)
    assert said in str(caught.value)


def test_pools() -> None:
    """Prefixes, ranges and addresses; for all, or for some."""
    text = """
        pools:
        - name: public
          addresses: [192.0.2.0/30, 198.51.100.10 - 198.51.100.20, "2001:db8::7"]
        - {name: shop, addresses: 203.0.113.8/29, auto_assign: false, namespaces: [shop],
           selector: {tier: public}}
        """
    public, shop = parse_pools(text, "pools.yaml")
    assert [str(each) for each in public.addresses] == [
        "192.0.2.0-192.0.2.3",
        "198.51.100.10-198.51.100.20",
        "2001:db8::7",
    ]
    assert (public.auto_assign, public.namespaces, public.selector) == (True, None, None)
    assert (shop.auto_assign, shop.namespaces) == (False, ("shop",))
    assert shop.selector == (("tier", "public"),)
    assert parse_pools("pools: []", "pools.yaml") == ()


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        ("192.0.2.1/30", "has host bits set; allowed: 192.0.2.0/30"),
        ("192.0.2.9-192.0.2.1", "ends before it begins; allowed: 192.0.2.1-192.0.2.9"),
        ("192.0.2.9-2001:db8::1", "ends of two families"),
        ("192.0.2.256", "is no range of addresses"),
        ("0.0.0.0/0", "is the unspecified address"),
        ("224.0.0.1", "is a multicast address"),
        ("[]", "an empty list has no address"),
    ],
)
def test_addresses_that_make_no_pool(addresses: str, said: str) -> None:
    """Are refused with the line that they are on."""
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        parse_pools(f"pools:\n- name: one\n  addresses: {addresses}\n", "pools.yaml")
    assert "pools.yaml:3" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- name: one", "is not a mapping"),
        ("pool: []", "did you mean pools?"),
        ("pools: [{name: one}]", "pools[0].addresses: is missing"),
        ("pools: [{name: a, addresses: 192.0.2.1}, {name: a, addresses: 192.0.2.2}]", "twice"),
        ("pools: [{name: a, addresses: 192.0.2.1, selector: {x: true}}]", "in quotes"),
        ("pools: [{name: a, addresses: 192.0.2.1, selector: [x]}]", "is no mapping"),
        ("pools: [{name: a, addresses: 192.0.2.1, namespaces: [A b]}]", "is no namespace"),
        ("pools: [{", "pools.yaml"),
    ],
)
def test_pools_that_make_no_sense(text: str, said: str) -> None:
    """Are refused as a whole."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_pools(text, "pools.yaml")


def test_where_pools_are() -> None:
    """An object of a namespace; a default needs one."""
    found = parsed({"pools": "kube-system/towpath-pools", "default_load_balancer": True})
    assert found.pools == "kube-system/towpath-pools"
    assert found.load_balancer_class == "towpath.alt/load-balancer"
    wrong = ({"pools": "pools"}, {"load_balancer_class": "a b"}, {"default_load_balancer": True})
    for each in wrong:
        with pytest.raises(ConfigError, match=next(iter(each))):
            parsed(each)
