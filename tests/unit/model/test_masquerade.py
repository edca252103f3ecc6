# SPDX-License-Identifier: Apache-2.0
"""The section of masquerade: what it takes, and what it refuses with which words."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from towpath.model import ConfigError, parse_config
from towpath.model.kinds.patterns import matches, may_match_both

RULE: dict[str, Any] = {"devices": "cni0", "prefixes": ["10.244.0.0/24", "fd00:1::/64"]}


def parsed(section: object) -> Any:
    """What a file with the section says of it."""
    return parse_config(yaml.safe_dump({"masquerade": section}), "towpath.yaml").sections[
        "masquerade"
    ]


def test_a_rule_is_all_that_it_takes() -> None:
    """Everything else has a default."""
    found = parsed({"rules": [RULE]})
    assert found.rules[0].devices == ("cni0",)
    assert [str(each) for each in found.prefixes] == RULE["prefixes"]
    assert (str(found.ports), found.mapping, found.unsolicited) == (
        "61000-65535",
        "endpoint-dependent",
        "drop",
    )
    assert not found.through_stack


WRONG = {
    "no rules": ({}, "rules: is missing"),
    "empty": ({"rules": []}, "at least one rule"),
    "no prefixes": ({"rules": [{"devices": ["a"]}]}, "rules[0].prefixes: is missing"),
    "null prefixes": ({"rules": [RULE | {"prefixes": None}]}, "rules[0].prefixes: is missing"),
    "no devices": ({"rules": [RULE | {"devices": []}]}, "no device is named"),
    "a star within": ({"rules": [RULE | {"devices": ["a*b"]}]}, "has a * before its end"),
    "no name": ({"rules": [RULE | {"devices": ["a b"]}]}, "can't be a device's name"),
    "twice": ({"rules": [RULE, RULE]}, "rules[1].prefixes: 10.244.0.0/24 is in a rule for cni0"),
    "overlapping": (
        {"rules": [RULE, {"devices": ["cni*"], "prefixes": ["10.0.0.0/8"]}]},
        "10.0.0.0/8 is in a rule for cni0 already (10.244.0.0/24)",
    ),
    "ports": ({"rules": [RULE], "ports": "100-2000"}, "is out of range"),
    "filtering alone": (
        {"rules": [RULE], "filtering": "endpoint-independent"},
        "filtering: needs mapping: endpoint-independent",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(name: str) -> None:
    """Where it is, and what is allowed."""
    section, told = WRONG[name]
    with pytest.raises(ConfigError) as refused:
        parsed(section)
    assert told in str(refused.value)


def test_one_prefix_may_be_of_several_devices() -> None:
    """That can't be the same."""
    other = RULE | {"devices": ["veth*"]}
    assert len(parsed({"rules": [RULE, other]}).rules) == 2


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("cni0", "cni0", True),
        ("cni0", "cni1", False),
        ("veth*", "veth12", True),
        ("veth12", "veth*", True),
        ("veth*", "vethernet*", True),
        ("veth*", "cali*", False),
        ("*", "eth0", True),
    ],
)
def test_patterns_that_may_match_one_device(one: str, other: str, *, both: bool) -> None:
    """And those that can't."""
    assert may_match_both(one, other) == both
    assert matches("veth*", "veth7")
    assert not matches("veth", "veth7")
