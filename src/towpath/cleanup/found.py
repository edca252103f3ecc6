# SPDX-License-Identifier: Apache-2.0
"""What kube-proxy has left on this node."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.cleanup.record import addresses
from towpath.core.kube_proxy import iptables, nft
from towpath.kernel import processes
from towpath.kernel.errors import KernelError
from towpath.kernel.net import conntrack, own_addresses, xtables
from towpath.kernel.net import nft as kernel_nft
from towpath.kernel.net.ipvs import read_ipvs
from towpath.kernel.net.messages import ROUTE, Netlink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from towpath.core.kube_proxy.served import Served

_SYS = Path("/proc/sys/net")
_SETTINGS = {
    "ipv4/conf/all/route_localnet": ("1", "0"),
    "netfilter/nf_conntrack_tcp_timeout_established": ("86400", "432000"),
    "netfilter/nf_conntrack_tcp_timeout_close_wait": ("3600", "60"),
}
"""What kube-proxy sets, and what the kernel has by itself."""
_IPVS_DEVICE = "kube-ipvs0"


@dataclass(slots=True)
class Found:
    """All of it."""

    tables: list[nft.Table] = field(default_factory=list)
    rules: dict[str, iptables.Rules] = field(default_factory=dict)
    """By program of iptables; those alone that have some."""
    hold: bool = False
    """Our own table, which keeps connections that kube-proxy has translated."""
    ipvs: list[str] = field(default_factory=list)
    """Its device and its virtual servers, which are told and left."""
    settings: list[str] = field(default_factory=list)
    """Those that are told and left."""
    processes: list[int] = field(default_factory=list)
    """kube-proxy, in this network namespace."""
    connections: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Translated by kube-proxy's rules and not over, by service's name and protocol."""

    @property
    def served(self) -> list[Served]:
        """What kube-proxy serves, or did."""
        tables = {each for table in self.tables for each in table.served}
        return sorted(tables.union(*(each.served for each in self.rules.values())), key=str)

    @property
    def works(self) -> bool:
        """Whether packets pass what it has left."""
        return any(not each.dormant for each in self.tables) or any(
            each.jumps for each in self.rules.values()
        )

    def __bool__(self) -> bool:
        return bool(self.tables or self.rules)


def find(also: Sequence[Served] = ()) -> Found:
    """Look. ``also``: served before, whose connections count. KernelError."""
    found = Found()
    for table in kernel_nft.tables():
        if table.name == nft.NAME and table.family in nft.FAMILIES:
            listed = kernel_nft.listed(table)
            found.tables.append(nft.read(table.family, listed, dormant=table.dormant))
        elif (table.family, table.name) == ("inet", nft.HOLD):
            found.hold = True
    for program in xtables.programs():
        with suppress(KernelError):  # of this backend the kernel has nothing
            rules = iptables.read(xtables.save(program), _node_addresses(program))
            if rules:
                found.rules[program] = rules
    found.ipvs = _ipvs()
    found.settings = _settings()
    found.processes = kube_proxies()
    names = {(each.address, each.port, each.protocol): each for each in (*also, *found.served)}
    with suppress(KernelError):
        for each in conntrack.translated():
            of = names.get((each.address, each.port, each.protocol))
            if of is not None and not each.ending:
                found.connections[of.name, of.protocol] += 1
    return found


def old_connections(served: Sequence[Served]) -> list[conntrack.Translated]:
    """Connections that were translated for these, and aren't over. KernelError."""
    wanted = addresses(served)
    return [
        each
        for each in conntrack.translated()
        if (each.address, each.port, each.protocol) in wanted and not each.ending
    ]


def kube_proxies() -> list[int]:
    """Processes of that name in this network namespace, or in one that may not be asked for.

    A pod that isn't privileged is told nothing of one that is.
    """
    own = (processes.PROC / "self/ns/net").readlink()
    found = []
    for process in processes.named("kube-proxy"):
        try:
            here = (process / "ns/net").readlink() == own
        except PermissionError:
            here = True
        except OSError:
            continue  # it has ended meanwhile
        if here:
            found.append(int(process.name))
    return sorted(found)


def sees_node() -> bool:
    """Whether processes of the node are seen: from within a pod they aren't, unless it has hostPID.

    A kubelet is what each node has.
    """
    return "KUBERNETES_SERVICE_HOST" not in os.environ or any(processes.named("kubelet"))


def _node_addresses(program: str) -> list[str]:
    """This node's, of a family: those that node ports are at."""
    version = 6 if program.startswith("ip6") else 4
    with Netlink(ROUTE) as netlink:
        own = own_addresses.dump(netlink)
    return [
        str(each)
        for each in sorted(own, key=str)
        if each.version == version and not each.is_loopback and not each.is_link_local
    ]


def _ipvs() -> list[str]:
    found = []
    if Path("/sys/class/net", _IPVS_DEVICE).exists():
        found.append(f"device {_IPVS_DEVICE}")
        with suppress(KernelError, OSError):
            found += [f"virtual server {each.vip}:{each.port}" for each in read_ipvs().servers]
    return found


def _settings() -> list[str]:
    found = []
    for name, (theirs, kernels) in _SETTINGS.items():
        with suppress(OSError):
            if (_SYS / name).read_text().strip() == theirs:
                shown = name.replace("/", ".")
                found.append(f"net.{shown} is {theirs}; the kernel begins with {kernels}")
    return found
