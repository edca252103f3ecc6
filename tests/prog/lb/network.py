# SPDX-License-Identifier: Apache-2.0
"""A network namespace with every kind of way to a backend, and what the oracle is told of it.

Two devices, one pair of veth each, whose far ends are up and answer nothing: all neighbours are
there from the start, or never.
"""

from __future__ import annotations

import socket
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from tests.prog.lb.oracle import Way

from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.kernel.net.netns import new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.oracle_parse import Address

IN, OUT, THIRD = "tpx0", "tpx1", "tpx2"
MTU = {IN: 1500, OUT: 1400, THIRD: 1300}
MACS = {name: bytes((2, 0, 0, 0, 1, number)) for number, name in enumerate(MTU)}
OWN = {
    IN: {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8:2::1")},
    OUT: {4: ip_address("10.2.0.1"), 6: ip_address("2001:db8:5::1")},
    THIRD: {4: ip_address("10.3.0.1"), 6: ip_address("2001:db8:7::1")},
}
PREFIX = {4: 24, 6: 64}
HOST = {4: 32, 6: 128}

NEIGHBOURS = range(0x11, 0x19)  # last byte of each resolved neighbour's address and MAC
UNRESOLVED = 0x63
GATEWAY = 0xFE
BEHIND_GATEWAY = {4: ip_address("10.9.0.1"), 6: ip_address("2001:db8:9::1")}
NO_ROUTE = {4: ip_address("10.77.0.1"), 6: ip_address("2001:db8:77::1")}
REFUSED = {
    "blackhole": ({4: ip_address("10.66.0.1"), 6: ip_address("2001:db8:66::1")}, "drop_blackhole"),
    "prohibit": ({4: ip_address("10.66.0.2"), 6: ip_address("2001:db8:66::2")}, "drop_prohibited"),
    "unreachable": (
        {4: ip_address("10.66.0.3"), 6: ip_address("2001:db8:66::3")},
        "drop_unreachable",
    ),
}


def neighbour(device: str, version: int, host: int) -> Address:
    """The address with that last byte on a device's network."""
    own = OWN[device][version]
    return type(own)(int(own) - 1 + host)


def neighbour_mac(device: str, host: int) -> bytes:
    """Its MAC address, if it has one."""
    return bytes((2, 0, 0, 0, MACS[device][5] + 2, host))


NEAR = {v: [neighbour(IN, v, host) for host in NEIGHBOURS] for v in (4, 6)}
FAR = {v: [neighbour(OUT, v, host) for host in NEIGHBOURS] for v in (4, 6)}
THIRDS = {v: [neighbour(THIRD, v, host) for host in NEIGHBOURS] for v in (4, 6)}
NEAR_UNRESOLVED = {v: neighbour(IN, v, UNRESOLVED) for v in (4, 6)}
FAR_UNRESOLVED = {v: neighbour(OUT, v, UNRESOLVED) for v in (4, 6)}


@dataclass(frozen=True)
class Network:
    """Interface indexes by name, and the way to each address that a backend can have."""

    devices: dict[str, int]
    ways: dict[Address, Way]
    """With the source address that the route prefers."""


@contextmanager
def network(mtu: dict[str, int] | None = None) -> Iterator[Network]:
    """Run the block in the namespace, which goes with it. ``mtu``: of devices, for MTU."""
    with new_netns(), patch.dict(MTU, mtu or {}):
        ip(*_links())
        for name in MTU:
            # Nothing comes in by itself: no router solicitation, no multicast report.
            Path(f"/proc/sys/net/ipv6/conf/{name}p/disable_ipv6").write_text("1")
        ip(*_addresses())
        devices = {name: socket.if_nametoindex(name) for name in MTU}
        yield Network(devices, dict(_ways(devices)))


def told_mtu(device: str) -> int:
    """What the kernel tells with a way that leads there, 0 for nothing."""
    return MTU[device] if fib_lookup().mtu else 0


def ip(*commands: str, version: int | None = None) -> None:
    """Run commands of the ip tool, all in one process; ``version`` where they don't tell it."""
    family = [f"-{version}"] if version else []
    subprocess.run(["ip", *family, "-batch", "-"], input="\n".join(commands), text=True, check=True)


def _links() -> Iterator[str]:
    for name, mtu in MTU.items():
        peer = f"peer name {name}p mtu {mtu}"
        yield f"link add {name} address {MACS[name].hex(':')} mtu {mtu} type veth {peer}"


def _addresses() -> Iterator[str]:
    yield "link set lo up"
    for name in MTU:
        yield f"link set {name}p up"
        yield f"link set {name} up"
        for version, own in OWN[name].items():
            nodad = "nodad" if version == 6 else ""
            yield f"address add {own}/{PREFIX[version]} dev {name} {nodad}"
            for host in (*NEIGHBOURS, GATEWAY):
                mac = neighbour_mac(name, host).hex(":")
                yield f"neigh add {neighbour(name, version, host)} lladdr {mac} dev {name}"
    for version in (4, 6):
        gateway = neighbour(IN, version, GATEWAY)
        yield f"route add {BEHIND_GATEWAY[version]}/{HOST[version]} via {gateway} dev {IN}"
        for kind, (addresses, _) in REFUSED.items():
            yield f"route add {kind} {addresses[version]}/{HOST[version]}"


def _ways(devices: dict[str, int]) -> Iterator[tuple[Address, Way]]:
    for name, index in devices.items():
        for version, own in OWN[name].items():
            for host in NEIGHBOURS:
                mac = neighbour_mac(name, host)
                yield (
                    neighbour(name, version, host),
                    Way(index, own, MACS[name], mac, told_mtu(name)),
                )
            # The kernel tells no MTU with a next hop that isn't resolved.
            yield neighbour(name, version, UNRESOLVED), Way(index, own)
            yield own, Way(refused="local")
    for version in (4, 6):
        own, mac = OWN[IN][version], neighbour_mac(IN, GATEWAY)
        gateway = neighbour(IN, version, GATEWAY)
        yield (
            BEHIND_GATEWAY[version],
            Way(devices[IN], own, MACS[IN], mac, told_mtu(IN), gateway=gateway),
        )
        yield NO_ROUTE[version], Way(refused="drop_no_route")
        for addresses, verdict in REFUSED.values():
            yield addresses[version], Way(refused=verdict)
