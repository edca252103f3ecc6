# SPDX-License-Identifier: Apache-2.0
"""Whether the time at which a packet is to depart survives the way out of a pod's namespace.

Found out by a packet of either kind through a pair of veth devices, never by the kernel's version.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import ExitStack, suppress
from functools import cache
from typing import NamedTuple

from towpath.kernel.bpf import probe
from towpath.kernel.bpf.links import attach_tc_ingress
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.programs import ProgramType
from towpath.kernel.bpf.sandbox import ADDRESS, NAMES, PREFIX, RTM_NEWADDR, RTM_NEWLINK, sandbox
from towpath.kernel.errors import KernelError
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.messages import CREATE, ROUTE, Netlink, attribute
from towpath.kernel.net.netns import in_netns, new_netns

_SET_TSTAMP = 192  # BPF_FUNC_skb_set_tstamp
_SO_TXTIME, _SCM_TXTIME = 61, 61
_POD = "192.0.2.2"
_NET_NS_FD, _IFA_LOCAL, _IFF_UP = 28, 2, 1  # IFLA_NET_NS_FD
_AHEAD = 500_000_000  # ns
_LIMIT = 5.0  # seconds; what is looked for has happened when the send returns
_NEAR = 10_000_000_000  # ns
_PORT = 9


class Survival(NamedTuple):
    """Whether times of departure are kept from a pod's namespace to the node's."""

    tcp: bool
    """TCP's own: of BBR, and of SO_MAX_PACING_RATE."""
    udp: bool
    """SO_TXTIME's."""


@cache
def survival() -> Survival:
    """Find out. KernelError: it can't be tried here."""
    with ExitStack() as undo:
        pod = undo.enter_context(new_netns())
        node = undo.enter_context(sandbox())
        moved = attribute(_NET_NS_FD, pod)
        node.netlink.ask(RTM_NEWLINK, _link(node.far) + moved)
        seen = undo.enter_context(BpfObject.packaged("bandwidth_probe"))
        seen.rodata["probe_types"] = probe.helper(_SET_TSTAMP, ProgramType.SCHED_CLS)
        seen.load()
        undo.enter_context(attach_tc_ingress(seen.programs["note_stamp"], node.near))
        with in_netns(pod):
            _bring_up()
            wanted = _send()
        return Survival(
            _has(seen, socket.IPPROTO_TCP, None), _has(seen, socket.IPPROTO_UDP, wanted)
        )


def _bring_up() -> None:
    """The pod's end, with an address."""
    index = device_index(NAMES[1])
    address = struct.pack("=BBBBi", socket.AF_INET, PREFIX, 0, 0, index)
    address += attribute(_IFA_LOCAL, socket.inet_aton(_POD))
    with Netlink(ROUTE) as netlink:
        netlink.ask(RTM_NEWLINK, _link(index, _IFF_UP))
        netlink.ask(RTM_NEWADDR, address, CREATE)


def _link(index: int, flags: int = 0) -> bytes:
    """Struct ifinfomsg."""
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _send() -> int:
    """A SYN, and a datagram with a time of its own, which is returned."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.setblocking(False)  # noqa: FBT003 -- its only argument
        with suppress(BlockingIOError, ConnectionRefusedError):
            stream.connect((ADDRESS, _PORT))
    wanted = time.monotonic_ns() + _AHEAD
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.setsockopt(
            socket.SOL_SOCKET, _SO_TXTIME, struct.pack("=iI", time.CLOCK_MONOTONIC, 0)
        )
        control = (socket.SOL_SOCKET, _SCM_TXTIME, struct.pack("=Q", wanted))
        datagram.sendmsg([b"x"], [control], 0, (ADDRESS, _PORT))
    return wanted


def _has(seen: BpfObject, protocol: int, wanted: int | None) -> bool:
    """Whether the packet had its stamp. ``wanted``: which, None: one of about now."""
    end = time.monotonic() + _LIMIT
    while not (found := seen.maps["seen_stamps"].lookup(protocol))["packets"]:
        if time.monotonic() > end:
            raise KernelError("see a packet that was sent between two namespaces")
        os.sched_yield()
    stamp = int(found["stamp"])
    if wanted is not None:
        return stamp == wanted
    return bool(stamp) and abs(stamp - time.monotonic_ns()) < _NEAR
