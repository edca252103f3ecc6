# SPDX-License-Identifier: Apache-2.0
"""IPVS for many services of TCP, as kube-proxy's mode ipvs has them for a node's pods.

Without the sets and rules of iptables that kube-proxy has beside it: what they cost isn't IPVS's.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.bench.errors import BenchError
from towpath.bench.forward_network import set_sysctls
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from towpath.datapath.address import Address

_DEVICE = "kube-ipvs0"
_SECONDS = 600
_SYSCTLS = {
    "net/ipv4/vs/conntrack": "1",
    "net/ipv4/vs/expire_nodest_conn": "1",
    "net/ipv4/vs/expire_quiescent_template": "1",
}


def lacking(node: int) -> str:
    """Return why there is no IPVS in a network namespace; nothing: there is. Loads its module."""
    try:
        with in_netns(node):
            subprocess.run(["ipvsadm", "-Ln"], capture_output=True, check=False, timeout=_SECONDS)
            there = Path("/proc/thread-self/net/ip_vs").exists()
    except FileNotFoundError:
        return "the program ipvsadm is missing; install the package of the same name"
    return "" if there else "this kernel has no IPVS (module ip_vs)"


def load_ipvs(node: int, vips: Sequence[Address], port: int, backends: Sequence[Address]) -> None:
    """Have services of TCP at these addresses in a network namespace, all with the same backends.

    Their addresses are on a dummy device, since IPVS looks at what comes for the node itself.
    BenchError: something of it is refused.
    """
    set_sysctls(node, _SYSCTLS)
    with in_netns(node):
        if not Path("/proc/sys/net/ipv4/conf", _DEVICE).exists():
            _feed(["ip", "-batch", "-"], [f"link add {_DEVICE} type dummy"])
        _feed(["ip", "-batch", "-"], [_address(vip) for vip in vips])
        _feed(["ipvsadm", "-R"], [line for vip in vips for line in _service(vip, port, backends)])


def carried(node: int) -> int:
    """Return how many connections IPVS has had in a network namespace, as it counts at once.

    Its other counters, those of ipvsadm too, are two seconds behind.
    """
    with in_netns(node):
        told = Path("/proc/thread-self/net/ip_vs_stats_percpu").read_text(encoding="ascii")
    return connections_of(told)


def connections_of(told: str) -> int:
    """Add up what each CPU has in ip_vs_stats_percpu, hexadecimal; ~ and above are no CPU's."""
    rows = [line.split() for line in told.splitlines()]
    found = 0
    for row in rows[2:]:
        if not row or row[0] == "~":
            break
        found += int(row[1], 16)
    return found


def _address(vip: Address) -> str:
    if vip.version == 6:  # noqa: PLR2004 - IPv6
        return f"addr add {vip}/128 dev {_DEVICE} nodad"
    return f"addr add {vip}/32 dev {_DEVICE}"


def _service(vip: Address, port: int, backends: Sequence[Address]) -> list[str]:
    made = [f"-A -t {_end(vip, port)} -s rr"]
    return made + [f"-a -t {_end(vip, port)} -r {_end(each, port)} -m" for each in backends]


def _end(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"  # noqa: PLR2004


def _feed(command: list[str], lines: Sequence[str]) -> None:
    ran = subprocess.run(
        command,
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    # ipvsadm -R goes on behind a line that is refused, and ends well.
    if ran.returncode or ran.stderr:
        raise BenchError(f"{command[0]} refuses part of {len(lines)} lines: {ran.stderr[:300]}")
