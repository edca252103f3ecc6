# SPDX-License-Identifier: Apache-2.0
"""The load balancer on a bond of two devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.guest.harness_guest import (
    VIPS,
    ask,
    ask_by_datagram,
    balancing,
    ip,
    network,
    passing,
    received,
    rejoin,
)

from towpath.kernel.net import sysctl
from towpath.kernel.net.interfaces import set_forwarding
from towpath.kernel.net.netns import in_netns
from towpath.lab.topology import BALANCER, ROUTER
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guest.harness_guest import Address

    from towpath.lab import Topology


BOND, MEMBERS = "bond0", ("eth0", "eth1")


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """Two cables between router and load balancer, a bond at either end."""
    with network(3) as topology:
        ip(ROUTER, f"link del {topology.balancer.port}")
        pairs = (f"link add r{each} type veth peer {each} netns {BALANCER}" for each in MEMBERS)
        ip(ROUTER, *pairs)
        _bond(ROUTER, "r", topology.balancer.mtu)
        _bond(BALANCER, "", topology.balancer.mtu)
        rejoin(topology, f"r{BOND}", BOND)
        with passing(f"r{BOND}"):
            yield topology


def _bond(namespace: str, prefix: str, mtu: int) -> None:
    bond = f"{prefix}{BOND}"
    kind = "bond mode balance-xor xmit_hash_policy layer3+4 miimon 100"
    ip(
        namespace,
        f"link add {bond} mtu {mtu} type {kind}",
        *(f"link set {prefix}{each} mtu {mtu} master {bond}" for each in MEMBERS),
    )


@pytest.mark.parametrize("vip", VIPS, ids=str)
@pytest.mark.parametrize("forwarding", [True, False])
def test_balancing_on_a_bond(topology: Topology, vip: Address, forwarding: bool) -> None:  # noqa: FBT001
    """Natively, on both of its devices, whatever was set for forwarding before."""
    with in_netns(BALANCER):
        for family in ("ipv4", "ipv6"):
            set_forwarding("all", family, on=forwarding)
    with balancing(topology, BOND) as balancer:
        for _ in range(8):
            ask(vip, 5_000)
            ask_by_datagram(vip)
        verdicts = balancer.counters().verdicts
        used = {each: packets_of(each) for each in MEMBERS}
    assert not any(number for name, number in verdicts.items() if name.startswith("drop")), verdicts
    assert all(used.values()), used


def test_a_part_that_leaves_and_comes_back_forwards_again(topology: Topology) -> None:
    """Packets come in by it, as far as the FIB is concerned; while it is none it is as it was."""
    part = MEMBERS[0]
    with in_netns(BALANCER):
        for family in sysctl.FAMILIES:
            set_forwarding("all", family, on=False)
    with balancing(topology, BOND) as balancer:

        def forwards() -> bool:
            return sysctl.FORWARDING["ipv4"].read(part) == "1"

        assert forwards()
        ip(BALANCER, f"link set {part} nomaster")
        assert balancer.follow() == ()
        assert not forwards()
        ip(BALANCER, f"link set {part} down", f"link set {part} master {BOND}")
        assert balancer.follow() == ()
        assert forwards()
        wait_until(lambda: _answered(VIPS[0]), seconds=120, what="the bond to work with both")


def _answered(vip: Address) -> bool:
    before = packets_of(MEMBERS[0])
    for _ in range(8):
        ask(vip, 5_000)
    return packets_of(MEMBERS[0]) > before


def packets_of(device: str) -> int:
    """Packets that a device of the load balancer's node has received."""
    return received(BALANCER, device)[0]
