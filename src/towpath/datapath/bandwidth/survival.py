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
from towpath.kernel.errors import KernelError
from towpath.kernel.net.interfaces import connected, device_index
from towpath.kernel.net.netns import in_netns, new_netns

_SET_TSTAMP = 192  # BPF_FUNC_skb_set_tstamp
_SO_TXTIME, _SCM_TXTIME = 61, 61
_INSIDE, _OUTSIDE = "192.0.2.1", "192.0.2.2"
_MAC = "02:00:00:00:00:02"
_AHEAD = 500_000_000  # ns
_LIMIT = 5.0  # seconds; what is looked for has happened when the send returns
_NEAR = 10_000_000_000  # ns
_PORT = 9
_PERMANENT = 0x80  # NUD_PERMANENT


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
        node = undo.enter_context(new_netns())
        _join(pod)
        seen = undo.enter_context(BpfObject.packaged("bandwidth_probe"))
        seen.rodata["probe_types"] = probe.helper(_SET_TSTAMP, ProgramType.SCHED_CLS)
        seen.load()
        index = device_index("p-out")
        undo.enter_context(attach_tc_ingress(seen.programs["note_stamp"], index))
        with in_netns(pod):
            wanted = _send()
        with in_netns(node):
            return Survival(
                _has(seen, socket.IPPROTO_TCP, None), _has(seen, socket.IPPROTO_UDP, wanted)
            )


def _join(pod: int) -> None:
    with connected() as netlink:
        peer = {"ifname": "p-in", "net_ns_fd": pod}
        netlink.link("add", ifname="p-out", kind="veth", address=_MAC, peer=peer)
        index = device_index("p-out")
        netlink.link("set", index=index, state="up")
        netlink.addr("add", index=index, address=_OUTSIDE, prefixlen=24)
    with in_netns(pod), connected() as netlink:
        index = device_index("p-in")
        netlink.link("set", index=index, state="up")
        netlink.addr("add", index=index, address=_INSIDE, prefixlen=24)
        netlink.neigh("replace", dst=_OUTSIDE, lladdr=_MAC, ifindex=index, state=_PERMANENT)


def _send() -> int:
    """A SYN, and a datagram with a time of its own, which is returned."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.setblocking(False)  # noqa: FBT003 -- its only argument
        with suppress(BlockingIOError, ConnectionRefusedError):
            stream.connect((_OUTSIDE, _PORT))
    wanted = time.monotonic_ns() + _AHEAD
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.setsockopt(
            socket.SOL_SOCKET, _SO_TXTIME, struct.pack("=iI", time.CLOCK_MONOTONIC, 0)
        )
        control = (socket.SOL_SOCKET, _SCM_TXTIME, struct.pack("=Q", wanted))
        datagram.sendmsg([b"x"], [control], 0, (_OUTSIDE, _PORT))
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
