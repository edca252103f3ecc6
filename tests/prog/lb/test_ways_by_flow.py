# SPDX-License-Identifier: Apache-2.0
"""Flows between the same hosts that go different ways: one of several equal ones, or by a rule.

What the kernel itself would do with each packet is asked of `ip route get`.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.network import FAR, HOST, IN, NEAR, OUT, THIRDS, Network, ip, network
from tests.prog.lb.oracle import REDIRECT, TX
from tests.prog.lb.test_outer_source import SOURCE_FIELDS

from towpath.datapath.neigh.follower import Follower
from towpath.lab.waiting import wait_until
from towpath.model import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.prog.lb.oracle_parse import Address

VARIED = Source(IPv4Network("10.98.0.0/16"), IPv6Network("2001:db8:98::/64"))
GIVEN = Source(IPv4Address("198.51.100.200"), IPv6Address("2001:db8:aa::200"))
"""Kernels that don't tell a route's source have one for all of them."""
TARGET = {4: ip_address("10.50.0.1"), 6: ip_address("2001:db8:50::1")}
FLOWS = 64
TUNNEL = {4: 4, 6: 41}
MARKED = 0x10  # a type of service


@pytest.fixture
def net() -> Iterator[Network]:
    """A network of the test's own: what rules there are stays."""
    with network() as made:
        for each in ("all", IN, OUT):
            Path(f"/proc/sys/net/ipv4/conf/{each}/rp_filter").write_text("0")
        yield made


@contextmanager
def following(net: Network, source: Source | None = None) -> Iterator[tuple[Rig, Follower]]:
    """A load balancer that is told how flows' ways may differ."""
    with Follower() as follower, rigged(net, source=source, next_hops=follower) as rig:
        yield rig, follower


def published(rig: Rig, version: int) -> set[str]:
    """Whose ways differ, as the program has been told of a family."""
    masks = rig.balancer._program.rows("ways")[0][f"v{version}"]
    found = {name: int(masks[name]) for name in ("tunnel", "backend", "client")}
    assert set(found.values()) <= {0, 0xFFFFFFFF}
    return {name for name, mask in found.items() if mask}


def wait(until: Callable[[], bool]) -> None:
    """Wait for something to become so."""
    wait_until(until, seconds=30, what="the program to be told")


def kernels_choice(to: Address, *words: str) -> Address:
    """The next hop that the kernel takes for a packet that comes in on the first device."""
    command = ["ip", "-j", f"-{to.version}", "route", "get", str(to), *words, "iif", IN]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    (route,) = json.loads(ran.stdout)
    return ip_address(route.get("gateway") or route["via"]["host"])


def several(*gateways: Address) -> None:
    """A route to the target with these as equal ways."""
    hops = " ".join(f"nexthop via {each}" for each in gateways)
    target = TARGET[gateways[0].version]
    ip(f"route replace {target}/{HOST[target.version]} {hops}")


def outer_source(rig: Rig, made: bytes, family: int) -> Address:
    """What the oracle says that the tunnel's source is."""
    told = rig.world.judge(made, rig.devices[IN]).frame[SOURCE_FIELDS[family]]
    return ip_address(told)


def test_each_flow_takes_the_way_that_the_kernel_would(net: Network) -> None:
    """One of several equal ones, by its outer addresses; the same in each of its packets."""
    inside = 4
    target, gateways = TARGET[4], NEAR[4][:3]
    several(*gateways)
    with following(net, VARIED) as (rig, _):
        rig.serve(service(VIPS[inside], target))
        wait(lambda: "tunnel" in published(rig, 4))
        used = set()
        for sport in range(FLOWS):
            made = frame(inside, sport=sport)
            rig.world.ways[target] = net.ways[gateways[0]]
            source = outer_source(rig, made, 4)
            hop = kernels_choice(target, "from", str(source))
            rig.world.ways[target] = net.ways[hop]
            for _ in range(3):
                rig.expect(made, TX)
            used.add(hop)
        assert used == set(gateways)


def test_flows_in_ipv6_take_ways_by_their_label(net: Network) -> None:
    """The kernel's choice is by flow label too, which is the flow's own."""
    target, gateways = TARGET[6], NEAR[6][:2]
    several(*gateways)
    with following(net) as (rig, _):
        rig.serve(service(VIPS[6], target))
        wait(lambda: "tunnel" in published(rig, 6))
        taken: dict[int, set[bytes]] = {}
        for sport in [*range(FLOWS)] * 2:
            out = rig.run(frame(6, sport=sport)).data
            taken.setdefault(sport, set()).add(out[:6])
        assert {len(each) for each in taken.values()} == {1}
        macs = set.union(*taken.values())
        assert macs == {net.ways[each].next_hop_mac for each in gateways}


