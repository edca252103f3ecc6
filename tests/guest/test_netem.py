# SPDX-License-Identifier: Apache-2.0
"""Links that lose, delay and reorder packets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.guest.harness_guest import VIPS, ask, balancing, network, passing, run

from towpath.lab.topology import CLIENT, DEVICE, ROUTER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guest.harness_guest import Address

    from towpath.lab import Topology


SIZE = 200_000
BAD = "netem delay 5ms 2ms loss 5% reorder 25% 50%"


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """The client's link is a bad one, in both directions."""
    with network(3) as topology, passing(topology.balancer.port):
        ends = ((CLIENT, DEVICE), (ROUTER, topology.client.port))
        for namespace, device in ends:
            run(namespace, ["tc", "qdisc", "add", "dev", device, "root", *BAD.split()])
        yield topology


@pytest.mark.parametrize("vip", VIPS, ids=str)
def test_transfers_are_whole_over_a_bad_link(topology: Topology, vip: Address) -> None:
    """Segments that come late, in disorder or again go to the backend that has the connection."""
    with balancing(topology) as balancer:
        for _ in range(2):
            ask(vip, SIZE)
        verdicts = balancer.counters().verdicts
    assert not any(number for name, number in verdicts.items() if name.startswith("drop"))
    lost = [
        run(namespace, ["tc", "-s", "qdisc", "show", "dev", device])
        for namespace, device in ((CLIENT, DEVICE), (ROUTER, topology.client.port))
    ]
    assert all("dropped 0," not in each for each in lost), lost
