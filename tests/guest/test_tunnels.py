# SPDX-License-Identifier: Apache-2.0
"""The kernel's own tunnel devices take what the load balancer encapsulates."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    network,
    passing,
    received,
    sent_to,
)

from towpath.lab.waiting import wait_until
from towpath.model import Protocol, ServiceKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.lab import Topology


SIZE = 100_000


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """One backend, behind the kernel's ipip and ip6tnl devices."""
    with network() as topology, passing(topology.balancer.port):
        yield topology


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_the_kernels_tunnels_unwrap_every_packet(
    topology: Topology, inside: int, outside: int
) -> None:
    """TCP and UDP: as many packets as were sent, none with an error; answers go straight back."""
    node, device = topology.backend_links[0].node, TUNNEL4 if outside == 4 else TUNNEL6
    (backend,) = addresses(topology, outside)
    (vip,) = (each for each in VIPS if each.version == inside)
    before, _ = received(node, device)
    with balancing(topology, outside=outside) as balancer:
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
