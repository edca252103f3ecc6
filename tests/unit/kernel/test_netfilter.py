# SPDX-License-Identifier: Apache-2.0
"""Chains of netfilter that forwarded packets pass."""

from __future__ import annotations

from typing import Any

from towpath.kernel.net.netfilter import Chain, chains

BASE = {"family": "ip", "table": "filter", "type": "filter", "prio": 0}


def chain(name: str, hook: str | None, policy: str = "accept") -> dict[str, object]:
    """As nft lists it."""
    found: dict[str, object] = BASE | {"name": name}
    return {"chain": found | ({"hook": hook, "policy": policy} if hook else {})}


def rule(name: str) -> dict[str, object]:
    """One in a chain."""
    return {"rule": {"family": "ip", "table": "filter", "chain": name, "expr": []}}


def test_chains_that_do_something_are_told() -> None:
    """Those without a rule that accept aren't, nor those of other hooks."""
    listed: list[dict[str, Any]] = [
        {"metainfo": {"version": "1"}},
        chain("forward", "forward"),
        rule("forward"),
        rule("forward"),
        chain("FORWARD", "forward", "drop"),
        chain("idle", "postrouting"),
        chain("input", "input"),
        rule("input"),
        chain("jumped", None),
        rule("jumped"),
    ]
    found = chains(listed)
    assert found == [
        Chain("ip filter", "forward", "forward", "accept", "filter", 2),
        Chain("ip filter", "FORWARD", "forward", "drop", "filter", 0),
    ]
    assert [str(each) for each in found] == [
        "ip filter forward (forward, 2 rules)",
        "ip filter FORWARD (forward, policy drop, 0 rules)",
    ]
