# SPDX-License-Identifier: Apache-2.0
"""The ways by which a pod's bandwidth is limited: Towpath's, and others to compare it with."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from towpath.bench.bandwidth_world import POD_DEVICE, run
from towpath.bench.errors import BenchError
from towpath.datapath.bandwidth.node import Node
from towpath.datapath.bandwidth.report import report
from towpath.model.bandwidth import Pod, Section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from towpath.bench.bandwidth_world import World
    from towpath.documents import BandwidthAggregate

DIRECT, ROUTED = "towpath", "towpath-routed"
TBF, CAKE = "tbf", "cake"
WAYS = (DIRECT, ROUTED, TBF, CAKE)
NONE: Mapping[str, Path] = {}
BURST_SECONDS = 1 / 8
"""Of tbf and of the plugin: Kubernetes' own burst, of 256 MB, would be no limit for the length of a
measurement."""
_IFB = "ifb-pod"
_CNI_VERSION = "1.0.0"


class Limited:
    """A limit that is in force. ``aggregate``: what Towpath says of it; None: another way's."""

    def __init__(self, node: Node | None = None) -> None:
        self._node = node

    @property
    def aggregate(self) -> BandwidthAggregate | None:
        """As it is now."""
        return report(self._node).aggregates[0] if self._node else None


@contextmanager
def limited(
    here: World, way: str, rate: int, plugins: Mapping[str, Path] = NONE
) -> Iterator[Limited]:
    """Have the pod's egress limited to so many bits a second. BenchError, KernelError.

    ``plugins``: binaries of the CNI bandwidth plugin, by the names of ways.
    """
    if way in (DIRECT, ROUTED):
        pod = Pod("pod", device=POD_DEVICE, egress=rate)
        section = Section(devices=("eth0",), pods=(pod,), direct=way == DIRECT, aggregates=8)
        with paced(section) as node:
            yield Limited(node)
    elif way in plugins:
        with _by_plugin(here, plugins[way], rate):
            yield Limited()
    else:
        with _by_qdisc(_shaper(way, rate)):
            yield Limited()


@contextmanager
def paced(section: Section) -> Iterator[Node]:
    """Have these limits in force, by departure times. BenchError: packets are policed."""
    with Node(section, None) as node:
        try:
            if node.unpaced:
                raise BenchError(f"packets aren't paced: {', '.join(node.unpaced.values())}")
            yield node
        finally:
            node.detach()


@contextmanager
def _by_qdisc(shaper: str) -> Iterator[None]:
    """Have a qdisc on an ifb that what the pod sends is redirected to."""
    run(f"ip link add {_IFB} type ifb")
    run(f"ip link set {_IFB} up")
    try:
        run(f"tc qdisc add dev {POD_DEVICE} ingress")
        run(
            f"tc filter add dev {POD_DEVICE} parent ffff: protocol all u32 match u32 0 0"
            f" action mirred egress redirect dev {_IFB}"
        )
        run(f"tc qdisc add dev {_IFB} root {shaper}")
        yield
    finally:
        run(f"tc qdisc del dev {POD_DEVICE} ingress")
        run(f"ip link del {_IFB}")


def _shaper(way: str, rate: int) -> str:
    """What the other way's qdisc is: CAKE, or tbf with a queue of 25 ms."""
    if way == CAKE:
        return f"cake bandwidth {rate}bit besteffort"
    return f"tbf rate {rate}bit burst {burst(rate)} latency 25ms"


def burst(rate: int) -> int:
    """Return the bytes of a burst at so many bits a second."""
    return round(rate / 8 * BURST_SECONDS)


@contextmanager
def _by_plugin(here: World, binary: Path, rate: int) -> Iterator[None]:
    """Have the CNI bandwidth plugin limit the pod."""
    there = f"/proc/{os.getpid()}/fd/{here.pod}"
    config = {
        "cniVersion": _CNI_VERSION,
        "name": "bench",
        "type": "bandwidth",
        "egressRate": rate,
        "egressBurst": 8 * burst(rate),
        "prevResult": {
            "cniVersion": _CNI_VERSION,
            "interfaces": [{"name": POD_DEVICE}, {"name": "eth0", "sandbox": there}],
        },
    }
    _call(binary, "ADD", config, there)
    try:
        yield
    finally:
        _call(binary, "DEL", config, there)
        # The plugin leaves it: it goes with the pod's device.
        with suppress(BenchError):
            run(f"tc qdisc del dev {POD_DEVICE} ingress")


def _call(binary: Path, command: str, config: object, netns: str) -> None:
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "bench",
        "CNI_NETNS": netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(binary.parent),
    }
    try:
        done = subprocess.run(
            [binary],
            input=json.dumps(config),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise BenchError(f"{binary}: {error}") from error
    if done.returncode:
        raise BenchError(f"{binary} {command}: {done.stdout.strip() or done.stderr.strip()}")
