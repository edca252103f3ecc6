# SPDX-License-Identifier: Apache-2.0
"""Forwarding l2 and affinity on a link with real backends, which answer clients directly."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.harness_lan import (
    BACKENDS,
    BALANCERS,
    CLIENT,
    DEVICE,
    PORT,
    TIMEOUT,
    VIPS,
    ask,
    balancing,
    client_addresses,
    ip,
    lan,
    own,
)

from towpath.kernel.net.netns import in_netns
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.harness_lan import Address

    from towpath import LoadBalancer

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # the VIP's family, that of the backends' addresses
LARGE = 2 << 20
IP_RECVTTL = 12  # <linux/in.h>
TTL_OPTIONS = {
    4: (socket.IPPROTO_IP, IP_RECVTTL, socket.IP_TTL),
    6: (socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, socket.IPV6_UNICAST_HOPS),
}
FIRST, SECOND = BALANCERS


@pytest.fixture(scope="module", autouse=True)
def link() -> Iterator[None]:
    """Two load balancers, three backends, a client with many addresses."""
    with lan():
        yield


@pytest.fixture
def balancer() -> Iterator[LoadBalancer]:
    """The one that answers for the VIPs, and knows nobody's MAC address yet."""
    ip(FIRST, f"neigh flush dev {DEVICE}")
    with balancing(FIRST) as (made,):
        yield made


def serve(balancer: LoadBalancer, version: int, known_by: int, **fields: Any) -> None:
    """The VIP of a family, with all backends on the link."""
    backends = [own(name, known_by) for name in BACKENDS]
    wanted: dict[str, Any] = {"forwarding": "l2", "table_size": 251} | fields
    balancer.add_service("echo", vip=VIPS[version], port=PORT, backends=backends, **wanted)


def verdicts(balancer: LoadBalancer) -> dict[str, int]:
    """What has been counted, without what passes to the kernel."""
    counted = balancer.counters().verdicts
    return {name: n for name, n in counted.items() if n and not name.startswith("pass")}


@pytest.mark.parametrize(("version", "known_by"), COMBINATIONS)
def test_clients_are_answered_by_every_backend(
    balancer: LoadBalancer, version: int, known_by: int
) -> None:
    """From the first packet, which waits for the backend's MAC address if that isn't known yet."""
    serve(balancer, version, known_by)
    answers = {ask(VIPS[version], source) for source in client_addresses(version) for _ in range(3)}
    assert answers == set(BACKENDS)
    counted = verdicts(balancer)
    assert counted.keys() <= {"tx", "handoff"}  # nothing is dropped
    assert counted["tx"] > counted.get("handoff", 0)


@pytest.mark.parametrize(("version", "known_by"), COMBINATIONS)
def test_full_sized_packets_need_no_room_for_a_tunnel(
    balancer: LoadBalancer, version: int, known_by: int
) -> None:
    """Two megabytes in packets of 1500 bytes, over links that carry no more."""
    serve(balancer, version, known_by)
    source = client_addresses(version)[0]
    assert ask(VIPS[version], source, LARGE) in BACKENDS
    counters = balancer.counters()
    (counted,) = counters.services
    assert not any(n for name, n in counters.verdicts.items() if name.startswith("drop"))
    assert counted.bytes > LARGE
    # Most of what came was as large as it can be.
    assert counted.bytes / counted.packets > 750


@pytest.mark.parametrize("version", [4, 6])
def test_packets_arrive_with_the_ttl_they_were_sent_with(
    balancer: LoadBalancer, version: int
) -> None:
    """Also with the last one."""
    name = BACKENDS[0]
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    level, ask_for, tell = TTL_OPTIONS[version]
    balancer.add_service(
        "udp",
        vip=VIPS[version],
        port=PORT,
        protocol="udp",
        backends=[own(name, version)],
        forwarding="l2",
        table_size=251,
    )
    with in_netns(name):
        server = socket.socket(family, socket.SOCK_DGRAM)
    with in_netns(CLIENT):
        client = socket.socket(family, socket.SOCK_DGRAM)
    with server, client:
        server.bind((str(VIPS[version]), PORT))
        server.settimeout(TIMEOUT)
        server.setsockopt(level, ask_for, 1)
        client.bind((str(client_addresses(version)[0]), 0))
        for ttl in (1, 7, 255):
            client.setsockopt(level, tell, ttl)
            client.sendto(b"towpath", (str(VIPS[version]), PORT))
            message, ((_, _, got),), _, sender = server.recvmsg(100, 100)
            assert (message, got[0], sender[:2]) == (b"towpath", ttl, client.getsockname()[:2])


