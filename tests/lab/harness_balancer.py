# SPDX-License-Identifier: Apache-2.0
"""A device in a namespace of its own, and everything that a load balancer could leave on it."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towpath.kernel.bpf.links import xdp_program_id
from towpath.kernel.bpf.programs import Program
from towpath.kernel.errors import KernelError
from towpath.kernel.net import clsact
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import new_netns
from towpath.kernel.net.offloads import ON, Offload
from towpath.lab.waiting import wait_until
from towpath.model import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath import LoadBalancer

DEVICE, PEER = "tplb0", "tplb1"
SECOND, THIRD = "tplb2", "tplb3"
PINS = Path("/sys/fs/bpf/tplb")
BPFFS = Path("/sys/fs/bpf")
SMALL = Limits(services=8, backends=32, flows=1024, table_slots=8192)

VIP = IPv4Address("203.0.113.10")
WEB: dict[str, Any] = {
    "vip": str(VIP),
    "port": 80,
    "backends": ["192.0.2.11", "192.0.2.12"],
    "table_size": 251,
}
# What comes by XDP is taken by NAPI, which runs for GRO: without, the kernel would send it.
GRO = Offload("rx-gro")
FLOW = "198.51.100.7:40000 -> 203.0.113.10:80 tcp"

NETWORK = f"""
link set lo up
link add {DEVICE} type veth peer name {PEER}
link set {DEVICE} up
link set {PEER} up
address add 192.0.2.1/24 dev {DEVICE}
neighbour replace 192.0.2.11 lladdr 02:00:00:00:00:11 dev {DEVICE}
neighbour replace 192.0.2.12 lladdr 02:00:00:00:00:12 dev {DEVICE}
"""


def ip(commands: str) -> None:
    """Run commands of ip, one per line."""
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)


@contextmanager
def device() -> Iterator[None]:
    """DEVICE, with two backends' neighbours, and its PEER; gone afterwards with its namespace."""
    with new_netns():
        ip(NETWORK)
        GRO.write(PEER, ON)
        yield


def add_second() -> None:
    """One more device."""
    ip(f"link add {SECOND} type veth peer name {THIRD}\nlink set {SECOND} up\nlink set {THIRD} up")
    GRO.write(THIRD, ON)


def state(*names: str) -> dict[str, object]:
    """What is on these devices and in the BPF file system."""
    found: dict[str, object] = {"pins": sorted(BPFFS.iterdir())}
    for name in names or (DEVICE,):
        index = device_index(name)
        found[f"{name} xdp"] = xdp_program_id(index)
        found[f"{name} filter"] = clsact.attached_id(index)
        for family in ("ipv4", "ipv6"):
            path = Path(f"/proc/sys/net/{family}/conf/{name}/forwarding")
            found[f"{name} {family} forwarding"] = path.read_text().strip()
        listens = Path(f"/proc/sys/net/ipv6/conf/{name}/accept_ra")
        found[f"{name} accept_ra"] = listens.read_text().strip()
    return found


def programs(balancer: LoadBalancer) -> set[int]:
    """The ids of its programs, which the kernel keeps while they are attached anywhere."""
    loaded = balancer._balancer._program.object.programs
    return {program.id for program in loaded.values()}


def assert_gone(numbers: set[int]) -> None:
    """Wait until none of these programs is in the kernel."""
    wait_until(
        lambda: not any(map(_exists, numbers)), seconds=120, what=f"programs {numbers} to go"
    )


def _exists(number: int) -> bool:
    try:
        Program.from_id(number).close()
    except KernelError:
        return False
    return True


@contextmanager
def script(text: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script in this namespace until it says a line; killed afterwards."""
    with subprocess.Popen(
        [sys.executable, "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout
        assert running.stderr
        try:
            assert running.stdout.readline(), running.stderr.read()
            yield running
        finally:
            running.kill()


def wait_for_run(process: subprocess.Popen[str]) -> None:
    """Return when a script is in run(): it then has a handler for SIGTERM."""
    wait_until(lambda: _catches(process.pid, signal.SIGTERM), seconds=120, what="run()")


def _catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@contextmanager
def unchanged(balancer: LoadBalancer) -> Iterator[None]:
    """Fail if the services, or what becomes of their packets, differ after the block."""
    flows = [f"198.51.100.7:{port} -> {VIP}:80" for port in range(40000, 40020)]

    def found() -> list[object]:
        return [balancer.services(), *(balancer.trace(flow) for flow in flows)]

    before = found()
    yield
    assert found() == before
