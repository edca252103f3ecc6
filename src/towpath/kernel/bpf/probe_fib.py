# SPDX-License-Identifier: Apache-2.0
"""What this kernel's ``bpf_fib_lookup`` answers, by asking it."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from errno import EAFNOSUPPORT, EINVAL
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.sandbox import ADDRESS, LOOPBACK, MTU, sandbox
from towpath.kernel.net.messages import CREATE, Netlink, attribute

if TYPE_CHECKING:
    from towpath.kernel.bpf.sandbox import Sandbox

_RESOLVED, _UNRESOLVED = "192.0.2.2", "192.0.2.3"
_MAC = bytes.fromhex("020000000002")
_RTM_NEWNEIGH, _NDA_DST, _NDA_LLADDR, _NUD_PERMANENT = 28, 1, 2, 0x80

_FIB_SUCCESS, _FIB_NO_NEIGH = 0, 7  # BPF_FIB_LKUP_RET_*
_FIB_SRC = 1 << 4  # BPF_FIB_LOOKUP_SRC
_IPV6_ADDRESSES = Path("/proc/thread-self/net/if_inet6")  # not there: IPv6 is switched off


@dataclass(frozen=True, slots=True)
class FibLookup:
    """What an XDP program's look-up does."""

    works: bool
    """It finds the way to a neighbour: device and link-layer address."""
    ipv6: bool
    """It knows IPv6, and IPv6 is on."""
    mtu: bool
    """The answer has the MTU (5.12)."""
    egress: bool
    """For a neighbour that isn't resolved the answer has the egress device all the same (5.10)."""
    source: bool
    """It tells the source address that the route prefers: BPF_FIB_LOOKUP_SRC (6.7)."""


@cache
def fib_lookup() -> FibLookup:
    """Ask for ways that are known, in a network namespace of its own.

    KernelError: no namespace can be made or no program loaded. OSError: no veth device.
    """
    with BpfObject.packaged("doctor_probe") as asker, sandbox() as network:
        asker.load()
        _neighbour(network.netlink, network.near)
        found = _ask(asker, _RESOLVED)
        source = _ask(asker, _RESOLVED, flags=_FIB_SRC)
        unresolved = _ask(asker, _UNRESOLVED)
        ipv6 = _ask(asker, family=socket.AF_INET6)
        return FibLookup(
            works=_leads_to(found, _FIB_SUCCESS, network),
            ipv6=int(ipv6["result"]) != -EAFNOSUPPORT and _IPV6_ADDRESSES.exists(),
            mtu=int(found["mtu"]) == MTU,
            egress=_leads_to(unresolved, _FIB_NO_NEIGH, network),
            source=int(source["result"]) == _FIB_SUCCESS
            and int(source["saddr"]) == _number(ADDRESS),
        )


@cache
def names_sources() -> bool:
    """`FibLookup.source`, without a namespace, which takes CAP_SYS_ADMIN: no answer is looked at.

    Kernels refuse flags that they don't know before they look for anything. KernelError: no program
    can be loaded.
    """
    with BpfObject.packaged("doctor_probe") as asker:
        asker.load()
        return int(_ask(asker, _RESOLVED, flags=_FIB_SRC)["result"]) != -EINVAL


def _leads_to(answer: Any, result: int, network: Sandbox) -> bool:
    return int(answer["result"]) == result and int(answer["ifindex"]) == network.near


def _ask(
    asker: BpfObject, to: str | None = None, *, family: int = socket.AF_INET, flags: int = 0
) -> Any:
    """Ask as if a packet to that IPv4 address came in: ``struct fib_question``, answered."""
    question = np.zeros((), asker.btf.dtype("fib_question"))
    question["family"], question["flags"], question["ifindex"] = family, flags, LOOPBACK
    if to is not None:
        question["daddr"] = _number(to)
    run = asker.programs["probe_fib"].test_run(question.tobytes())
    return np.frombuffer(run.data, question.dtype)[0]


def _number(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big")


def _neighbour(netlink: Netlink, index: int) -> None:
    """Have a neighbour that is resolved. Struct ndmsg."""
    message = struct.pack("=BxxxiHBB", socket.AF_INET, index, _NUD_PERMANENT, 0, 0)
    message += attribute(_NDA_DST, socket.inet_aton(_RESOLVED)) + attribute(_NDA_LLADDR, _MAC)
    netlink.ask(_RTM_NEWNEIGH, message, CREATE)
