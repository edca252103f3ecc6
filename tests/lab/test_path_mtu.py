# SPDX-License-Identifier: Apache-2.0
"""Transfers complete over paths that carry less than their ends believe, and fragments arrive."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.harness_balancer import SMALL
from tests.lab.harness_handoff import until
from tests.lab.harness_transfer import (
    PORT,
    SIZE,
    datagram_client,
    datagrams,
    download,
    pattern_digest,
    ping,
    transfer_servers,
    upload,
)

from towpath import LoadBalancer
from towpath.kernel.net.netns import in_netns
from towpath.lab import Lab
from towpath.lab.topology import BALANCER, CLIENT, CORE_MTU, DEVICE, ROUTER, VIP4, VIP6

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.lab.traffic import Address

VIPS: dict[int, Address] = {4: VIP4, 6: VIP6}
FAMILIES = [4, 6]
OUTER_HEADER = {4: 20, 6: 40}
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0  # <linux/in.h>


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three backends behind a router; the client's link carries 1500 bytes, the others more."""
    with Lab.up(3) as lab, transfer_servers(lab, VIP4, VIP6):
        yield lab


@pytest.fixture
def balancer(lab: Lab) -> Iterator[LoadBalancer]:
    """Both VIPs, for streams and for datagrams. Nobody has learned anything of a path yet."""
    for namespace in lab.topology.namespaces:
        for family in FAMILIES:
            ip(namespace, f"-{family}", "route", "flush", "cache")
    links = lab.topology.backend_links
    with in_netns(BALANCER), LoadBalancer(DEVICE, limits=SMALL) as balancer:
        for family, vip in VIPS.items():
            backends = [(one.node4 if family == 4 else one.node6)[0].ip for one in links]
            for protocol in ("tcp", "udp"):
                balancer.add_service(
                    f"{protocol}{family}",
                    vip=vip,
                    port=PORT,
                    protocol=protocol,
                    backends=backends,
                    table_size=251,
                )
        yield balancer


@contextmanager
def mtu(*devices: tuple[str, str, int, int]) -> Iterator[None]:
    """Devices (namespace, name, MTU, the one it has otherwise) have another MTU in the block."""
    for namespace, name, value, _ in devices:
        ip(namespace, "link", "set", name, "mtu", str(value))
    try:
        yield
    finally:
        for namespace, name, _, before in devices:
            ip(namespace, "link", "set", name, "mtu", str(before))


def ip(namespace: str, *arguments: str) -> Any:
    """Run the ip tool in a namespace: what it prints, as data."""
    command = ["ip", "-json", "-netns", namespace, *arguments]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(ran.stdout or "[]")


def learned(namespace: str, to: Address | str, source: str | Address) -> int | None:
    """The path MTU of a destination, as a host's routes have it for an address of its own."""
    (route,) = ip(namespace, "route", "get", str(to), "from", str(source))
    metrics: list[dict[str, int]] = route.get("metrics", [])
    return next((each["mtu"] for each in metrics if "mtu" in each), None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_download_over_a_path_of_1400_bytes(
    lab: Lab, balancer: LoadBalancer, family: int
) -> None:
    """The client's router tells the VIP, and the very backend that sends learns of it."""
    vip = VIPS[family]
    with mtu((ROUTER, "client", 1400, 1500)):
        name, client, digest = download(vip)
    assert digest == pattern_digest(SIZE)
    hosts = {link.port: learned(link.node, client, vip) for link in lab.topology.backend_links}
    assert hosts.pop(name) == 1400
    assert set(hosts.values()) <= {1500}
    verdicts = balancer.counters().verdicts
    assert not any(n for verdict, n in verdicts.items() if verdict.startswith("drop"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("lab")
def test_an_upload_that_the_tunnel_has_no_room_for(balancer: LoadBalancer, family: int) -> None:
    """The load balancer tells the client what fits, which is then what it sends."""
    vip = VIPS[family]
    narrow = 1500
    with mtu((BALANCER, DEVICE, narrow, CORE_MTU), (ROUTER, "lb", narrow, CORE_MTU)):
        _, client, digest = upload(vip)
        assert digest == pattern_digest(SIZE)
        assert learned(CLIENT, vip, client) == narrow - OUTER_HEADER[family]
    counters = balancer.counters()
    told = counters.verdicts["tx_too_big"]
    assert 0 < told < 100
    service = balancer.service(f"tcp{family}")
    assert counters.service(service.key).drops == told + counters.verdicts["drop_mtu_quiet"]


@pytest.mark.usefixtures("lab")
def test_datagrams_without_df_that_the_tunnel_has_no_room_for(balancer: LoadBalancer) -> None:
    """The client, which minds no path's MTU, is told what fits, and sends fragments after that."""
    narrow, payload = 1500, bytes(at % 251 for at in range(1472))
    with (
        mtu((BALANCER, DEVICE, narrow, CORE_MTU), (ROUTER, "lb", narrow, CORE_MTU)),
        datagram_client(VIP4) as client,
    ):
        client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        source = client.getsockname()[0]
        client.send(payload)
        room = narrow - OUTER_HEADER[4]
        until(lambda: learned(CLIENT, VIP4, source) == room, "the client learns what fits")
        for _ in range(4):
            client.send(payload)
            _, digest = client.recv(1000).decode().split()
            assert digest == hashlib.sha256(payload).hexdigest()
    counted = {k: v for k, v in balancer.counters().verdicts.items() if k[:4] in {"drop", "tx_t"}}
    assert {k: v for k, v in counted.items() if v} == {"tx_too_big": 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_datagrams_in_fragments_arrive_whole(balancer: LoadBalancer, family: int) -> None:
    """At the backend that the flow's small datagrams reach, however many fragments there are."""
    sizes = [100, 1472, 1473, 4000, 9000, 30000]
    payloads = [bytes(at % 251 for at in range(size)) for size in sizes * 2]
    seen = set()
    for _ in range(12):
        answers = datagrams(VIPS[family], payloads)
        assert [digest for _, digest in answers] == [
            hashlib.sha256(payload).hexdigest() for payload in payloads
        ]
        (name,) = {name for name, _ in answers}
        seen.add(name)
    assert len(seen) > 1
    verdicts = balancer.counters().verdicts
    assert not any(n for verdict, n in verdicts.items() if verdict.startswith("drop"))


@pytest.mark.usefixtures("lab")
def test_pings_are_answered(balancer: LoadBalancer) -> None:
    """By the load balancer, for both VIPs, with the data that came."""
    for vip in VIPS.values():
        assert ping(vip, 10) == [bytes(at % 251 for at in range(100 * n)) for n in range(10)]
    assert balancer.counters().verdicts["tx_echo"] == 20
