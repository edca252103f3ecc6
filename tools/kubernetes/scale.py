# SPDX-License-Identifier: Apache-2.0
"""What a large cluster costs on one node, beside kube-proxy, with a real API server.

    unshare --net --mount --pid --fork --kill-child --mount-proc python -m tools.kubernetes.scale

For each number of Services, kube-proxy 1.37 (nftables) and Towpath serve them in turn, over the
same objects and for the same process: from the start until all is in force, memory, CPU while
nothing changes; and from the PUT of a slice to the first connection that obeys it, at rest and
while another slice changes ten times a second. ``--write`` puts it into docs/results and
docs/performance.md; with ``--check`` it fails if something is above its limit (`checks`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tests.kubernetes.harness_source import (
    NODE,
    NODE_ADDRESSES,
    PORT,
    Follower,
    node,
)
from tests.prog.kernel.harness_cgroups import new_cgroup
from tests.prog.socket.harness import BACKENDS, Child, Servers
from tools.kubernetes import checks, scale_document
from tools.kubernetes import control_plane as control
from tools.kubernetes.scale_world import INSIDE, KubeProxy, Towpath, World, cpu, memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tools.kubernetes.control_plane import ControlPlane
    from tools.kubernetes.scale_world import Proxy

SIZES = (10, 3_000, 10_000)
REST_SECONDS = 30.0
_CONNECTS = 3_000
_CLIENT = "10.79.0.1"
_PAUSE = 1.1
"""Before a change at rest: kube-proxy writes its tables once a second."""
_BRIEF = 0.05
"""For a connection to an address that nobody may serve yet, in seconds."""
_PERCENT = 0.99


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.kubernetes.scale")
    parser.add_argument("--services", type=int, nargs="+", default=SIZES)
    parser.add_argument("--endpoints", type=int, default=10, help="of each service")
    parser.add_argument(
        "--changes", type=int, default=100, help="at rest; half as many beside others"
    )
    parser.add_argument("--alone", action="store_true", help="without kube-proxy")
    parser.add_argument("--write", action="store_true", help="to docs")
    parser.add_argument("--check", action="store_true", help="fail above limits")
    options = parser.parse_args()
    if options.check and options.alone:
        parser.error("--check: limits are ratios to kube-proxy's figures; leave out --alone")
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    subprocess.run(["mount", "-t", "bpf", "none", "/sys/fs/bpf"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with TemporaryDirectory() as directory, control.control_plane() as made:
        found = measure(made, Path(directory), options)
    print(json.dumps(found, indent=2))
    if options.write:
        scale_document.write(found)
    return checks.told(checks.scale(found)) if options.check else 0


def measure(plane: ControlPlane, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Each size, each proxy in turn."""
    with _place(plane, directory) as (follower, child):
        world = World(plane)
        child.run(INSIDE)
        none = _connect(child, BACKENDS[0], PORT)
        rows = []
        for services in sorted(options.services):
            world.fill(services, options.endpoints)
            towpath = Towpath(follower, services, options.endpoints)
            proxies: list[Proxy] = [KubeProxy(plane, directory), towpath]
            for each in proxies[options.alone :]:
                print(f"{services} services: {each.name}", file=sys.stderr, flush=True)
                rows.append(_measured(each, world, child, options))
        return {
            "kernel": os.uname().release,
            "cpus": os.cpu_count(),
            "endpoints_each": options.endpoints,
            "connect_us_without": none,
            "rows": rows,
        }


@contextmanager
def _place(plane: ControlPlane, directory: Path) -> Iterator[tuple[Follower, Child]]:
    """A Node that is an object, servers at addresses of this namespace, who connects to them."""
    addresses = [*BACKENDS, *NODE_ADDRESSES]
    # What goes to a ClusterIP needs a way before netfilter rewrites it.
    lines = ["link add towpath0 type veth peer name towpath1", "link set towpath0 up"]
    lines += ["link set towpath1 up", f"addr add {_CLIENT}/32 dev towpath0"]
    lines += [f"route add default dev towpath0 src {_CLIENT}"]
    lines += [f"addr replace {each}/{128 if ':' in each else 32} dev lo" for each in addresses]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    plane.request("POST", "/api/v1/nodes", node())
    status = {"status": {"addresses": node()["status"]["addresses"]}}
    plane.request("PATCH", f"/api/v1/nodes/{NODE}/status", status, "application/merge-patch+json")
    with new_cgroup() as cgroup, Servers(BACKENDS, (PORT,)), Child(cgroup) as child:
        yield Follower(plane, directory, cgroup), child


def _measured(
    proxy: Proxy, world: World, child: Child, options: argparse.Namespace
) -> dict[str, Any]:
    world.put("probe", [BACKENDS[0]])
    begun = time.monotonic()
    proxy.start()
    try:
        reached = float(child.run(f"until({world.vip!r}, {BACKENDS[0]!r}, {_BRIEF})"))
        first, first_cpu = max(reached, proxy.all_in_force()) - begun, cpu(proxy.pid)
        time.sleep(2)  # what is done after the first sync isn't rest
        before = cpu(proxy.pid)
        time.sleep(REST_SECONDS)
        rest = (cpu(proxy.pid) - before) / REST_SECONDS
        changes = []
        before, begun = cpu(proxy.pid), time.monotonic()
        for number in range(options.changes):
            time.sleep(random.uniform(_PAUSE, _PAUSE + 0.2))  # noqa: S311 - not a secret
            changes.append(world.change(child, number))
        spent = cpu(proxy.pid) - before - rest * (time.monotonic() - begun)
        with world.restless():
            world.change(child, options.changes)
            beside = [
                world.change(child, options.changes + 1 + number)
                for number in range(options.changes // 2)
            ]
        return {
            "proxy": proxy.name,
            "services": world.services,
            "endpoints": world.services * options.endpoints,
            "first_sync_s": round(first, 2),
            "first_sync_cpu_s": round(first_cpu, 2),
            "resident_mib": round(memory(proxy.pid), 1),
            "kernel_mib": None if (held := proxy.kernel()) is None else round(held, 1),
            "rest_percent": round(100 * rest, 2),
            "change_ms": _spread(changes),
            "change_beside_ms": _spread(beside),
            "cpu_ms_each_change": round(1000 * max(0.0, spent) / len(changes), 1),
            "connect_vip_us": _connect(child, world.vip, 80),
            "connect_other_us": _connect(child, BACKENDS[0], PORT),
        }
    finally:
        proxy.stop()


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(1000 * each for each in seconds)
    return {
        "p50": round(statistics.median(ordered), 1),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * _PERCENT))], 1),
    }


def _connect(child: Child, host: str, port: int) -> dict[str, float]:
    found = sorted(child.run(f"connects({host!r}, {port}, {_CONNECTS})"))
    return {"min": round(found[0], 1), "p50": round(statistics.median(found), 1)}


if __name__ == "__main__":
    sys.exit(main())
