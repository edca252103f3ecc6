# SPDX-License-Identifier: Apache-2.0
"""A pod, its node, and backends behind it: a network namespace each, processes in two of them.

::

    pod [tp-pod] ---- [tp-in] node [tp-out] ---- [tp-backends] backends

Namespaces have no names: with the process, however it ends, all of it is gone.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

from towpath.bench.errors import BenchError
from towpath.bench.forward_network import set_sysctls
from towpath.children import python
from towpath.closeable import Closeable
from towpath.kernel.net import interfaces
from towpath.kernel.net.netns import in_netns, new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.datapath.address import Address

PORT = 8080
BACKENDS: dict[int, tuple[Address, ...]] = {
    4: tuple(IPv4Address("198.19.0.10") + n for n in range(3)),
    6: tuple(IPv6Address("2001:2:0:19::10") + n for n in range(3)),
}
FIRST_VIP: dict[int, Address] = {4: IPv4Address("198.18.64.1"), 6: IPv6Address("2001:2:0:64::1")}
_POD = (("198.18.0.2", 24), ("2001:2:0:18::2", 64))
_IN = (("198.18.0.1", 24), ("2001:2:0:18::1", 64))
_OUT = (("198.19.0.1", 24), ("2001:2:0:19::1", 64))
_PREFIXES = {4: 24, 6: 64}
_WORKER = "towpath.bench.socket_worker"
_SYSCTLS = {
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv4/ip_local_port_range": "1024 65535",
}
_FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


@dataclass(frozen=True, slots=True)
class World:
    """The namespaces, by open files."""

    pod: int
    node: int


class Worker(Closeable):
    """A process that connects, in a namespace and perhaps a cgroup."""

    def __init__(self, namespace: int, cgroup: Path | None = None) -> None:
        with in_netns(namespace):
            self._process = subprocess.Popen(
                python(_WORKER, "connect"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(self._process.pid), encoding="ascii")

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something; what came of it. BenchError: it failed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise TypeError("its standard input and output are pipes")
        print(json.dumps({"do": what} | arguments), file=stdin, flush=True)
        line = stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process has ended"}
        if "error" in answer:
            raise BenchError(f"{what}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End it. Twice is once."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def world() -> Iterator[World]:
    """Run the block with such a network, whose backends serve."""
    with new_netns() as backends, new_netns() as pod, new_netns() as node:
        for namespace in (backends, pod, node):
            set_sysctls(namespace, _SYSCTLS)
        set_sysctls(node, _FORWARDING)
        with interfaces.connected() as wire:
            for name, peer, where in (
                ("tp-in", "tp-pod", pod),
                ("tp-out", "tp-backends", backends),
            ):
                far = {"ifname": peer, "net_ns_fd": where}
                wire.link("add", ifname=name, kind="veth", peer=far)
        _address(node, "tp-in", _IN)
        _address(node, "tp-out", _OUT)
        served = [
            (str(each), _PREFIXES[version]) for version, those in BACKENDS.items() for each in those
        ]
        _address(backends, "tp-backends", served, gateways=_OUT)
        _address(pod, "tp-pod", _POD, gateways=_IN)
        with _serving(backends):
            yield World(pod, node)


def _address(
    namespace: int,
    name: str,
    addresses: tuple[tuple[str, int], ...] | list[tuple[str, int]],
    gateways: tuple[tuple[str, int], ...] = (),
) -> None:
    with in_netns(namespace), interfaces.connected() as wire:
        index = interfaces.device_index(name)
        wire.link("set", index=index, state="up")
        for address, length in addresses:
            wire.addr("add", index=index, address=address, prefixlen=length)
        for gateway, _ in gateways:
            default = "::/0" if ":" in gateway else "0.0.0.0/0"
            wire.route("add", dst=default, gateway=gateway)


@contextmanager
def _serving(namespace: int) -> Iterator[None]:
    addresses = [str(each) for those in BACKENDS.values() for each in those]
    with in_netns(namespace):
        process = subprocess.Popen(
            python(_WORKER, "serve", str(PORT), *addresses),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    try:
        if process.stdout is None or not process.stdout.readline():
            raise BenchError("the backends don't serve")
        yield
    finally:
        process.kill()
        process.communicate()
