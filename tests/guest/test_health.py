# SPDX-License-Identifier: Apache-2.0
"""Health checks reach the kernel's own tunnel devices, through VLANs too."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.guest.harness_guest import (
    COMBINATIONS,
    PORT,
    TIMEOUT,
    TIMES,
    TUNNEL4,
    TUNNEL6,
    VIPS,
    addresses,
    balancing,
    network,
    passing,
    received,
)
from tests.guest.test_trunk import make_trunk

from towpath.kernel.netns import in_netns
from towpath.lab.topology import BALANCER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.lab import Topology

SIZE = 5000  # several segments, so that the kernel cuts them


@pytest.fixture(scope="module", params=["wire", "trunk"])
def topology(request: pytest.FixtureRequest) -> Iterator[Topology]:
    """One backend behind the kernel's ipip and ip6tnl devices, with VLANs on the way or without."""
    with network() as topology:
        if request.param == "trunk":
            make_trunk(topology)
        with passing(topology.balancer.port):
            yield topology


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_connection_reaches_the_backend(topology: Topology, inside: int, outside: int) -> None:
    """Each packet that was sent comes out of the tunnel, none with an error."""
    node, device = topology.backend_links[0].node, TUNNEL4 if outside == 4 else TUNNEL6
    (backend,) = addresses(topology, outside)
    (vip,) = (each for each in VIPS if each.version == inside)
    before, _ = received(node, device)
    question = os.urandom(SIZE)
    with balancing(topology, outside=outside) as balancer:
        health, answer = balancer._balancer.health, b""
        health.open(VIPS)
        with in_netns(BALANCER), closing(health.connection(vip, backend)) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect((str(vip), PORT))
            connection.sendall(question)
            connection.shutdown(1)
            while chunk := connection.recv(65536):
                answer += chunk
        counters = health.counters()
        verdicts = balancer.counters().verdicts
    assert answer == question * TIMES
    packets, errors = received(node, device)
    assert errors == 0
    assert packets - before >= SIZE // 1180 + 2
    assert counters.pop("sent") >= 4
    assert not any(counters.values())
    assert verdicts["tx"] == verdicts["redirect"] == 0