def test_flows_of_one_outer_header_share_a_way(net: Network) -> None:
    """They are alike to the kernel, so nothing is asked for each packet."""
    target, gateways = TARGET[4], NEAR[4][:2]
    several(*gateways)
    with following(net) as (rig, _):
        rig.serve(service(VIPS[4], target))
        wait(lambda: published(rig, 4) == {"backend", "client"})
        (hop,) = {each.next_hop_mac for each in map(net.ways.get, gateways) if each} & {
            rig.run(frame(4, sport=sport)).data[:6] for sport in range(FLOWS)
        }
        assert rig.tables["backend_cpus"]["hop"]["rx_ifindex"].max() == rig.devices[IN]
        assert hop


def test_ways_come_and_go(net: Network) -> None:
    """The program is told as routes change: groups of nexthop objects, and one way again."""
    target, near, far = TARGET[4], NEAR[4], FAR[4]
    route = f"{target}/{HOST[4]}"
    with following(net, VARIED) as (rig, _):
        rig.serve(service(VIPS[4], target))
        ip(f"route add {route} via {near[0]}")
        rig.world.ways[target] = net.ways[near[0]]
        wait(lambda: rig.run(frame(4)).data == rig.world.judge(frame(4), rig.devices[IN]).frame)
        assert published(rig, 4) == set()
        ip(
            f"nexthop add id 1 via {near[0]} dev {IN}",
            f"nexthop add id 2 via {far[0]} dev {OUT}",
            "nexthop add id 3 group 1/2",
            f"route replace {route} nhid 3",
        )
        wait(lambda: "tunnel" in published(rig, 4))
        out = {rig.run(frame(4, sport=sport)).retval for sport in range(FLOWS)}
        assert len(out) == 2
        ip(f"route replace {route} via {near[0]}")
        wait(lambda: "tunnel" not in published(rig, 4))
        rig.expect(frame(4, sport=FLOWS), TX)


def test_backends_with_traffic_are_preferred(net: Network, pins: Path) -> None:
    """Also by the next process, which finds what was counted before."""
    preferred: list[frozenset[Address]] = []

    class Watched(Follower):
        """Notes what is preferred."""

        def prefer(self, addresses: Iterable[Address]) -> None:
            """As ever."""
            preferred.append(frozenset(addresses))
            super().prefer(preferred[-1])

    with Watched() as follower:
        with rigged(net, pins=pins, next_hops=follower) as rig:
            rig.serve(service(VIPS[4], NEAR[4][0]), service(VIPS[6], NEAR[6][0]))
            rig.expect(frame(4), TX)
            rig.balancer._hops._busy_at = 0.0
            rig.balancer.follow()
            assert preferred == [frozenset(), {NEAR[4][0]}]
            rig.expect(frame(6), TX)
            rig.balancer._hops._busy_at = 0.0
            rig.balancer.follow()
            assert preferred[-1] == {NEAR[6][0]}
        with rigged(net, pins=pins, next_hops=follower):
            assert preferred[-1] == {NEAR[4][0], NEAR[6][0]}


@pytest.mark.parametrize("family", [4, 6])
def test_a_rule_for_a_type_of_service_is_kept_for_no_other(net: Network, family: int) -> None:
    """In one moment packets with it go one way, and those without another."""
    target = TARGET[family]
    host = f"{target}/{HOST[family]}"
    ip(
        f"route add {host} via {NEAR[family][0]}",
        f"route add {host} via {FAR[family][0]} table 100",
    )
    ip(f"rule add tos {MARKED:#x} lookup 100", version=family)
    with following(net, GIVEN) as (rig, _):
        rig.serve(service(VIPS[family], target))
        wait(lambda: "tunnel" in published(rig, family))
        plain, marked = frame(family), frame(family, traffic_class=MARKED)
        for _ in range(50):
            rig.world.ways[target] = net.ways[NEAR[family][0]]
            rig.expect(plain, TX)
            rig.world.ways[target] = net.ways[FAR[family][0]]
            rig.expect(marked, REDIRECT)


def test_a_rule_for_sources_is_kept_for_no_other(net: Network) -> None:
    """Where outer sources vary."""
    target = TARGET[4]
    host = f"{target}/{HOST[4]}"
    ip(
        f"route add {host} via {NEAR[4][0]}",
        f"route add {host} via {THIRDS[4][0]} table 100",
        "rule add from 10.98.0.0/17 lookup 100",
    )
    with following(net, VARIED) as (rig, _):
        rig.serve(service(VIPS[4], target))
        wait(lambda: "tunnel" in published(rig, 4))
        verdicts = set()
        for sport in range(FLOWS):
            made = frame(4, sport=sport)
            rig.world.ways[target] = net.ways[NEAR[4][0]]
            low = outer_source(rig, made, 4) in IPv4Network("10.98.0.0/17")
            rig.world.ways[target] = net.ways[(THIRDS if low else NEAR)[4][0]]
            rig.expect(made, REDIRECT if low else TX)
            verdicts.add(low)
        assert verdicts == {True, False}
