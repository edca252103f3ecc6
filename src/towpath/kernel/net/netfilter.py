# SPDX-License-Identifier: Apache-2.0
"""Rules of netfilter that see what the kernel's stack forwards, by nft."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any, NamedTuple

_SECONDS = 10.0
_HOOKS = frozenset({"forward", "postrouting"})


class Chain(NamedTuple):
    """A base chain at a hook of forwarded packets that does something."""

    table: str
    """With its family, such as "ip filter"."""
    name: str
    hook: str
    policy: str
    kind: str
    """filter, nat or route."""
    rules: int
    """In it; those that it jumps to aren't counted."""

    @property
    def translates(self) -> bool:
        """It may give packets another source."""
        return (self.kind, self.hook) == ("nat", "postrouting")

    def __str__(self) -> str:
        policy = f", policy {self.policy}" if self.policy != "accept" else ""
        count = "1 rule" if self.rules == 1 else f"{self.rules} rules"
        return f"{self.table} {self.name} ({self.hook}{policy}, {count})"


def forward_chains() -> tuple[Chain, ...] | None:
    """The chains that forwarded packets pass, those of iptables-nft included.

    Chains that only accept are left out. None: there is no nft, or it doesn't tell.
    """
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if nft is None:
        return None
    try:
        ran = subprocess.run(
            [nft, "-j", "list", "ruleset"], capture_output=True, check=True, timeout=_SECONDS
        )
        listed = json.loads(ran.stdout)["nftables"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return None
    return tuple(chains(listed))


def chains(listed: list[dict[str, Any]]) -> list[Chain]:
    """Those among what ``nft -j list ruleset`` lists."""
    rules: dict[tuple[str, str, str], int] = {}
    for each in listed:
        if rule := each.get("rule"):
            key = rule["family"], rule["table"], rule["chain"]
            rules[key] = rules.get(key, 0) + 1
    found = []
    for each in listed:
        chain = each.get("chain")
        if chain is None or chain.get("hook") not in _HOOKS:
            continue
        count = rules.get((chain["family"], chain["table"], chain["name"]), 0)
        policy = chain.get("policy", "accept")
        if count or policy != "accept":
            table = f"{chain['family']} {chain['table']}"
            kind = chain.get("type", "filter")
            found.append(Chain(table, chain["name"], chain["hook"], policy, kind, count))
    return found
