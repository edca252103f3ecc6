# SPDX-License-Identifier: Apache-2.0
"""Backends that run `towpath decap` take what IPVS sends them, as they take what Towpath sends.

IPVS encapsulates independently of us; and whoever changes from it needn't change all at once.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.guest.harness_guest import (
    COMBINATIONS,
    PORT,
    VIPS,
    addresses,
    ask,
    ask_by_datagram,
    balancing,
    ip,
    network,
    passing,
    run,
    sent_to,
)

from towpath.datapath.decap.decap import Decap
from towpath.kernel.net.netns import in_netns
from towpath.lab.topology import BALANCER, DEVICE
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guest.harness_guest import Address

    from towpath.lab import Topology

SIZE = 100_000
NEIGHBOURS = 20  # packets of neighbour discovery and the like, at the most
PROTOCOLS = ("t", "u")  # TCP and UDP, as ipvsadm has them


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """One backend, that unwraps nothing by itself."""
    with network(tunnels=False) as topology, passing(topology.balancer.port):
        yield topology


def end(address: Address) -> str:
    """An address with the port."""
    return f"[{address}]:{PORT}" if address.version == 6 else f"{address}:{PORT}"


@contextmanager
def directing(vip: Address, backend: Address) -> Iterator[None]:
    """An IPVS director on the load balancer's node."""
    with ExitStack() as undo:
        ip(BALANCER, f"address add {vip} dev lo")
        undo.callback(ip, BALANCER, f"address del {vip} dev lo")
        for protocol in PROTOCOLS:
            run(BALANCER, ["ipvsadm", "-A", f"-{protocol}", end(vip), "-s", "rr"])
        undo.callback(run, BALANCER, ["ipvsadm", "-C"])
        for protocol in PROTOCOLS:
            real = ["-r", end(backend), "--ipip"]
            run(BALANCER, ["ipvsadm", "-a", f"-{protocol}", end(vip), *real])
        yield


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_packets_from_ipvs_are_unwrapped(topology: Topology, inside: int, outside: int) -> None:
    """TCP and UDP, every byte; nothing is dropped, and nothing else comes but for neighbours."""
    (backend,) = addresses(topology, outside)
    (vip,) = (each for each in VIPS if each.version == inside)
    node = topology.backend_links[0].node
    with ExitStack() as undo:
        undo.enter_context(in_netns(node))
        decap = undo.enter_context(Decap(DEVICE, [backend]))
        with directing(vip, backend):
            ask(vip, SIZE)
            ask_by_datagram(vip)
        counted = decap.counters()
    other = counted.verdicts.pop("pass_other")
    assert other < NEIGHBOURS
    assert counted.verdicts.pop("unwrapped") == counted.addresses[backend].packets > SIZE / 1500
    assert not any(counted.verdicts.values())


@pytest.mark.thorough
def test_a_director_is_replaced(topology: Topology) -> None:
    """The backend serves first the one, then the other, and doesn't know."""
    (backend,) = addresses(topology, 4)
    vip = VIPS[0]
    with in_netns(topology.backend_links[0].node), Decap(DEVICE, [backend]) as decap:
        with directing(vip, backend):
            ask(vip, SIZE)
            before = decap.counters().verdicts["unwrapped"]
        with balancing(topology) as balancer:
            ask(vip, SIZE)
            wait_until(
                lambda: (
                    decap.counters().verdicts["unwrapped"] - before
                    >= sent_to(balancer, backend)
                    > SIZE / 1500
                ),
                seconds=120,
                what="what the load balancer has sent to be unwrapped",
            )
