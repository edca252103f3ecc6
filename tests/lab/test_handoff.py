# SPDX-License-Identifier: Apache-2.0
"""A next hop not yet resolved costs time and no packet: the kernel resolves it and forwards.

Real devices, real ARP and neighbour discovery. The first packets are sent to nobody; then the
backend appears, and has them all.
"""

from __future__ import annotations

import socket
from contextlib import closing
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_handoff import (
    BALANCER,
    FAR,
    NEAR,
    OWN,
    TIMEOUT,
    Host,
    balancing,
    client,
    frame,
    receive,
    run,
    until,
    wires,
)

from towpath.kernel.bpf import probe
from towpath.kernel.net.netns import in_netns
from towpath.model import Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.harness_handoff import Mode

    from towpath.datapath.balancer import Balancer

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
SENT = 20
PLACES = {
    NEAR: {4: ip_address("192.0.2.11"), 6: ip_address("2001:db8:2::11")},
    FAR: {4: ip_address("198.51.100.11"), 6: ip_address("2001:db8:5::11")},
}
BEHIND = {4: ip_address("10.9.0.1"), 6: ip_address("2001:db8:9::1")}
BY_XDP = {NEAR: "tx", FAR: "redirect"}
VARIED = Source(IPv4Network("198.18.0.0/24"), IPv6Network("2001:db8:aa::/64"))


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    """Anew for each test: nobody has been asked for yet."""
    with wires():
        yield


def verdicts(balancer: Balancer) -> dict[str, int]:
    """What has been counted, without what hosts say to each other by themselves."""
    counted = balancer.counters().verdicts
    return {name: n for name, n in counted.items() if n and not name.startswith("pass")}


@pytest.mark.parametrize(
    ("mode", "where", "inside", "outside"),
    [
        *(("native", where, *pair) for where in (NEAR, FAR) for pair in COMBINATIONS),
        ("generic", NEAR, 4, 4),
        ("generic", FAR, 6, 6),
    ],
)
def test_the_first_packets_arrive(mode: Mode, where: str, inside: int, outside: int) -> None:
    """Back out of the device that they came in on, or of another; in order; then XDP takes over."""
    host = Host(where, PLACES[where][outside])
    first = [frame(inside, 2000 + n) for n in range(SENT)]
    with (
        balancing(inside, host.address, mode=mode) as balancer,
        client() as sender,
        closing(host.listen(inside)) as listening,
    ):
        for each in first:
            sender.send(each)
        until(lambda: verdicts(balancer) == {"handoff": SENT}, "all to be handed over")
        host.appear()
        assert [receive(listening) for _ in first] == [each[14:] for each in first]
        sender.send(first[0])
        assert receive(listening) == first[0][14:]
        assert verdicts(balancer) == {"handoff": SENT, BY_XDP[where]: 1}
        assert balancer.counters().verdicts["pass_no_vip"] == 0


@pytest.mark.parametrize("outside", [4, 6])
def test_the_first_packets_arrive_by_a_classic_filter(
    outside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on kernels that have no TCX links."""
    monkeypatch.setattr(probe, "tcx", lambda: False)
    assert_first_packets_arrive(Host(FAR, PLACES[FAR][outside]))


@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("where", [NEAR, FAR])
def test_varied_sources_and_strict_checks_are_no_obstacle(outside: int, where: str) -> None:
    """The kernel routes no packet here: its checks of sources and its forwarding have no say."""
    with in_netns(BALANCER):
        for name in ("all", NEAR, FAR):
            Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("1")
            Path(f"/proc/sys/net/ipv4/conf/{name}/log_martians").write_text("0")
    assert_first_packets_arrive(Host(where, PLACES[where][outside]), VARIED)


@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("where", [NEAR, FAR])
def test_the_first_packets_arrive_behind_a_gateway(outside: int, where: str) -> None:
    """It is the gateway that is resolved; the backend is one of its addresses."""
    gateway, behind = Host(where, PLACES[where][outside]), Host(where, BEHIND[outside])
    prefix = f"{behind.address}/{32 if outside == 4 else 128}"
    run("ip", "-n", BALANCER, "route", "add", prefix, "via", str(gateway.address))
    run("ip", "-n", where, "address", "add", prefix, "dev", "lo")
    assert_first_packets_arrive(behind, appears=gateway)


@pytest.mark.parametrize("where", [NEAR, FAR])
def test_the_first_packets_arrive_behind_a_gateway_of_the_other_family(where: str) -> None:
    """IPv4 by an IPv6 next hop (RFC 8950), which the kernel resolves by neighbour discovery."""
    gateway, behind = Host(where, PLACES[where][6]), Host(where, BEHIND[4])
    prefix, via = f"{behind.address}/32", ("via", "inet6", str(gateway.address), "dev", where)
    run("ip", "-n", BALANCER, "route", "add", prefix, *via)
    run("ip", "-n", where, "address", "add", prefix, "dev", "lo")
    assert_first_packets_arrive(behind, appears=gateway)


def assert_first_packets_arrive(
    host: Host, source: Source | None = None, appears: Host | None = None
) -> None:
    """Nobody is there at first; then all has arrived, in order."""
    first = [frame(4, 2000 + n) for n in range(SENT)]
    with (
        balancing(4, host.address, source=source) as balancer,
        client() as sender,
        closing(host.listen(4)) as listening,
    ):
        for each in first:
            sender.send(each)
        until(lambda: verdicts(balancer) == {"handoff": SENT}, "all to be handed over")
        (appears or host).appear()
        assert [receive(listening) for _ in first] == [each[14:] for each in first]


@pytest.mark.parametrize("outside", [4, 6])
def test_a_backend_that_goes_and_comes_back(outside: int) -> None:
    """Once the kernel has forgotten it, packets wait for it as they did at first."""
    host = Host(FAR, PLACES[FAR][outside])
    with (
        balancing(4, host.address) as balancer,
        client() as sender,
        closing(host.listen(4)) as listening,
    ):
        host.appear()
        for round_ in range(1, 4):
            first, second = frame(4, 1000 + round_), frame(4, 2000 + round_)
            sender.send(first)
            until(lambda: verdicts(balancer).get("handoff") == round_, "a packet handed over")  # noqa: B023
            if round_ > 1:
                host.appear()
            assert receive(listening) == first[14:]
            sender.send(second)
            assert receive(listening) == second[14:]
            assert verdicts(balancer) == {"handoff": round_, "redirect": round_}
            host.vanish()
            run("ip", "-n", BALANCER, "neigh", "flush", "dev", FAR)


@pytest.mark.parametrize("family", [4, 6])
def test_the_kernels_own_traffic_is_let_through(family: int) -> None:
    """Whatever carries no note of ours: here a datagram to the node itself, and the answer."""
    kind = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    Host(NEAR, PLACES[NEAR][family]).appear()
    with balancing(4, PLACES[FAR][4]) as balancer:
        with in_netns(BALANCER):
            server = socket.socket(kind, socket.SOCK_DGRAM)
        with in_netns(NEAR):
            asking = socket.socket(kind, socket.SOCK_DGRAM)
        with server, asking:
            for each in (server, asking):
                each.settimeout(TIMEOUT)
            server.bind((OWN[NEAR][family], 0))
            asking.sendto(b"question", server.getsockname()[:2])
            question, sender = server.recvfrom(100)
            server.sendto(question + b" answered", sender)
            assert asking.recv(100) == b"question answered"
        assert balancer.counters().verdicts["pass_no_vip"] == 1
        assert verdicts(balancer) == {}
