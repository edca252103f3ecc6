# SPDX-License-Identifier: Apache-2.0
"""Two pods, their node and a remote.

::

    pod   10.1.0.2 -- vpod   10.1.0.1  node  eth0 10.2.0.1 -- remote 10.2.0.2
    other 10.3.0.2 -- vother 10.3.0.1
"""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from towpath.bench.errors import BenchError
from towpath.kernel.net.interfaces import set_forwarding
from towpath.kernel.net.netns import in_netns, new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

REMOTE = "10.2.0.2"
PORT_OF_STAMPS = 9001
POD_DEVICE, OTHER_DEVICE = "vpod", "vother"


class World(NamedTuple):
    """Namespaces by open files. The calling thread is in the node's."""

    pod: int
    remote: int
    other: int


@contextmanager
def world() -> Iterator[World]:
    """Make it; everything is gone afterwards. BenchError: a program is missing, or fails."""
    with ExitStack() as undo:
        pod, remote, other = (undo.enter_context(new_netns()) for _ in range(3))
        undo.enter_context(new_netns())
        run("ip link set lo up")
        devices = {
            POD_DEVICE: (pod, "10.1.0"),
            "eth0": (remote, "10.2.0"),
            OTHER_DEVICE: (other, "10.3.0"),
        }
        for device, (netns, net) in devices.items():
            there = f"/proc/{os.getpid()}/fd/{netns}"
            run(f"ip link add {device} type veth peer name eth0 netns {there}")
            run(f"ip addr add {net}.1/24 dev {device}")
            run(f"ip link set {device} up")
            with in_netns(netns):
                run("ip link set lo up")
                run(f"ip addr add {net}.2/24 dev eth0")
                run("ip link set eth0 up")
                run(f"ip route add default via {net}.1")
            set_forwarding(device, "ipv4", on=True)
        for netns in (pod, other):
            _keep(netns, undo)
        yield World(pod, remote, other)


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
