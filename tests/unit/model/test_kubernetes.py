# SPDX-License-Identifier: Apache-2.0
"""What the section ``kubernetes`` asks for has to be there."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from towpath.model import ConfigError, parse_config

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
        ({"cni_results": "results"}, {}, "kubernetes.cni_results"),
        ({"masquerade_devices": ["a*b"]}, {"masquerade": {"rules": [RULE]}}, "a * before its end"),
    ],
)
def test_what_is_not_there(section: dict[str, Any], others: dict[str, Any], said: str) -> None:
    """It is named, with what it needs."""
    with pytest.raises(ConfigError) as caught:
        parsed(section, **others)
    assert said in str(caught.value)
