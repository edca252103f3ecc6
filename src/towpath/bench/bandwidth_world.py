# SPDX-License-Identifier: Apache-2.0
"""A pod, its node and a remote, and the ways by which the pod's bandwidth is limited.

::

    pod 10.1.0.2 -- vpod 10.1.0.1  node  eth0 10.2.0.1 -- remote 10.2.0.2
"""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from towpath.bench.errors import BenchError
from towpath.datapath.bandwidth.node import Node
from towpath.datapath.bandwidth.report import report
from towpath.kernel.net.interfaces import set_forwarding
from towpath.kernel.net.netns import in_netns, new_netns
from towpath.model.bandwidth import Pod, Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.documents import BandwidthAggregate

REMOTE = "10.2.0.2"
PORT_OF_STAMPS = 9001
DIRECT, ROUTED = "towpath", "towpath-routed"
TBF, CAKE = "tbf", "cake"
WAYS = (DIRECT, ROUTED, TBF, CAKE)
_IFB = "ifb-pod"


class World(NamedTuple):
    """Namespaces by open files. The calling thread is in the node's."""

    pod: int
    remote: int


@contextmanager
def world() -> Iterator[World]:
    """Make it; everything is gone afterwards. BenchError: a program is missing, or fails."""
    with ExitStack() as undo:
        pod, remote = undo.enter_context(new_netns()), undo.enter_context(new_netns())
        undo.enter_context(new_netns())
        run("ip link set lo up")
        for netns, device, net in ((pod, "vpod", "10.1.0"), (remote, "eth0", "10.2.0")):
            there = f"/proc/{os.getpid()}/fd/{netns}"
            run(f"ip link add {device} type veth peer name eth0 netns {there}")
            run(f"ip addr add {net}.1/24 dev {device}")
            run(f"ip link set {device} up")
            with in_netns(netns):
                run("ip link set lo up")
                run(f"ip addr add {net}.2/24 dev eth0")
                run("ip link set eth0 up")
                run(f"ip route add default via {net}.1")
        for device in ("vpod", "eth0"):
            set_forwarding(device, "ipv4", on=True)
        _keep(pod, undo)
        yield World(pod, remote)


def _keep(netns: int, undo: ExitStack) -> None:
    """Have a process in a namespace, by which it is found."""
    with in_netns(netns):
        process = subprocess.Popen(["sleep", "infinity"])
    undo.callback(process.wait)
    undo.callback(process.kill)


def run(command: str) -> None:
    """Run a command. BenchError."""
    try:
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BenchError(f"{command.split(maxsplit=1)[0]} is needed: {error}") from error
    if done.returncode:
        raise BenchError(f"{command}: {done.stderr.strip()}")


class Limited:
    """A limit that is in force. ``aggregate``: what Towpath says of it; None: another way's."""

    def __init__(self, node: Node | None = None) -> None:
        self._node = node

    @property
    def aggregate(self) -> BandwidthAggregate | None:
        """As it is now."""
        return report(self._node).aggregates[0] if self._node else None


@contextmanager
def limited(way: str, rate: int) -> Iterator[Limited]:
    """Have the pod's egress limited to so many bits a second. BenchError, KernelError."""
    if way in (DIRECT, ROUTED):
        pod = Pod("pod", device="vpod", egress=rate)
        section = Section(devices=("eth0",), pods=(pod,), direct=way == DIRECT, aggregates=8)
        with Node(section, None) as node:
            if node.unpaced:
                raise BenchError(f"packets aren't paced: {', '.join(node.unpaced.values())}")
            yield Limited(node)
            node.detach()
        return
    run(f"ip link add {_IFB} type ifb")
    run(f"ip link set {_IFB} up")
    try:
        run("tc qdisc add dev vpod ingress")
        run(
            "tc filter add dev vpod parent ffff: protocol all u32 match u32 0 0"
            f" action mirred egress redirect dev {_IFB}"
        )
        run(f"tc qdisc add dev {_IFB} root {_shaper(way, rate)}")
        yield Limited()
    finally:
        run("tc qdisc del dev vpod ingress")
        run(f"ip link del {_IFB}")


def _shaper(way: str, rate: int) -> str:
    """What the other way's qdisc is: CAKE, or tbf as the CNI plugin of bandwidth has it.

    Its queue is 25 ms long; the burst is set to 1/8 s here: Kubernetes' own, of 256 MB, would be
    no limit for the length of a measurement.
    """
    if way == CAKE:
        return f"cake bandwidth {rate}bit besteffort"
    return f"tbf rate {rate}bit burst {max(rate // 64, 5000)} latency 25ms"
