# SPDX-License-Identifier: Apache-2.0
"""How long an agent takes for a large cluster, with a real API server.

    unshare --net --mount --pid --fork --mount-proc python -m tools.kubernetes.scale --services 3000

Prints the time from the agent's start to the last Service's being in force, the memory that it has
then, and from the PUT of a slice to the first connect() that obeys it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tests.kubernetes.harness_source import Follower, cluster_ip, following, service, slice_of
from tests.prog.socket.harness import BACKENDS
from tools.kubernetes import control_plane as control

if TYPE_CHECKING:
    from tests.prog.socket.harness import Child
    from tools.kubernetes.control_plane import ControlPlane

WORKERS = 8
MEBIBYTE = 1 << 20
_UNTIL = """
def until(vip, to):
    import time
    while True:
        try:
            if tcp(vip, 80)[0] == to:
                return time.monotonic()
        except OSError:
            pass
        time.sleep(0.0005)
"""


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.kubernetes.scale")
    parser.add_argument("--services", type=int, default=3000)
    parser.add_argument("--endpoints", type=int, default=10, help="of each service")
    parser.add_argument("--changes", type=int, default=100)
    options = parser.parse_args()
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    subprocess.run(["mount", "-t", "bpf", "none", "/sys/fs/bpf"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with TemporaryDirectory() as directory, control.control_plane() as made:
        print(json.dumps(measure(made, Path(directory), options), indent=2))
    return 0


def measure(made: ControlPlane, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Fill a cluster, have an agent follow it, change one slice again and again."""
    fill(made, options.services, options.endpoints)
    apply(made, service("probe"), slice_of("probe", endpoints([BACKENDS[0]])))
    vip = cluster_ip(made, "probe")
    Follower.limits = {
        "services": 2 * options.services + 64,
        "backends": 2 * options.services * options.endpoints + 1024,
        "flows": 1024,
        "clients": 1024,
        "sources": 500,
        "table_slots": 2 * options.services * 1021 + 65536,
    }
    with following(made, directory) as (follower, child):
        begun = time.monotonic()
        while len(follower.services()) < options.services:
            time.sleep(0.05)
        seconds = time.monotonic() - begun
        pid = follower.agent.process.pid if follower.agent.process else 0
        first, sync_cpu = memory(pid), cpu(pid)
        child.run(_UNTIL)
        before = cpu(pid)
        changes = [change(made, child, vip, number) for number in range(options.changes)]
        spent = cpu(pid) - before
        return {
            "services": options.services,
            "endpoints": options.services * options.endpoints,
            "after_start_seconds": round(seconds, 2),
            "sync_seconds": sync_seconds(follower),
            "start_and_sync_cpu_seconds": round(sync_cpu, 2),
            "memory_mib": round(first, 1),
            "change_ms": {
                "p50": round(1000 * statistics.median(changes), 1),
                "p99": round(1000 * sorted(changes)[int(len(changes) * 0.99) - 1], 1),
            },
            "agent_cpu_ms_each_change": round(1000 * spent / len(changes), 1),
            "memory_after_changes_mib": round(memory(pid), 1),
        }


def sync_seconds(follower: Follower) -> float | None:
    """From the first connection to the API server until all was in force, by the log."""
    for line in follower.agent.log.splitlines():
        if "first taken over in" in line:
            return float(line.rpartition(" in ")[2].split()[0])
    return None


def fill(made: ControlPlane, services: int, endpoints_each: int) -> None:
    """Make Services and their slices."""

    def one(number: int) -> None:
        name = f"s{number}"
        listed = [
            f"10.{128 + each % 100}.{number >> 8}.{number & 255}" for each in range(endpoints_each)
        ]
        apply(made, service(name), slice_of(name, endpoints(listed)))

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(one, range(services)))


def apply(made: ControlPlane, *objects: dict[str, Any]) -> None:
    """Make objects by HTTP."""
    paths = {"Service": "/api/v1", "EndpointSlice": "/apis/discovery.k8s.io/v1"}
    for each in objects:
        kind = f"{each['kind'].lower()}s"
        path = f"{paths[each['kind']]}/namespaces/default/{kind}"
        status, answer = made.request("POST", path, each)
        if status != 201:  # noqa: PLR2004 - created
            raise SystemExit(f"{path}: {status}: {answer}")


def endpoints(addresses: list[str]) -> list[dict[str, Any]]:
    """As a slice has them."""
    return [{"addresses": [each], "conditions": {"ready": True}} for each in addresses]


def change(made: ControlPlane, child: Child, vip: str, number: int) -> float:
    """Move the probe's endpoint; seconds from the PUT to the first connect() that obeys."""
    to = BACKENDS[(number + 1) % 2]
    body = slice_of("probe", endpoints([to]))
    path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/probe-a"
    begun = time.monotonic()
    status, answer = made.request("PUT", path, body)
    if status != 200:  # noqa: PLR2004 - ok
        raise SystemExit(f"{path}: {status}: {answer}")
    ended: float = child.run(f"until('{vip}', '{to}')")
    return ended - begun


def cpu(pid: int) -> float:
    """Seconds of CPU time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Of a process, in RAM, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / MEBIBYTE
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
