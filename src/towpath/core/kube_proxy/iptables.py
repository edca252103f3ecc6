# SPDX-License-Identifier: Apache-2.0
"""kube-proxy in iptables mode: chains and jumps to them, as ``iptables-save`` tells them.

Without the jumps from chains that the kernel calls nothing passes kube-proxy's own; and with them
all is as it was.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from towpath.core.kube_proxy.served import Served, service_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# Chains for a service or an endpoint end in 16 characters of a hash; others that begin so are
# somebody else's. KUBE-FIREWALL, KUBE-KUBELET-CANARY and KUBE-IPTABLES-HINT are the kubelet's.
_HASHED = re.compile(r"KUBE-(SVC|SVL|SEP|EXT|FW)-[A-Z2-7]{16}")
_WHOLE = {"", "32", "128"}
_FIXED = {
    *("KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING"),
    *("KUBE-FORWARD", "KUBE-MARK-MASQ", "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY"),
}


_SERVING = {"KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES"}
"""Chains whose rules have a service's address and port."""


class Jump(NamedTuple):
    """A rule of somebody else's chain that leads into one of kube-proxy's."""

    table: str
    chain: str
    at: int
    """Its number within the chain, from 1."""
    rule: str
    """As after ``-A CHAIN``."""

    @property
    def target(self) -> str:
        """The chain that it leads into."""
        return _target(shlex.split(self.rule))


@dataclass(slots=True)
class Rules:
    """What one family has, by one of the two programs."""

    chains: dict[str, list[str]] = field(default_factory=dict)
    """kube-proxy's, by table."""
    jumps: list[Jump] = field(default_factory=list)
    served: tuple[Served, ...] = ()

    def __bool__(self) -> bool:
        return any(self.chains.values())


def is_ours_to_remove(chain: str) -> bool:
    """Whether a chain is kube-proxy's, and nobody else's."""
    return chain in _FIXED or _HASHED.fullmatch(chain) is not None


def read(saved: str, node_addresses: Sequence[str] = ()) -> Rules:
    """What of kube-proxy is in what ``iptables-save`` says."""
    found = Rules()
    table = ""
    numbers: dict[tuple[str, str], int] = {}
    served: set[Served] = set()
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            chain = line[1:].split(" ", 1)[0]
            if is_ours_to_remove(chain):
                found.chains.setdefault(table, []).append(chain)
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            at = numbers[table, chain] = numbers.get((table, chain), 0) + 1
            if chain in _SERVING:
                served.update(_served(shlex.split(rule), node_addresses))
            elif not is_ours_to_remove(chain) and is_ours_to_remove(_target(shlex.split(rule))):
                found.jumps.append(Jump(table, chain, at, rule))
    found.served = tuple(sorted(served, key=str))
    return found


def unhook(jumps: Sequence[Jump]) -> str:
    """What ``iptables-restore --noflush`` removes jumps by; each table is changed as a whole."""
    lines = {table: [f"-D {each.chain} {each.rule}" for each in of] for table, of in _by(jumps)}
    return _batch(lines)


def hook(jumps: Sequence[Jump]) -> str:
    """What puts them back, each where it was."""
    lines = {
        table: [f"-I {each.chain} {each.at} {each.rule}" for each in sorted(of)]
        for table, of in _by(jumps)
    }
    return _batch(lines)


def delete(rules: Rules) -> str:
    """What empties and deletes kube-proxy's chains, once no jump leads there."""
    lines = {}
    for table, chains in rules.chains.items():
        if chains:
            declared = [f":{chain} - [0:0]" for chain in chains]
            lines[table] = [*declared, *(f"-X {chain}" for chain in chains)]
    return _batch(lines)


def _by(jumps: Sequence[Jump]) -> Iterator[tuple[str, list[Jump]]]:
    for table in sorted({each.table for each in jumps}):
        yield table, [each for each in jumps if each.table == table]


def _batch(lines: Mapping[str, Sequence[str]]) -> str:
    return "".join(
        f"*{table}\n" + "".join(f"{each}\n" for each in of) + "COMMIT\n"
        for table, of in lines.items()
    )


def _after(words: Sequence[str], *names: str) -> str:
    for name in names:
        if name in words:
            at = words.index(name) + 1
            return words[at] if at < len(words) else ""
    return ""


def _target(words: Sequence[str]) -> str:
    return _after(words, "-j", "-g")


def _served(words: Sequence[str], node_addresses: Sequence[str]) -> Iterator[Served]:
    port, protocol = _after(words, "--dport"), _after(words, "-p")
    if not port or not protocol:
        return
    comment = _after(words, "--comment").split(" ")[0]
    namespace, _, rest = comment.partition("/")
    name, _, port_name = rest.partition(":")
    to, _, length = _after(words, "-d").partition("/")
    if to and length not in _WHOLE:
        return  # node ports at loopback addresses, which have a rule more
    for address in (to,) if to else node_addresses:
        called = service_name(namespace, name, port_name)
        yield Served(ip_address(address), int(port), protocol, called, not to)
