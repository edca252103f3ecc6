# SPDX-License-Identifier: Apache-2.0
"""The kernel's own tunnel devices take what the load balancer encapsulates."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.guest.harness_guest import (
    COMBINATIONS,
    PORT,
    TIMES,
    TUNNEL4,
    TUNNEL6,
    VIPS,
    addresses,
    ask,
    ask_by_datagram,
    balancing,
    ip,
    network,
    passing,
    received,
    run,
    sent_to,
)

from towpath.lab.waiting import wait_until
from towpath.model import Protocol, ServiceKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.lab import Topology
    from towpath.model.service import Encap


SIZE = 100_000
GRE4, GRE6 = "tpgre", "tpip6gre"
GUE = 6080
FOU = {4: 5554, 6: 5556}
"""Ports by the family of what is inside, since FOU doesn't say it."""


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """One backend, behind the kernel's ipip and ip6tnl devices."""
    with network() as topology, passing(topology.balancer.port):
        yield topology


@pytest.fixture(scope="module")
def kinds(topology: Topology) -> Topology:
    """The same behind the kernel's GRE devices, FOU and GUE too."""
    (link,) = topology.backend_links
    subprocess.run(["/sbin/modprobe", "-a", "fou", "fou6", "ip_gre", "ip6_gre"], check=True)
    ip(
        link.node,
        f"link add {GRE4} type gre local {link.node4[0].ip}",
        f"link add {GRE6} type ip6gre local {link.node6[0].ip}",
        f"link set {GRE4} up",
        f"link set {GRE6} up",
    )
    for family in (["-4"], ["-6"]):
        run(link.node, ["ip", *family, "fou", "add", "port", str(GUE), "gue"])
        for inside, port in FOU.items():
            protocol = "4" if inside == 4 else "41"
            run(link.node, ["ip", *family, "fou", "add", "port", str(port), "ipproto", protocol])
    return topology


@pytest.mark.parametrize("kind", ["gre", "fou", "gue", "gue0"])
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_the_kernel_takes_every_kind(
    kinds: Topology, kind: Encap, inside: int, outside: int
) -> None:
    """What is between the outer header and the packet is what Linux itself expects there."""
    ports = {"gre": None, "fou": FOU[inside]}
    tunnels = {4: TUNNEL4, 6: TUNNEL6} if kind != "gre" else {4: GRE4, 6: GRE6}
    unwraps(kinds, tunnels[outside], inside, outside, encap=kind, encap_port=ports.get(kind, GUE))


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_the_kernels_tunnels_unwrap_every_packet(
    topology: Topology, inside: int, outside: int
) -> None:
    """TCP and UDP: as many packets as were sent, none with an error; answers go straight back."""
    unwraps(topology, TUNNEL4 if outside == 4 else TUNNEL6, inside, outside)


def unwraps(topology: Topology, device: str, inside: int, outside: int, **options: Any) -> None:
    """Ask over such tunnels, which lead to that device of the backend's."""
    node = topology.backend_links[0].node
    (backend,) = addresses(topology, outside)
    (vip,) = (each for each in VIPS if each.version == inside)
    before, _ = received(node, device)
    with balancing(topology, outside=outside, **options) as balancer:
        ask(vip, SIZE)
        ask_by_datagram(vip)
        # The connection's last words may still be on their way.
        wait_until(
            lambda: received(node, device)[0] - before == sent_to(balancer, backend) > SIZE / 1500,
            seconds=120,
            what="as many packets out of the tunnel as went into it",
        )
        counters = balancer.counters()
    assert received(node, device)[1] == 0
    asked = counters.service(ServiceKey(vip, PORT, Protocol.TCP))
    assert SIZE < asked.bytes < TIMES * SIZE
    assert asked.drops == 0
    assert counters.service(ServiceKey(vip, PORT, Protocol.UDP)).packets == 1