@pytest.mark.parametrize("version", [4, 6])
def test_a_backend_behind_a_gateway_is_counted_as_such(
    balancer: LoadBalancer, version: int
) -> None:
    """And said to be in a trace."""
    behind = {4: "10.9.0.1", 6: "2001:db8:9::1"}[version]
    ip(FIRST, f"route add {behind} via {own(BACKENDS[0], version)}")
    try:
        balancer.add_service(
            "far", vip=VIPS[version], port=PORT, backends=[behind], forwarding="l2", table_size=251
        )
        source = client_addresses(version)[0]
        flow = f"{source}:1 -> {VIPS[version]}:{PORT}"
        if version == 6:
            flow = f"[{source}]:1 -> [{VIPS[version]}]:{PORT}"
        with in_netns(FIRST):
            traced = balancer.trace(flow)
        assert (traced.verdict, traced.fib_result) == ("drop_not_on_link", "behind a gateway")
        send_syn(version, source)
        wait_until(
            lambda: verdicts(balancer).get("drop_not_on_link", 0) > 0, seconds=120, what="the drop"
        )
        assert verdicts(balancer).keys() == {"drop_not_on_link"}
    finally:
        ip(FIRST, f"route delete {behind}")


def send_syn(version: int, source: Address) -> None:
    """Begin a connection to the VIP, and wait for nothing."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with in_netns(CLIENT):
        sender = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with sender:
        sender.bind((str(source), 0))
        assert sender.connect_ex((str(VIPS[version]), PORT)) == errno.EINPROGRESS


@pytest.mark.parametrize("version", [4, 6])
def test_clients_keep_their_backend_by_whichever_load_balancer(version: int) -> None:
    """Two of a group that tell each other nothing, and a router that changes its mind."""
    vip = {4: ip_address("203.0.113.10"), 6: ip_address("2001:db8:ff::10")}[version]
    ip(CLIENT, f"route replace {vip} via {own(FIRST, version)}")
    for name in BACKENDS:
        ip(name, f"address replace {vip} dev lo")
    try:
        with balancing(FIRST, SECOND) as balancers:
            for each, names in zip(balancers, (BACKENDS, BACKENDS[::-1]), strict=True):
                each.add_service(
                    "echo",
                    vip=vip,
                    port=PORT,
                    backends=[own(name, version) for name in names],
                    forwarding="l2",
                    affinity="10m",
                    table_size=251,
                )
            found = []
            for name in (FIRST, SECOND, FIRST):
                ip(CLIENT, f"route replace {vip} via {own(name, version)}")
                found += [[ask(vip, source) for source in client_addresses(version)] for _ in "ab"]
            assert all(each == found[0] for each in found)
            assert len(set(found[0])) > 1
            assert all(verdicts(each).keys() <= {"tx", "handoff"} for each in balancers)
            assert all(verdicts(each)["tx"] > 0 for each in balancers)
    finally:
        for name in BACKENDS:
            ip(name, f"address delete {vip} dev lo")
        ip(CLIENT, f"route delete {vip}")


@pytest.mark.parametrize("version", [4, 6])
def test_only_some_clients_are_let_in(balancer: LoadBalancer, version: int) -> None:
    """The others get no answer, and are counted; from the next packet on if that changes."""
    inside, outside = client_addresses(version)[:2]
    serve(balancer, version, version, allow_from=[str(inside)])
    assert ask(VIPS[version], inside) in BACKENDS
    before = verdicts(balancer)
    assert "drop_source" not in before
    send_syn(version, outside)
    wait_until(lambda: "drop_source" in verdicts(balancer), seconds=120, what="the drop")
    assert verdicts(balancer) == before | {"drop_source": verdicts(balancer)["drop_source"]}
    serve(balancer, version, version, allow_from=[str(outside)])
    assert ask(VIPS[version], outside) in BACKENDS
