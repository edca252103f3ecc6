# SPDX-License-Identifier: Apache-2.0
"""Source NAT with real clients and backends that have neither VIP nor decapsulation."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_balancer import SMALL
from tests.lab.harness_snat import (
    CLOSED,
    PORT,
    TIMEOUT,
    VIPS,
    Talk,
    own,
    services,
    snat,
    snat_lab,
)

from towpath import LoadBalancer
from towpath.kernel.jiffies import per_second
from towpath.kernel.net.netns import in_netns
from towpath.lab.topology import BALANCER, CLIENT, DEVICE, ROUTER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.lab import Lab
    from towpath.model import Address

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
REQUESTS = 40
DOWNLOAD = UPLOAD = 300_000
NARROW = 1300  # MTU of a link or way, of which only one node knows
LOCKED = ["mtu", "lock", str(NARROW)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Shared by the tests."""
    with snat_lab() as lab:
        yield lab


@pytest.fixture
def balancer(lab: Lab) -> Iterator[LoadBalancer]:
    """A load balancer on its host's only device. Nobody has learnt anything of a path yet."""
    forget_paths(lab)
    with in_netns(BALANCER), LoadBalancer(DEVICE, limits=SMALL, snat=snat(lab)) as balancer:
        for each in services(lab):
            balancer.add_service(**each)
        yield balancer


def forget_paths(lab: Lab) -> None:
    """Have all hosts forget the path MTUs that they were told of."""
    for namespace in lab.topology.namespaces:
        for family in ("-4", "-6"):
            flush = ["ip", "-n", namespace, family, "route", "flush", "cache"]
            subprocess.run(flush, check=True)


@pytest.mark.parametrize("version", [4, 6])
def test_tcp(lab: Lab, balancer: LoadBalancer, version: int) -> None:
    """Every backend is reached, and sees the load balancer; nothing is dropped."""
    seen = set()
    for _ in range(REQUESTS):
        with closing(Talk(version)) as talk:
            assert ip_address(talk.said["peer"]) == own(lab, version)
            assert talk.ask(20_000) == talk.said
            seen.add(talk.said["name"])
    assert seen == {"be1", "be2", "be3"}
    counted = balancer.counters()
    mine = counted.service(balancer.service(f"tcp{version}").key)
    assert mine.flows == REQUESTS
    assert mine.replies > REQUESTS
    assert mine.reply_bytes > REQUESTS * 20_000
    assert not any(n for verdict, n in counted.verdicts.items() if verdict.startswith("drop"))


@pytest.mark.parametrize("version", [4, 6])
def test_udp(lab: Lab, balancer: LoadBalancer, version: int) -> None:
    """Each datagram has its answer, from the VIP."""
    del balancer
    seen = set()
    for _ in range(REQUESTS):
        with closing(client_of(version)) as client:
            client.send(b"hello")
            said = json.loads(client.recv(1000))
            assert ip_address(said["peer"]) == own(lab, version)
            seen.add(said["name"])
    assert seen == {"be1", "be2", "be3"}


def client_of(version: int, port: int = PORT) -> socket.socket:
    """A client's socket for datagrams to the VIP, from which alone it takes answers."""
    with in_netns(CLIENT):
        client = socket.socket(FAMILIES[version], socket.SOCK_DGRAM)
        client.settimeout(TIMEOUT)
        client.connect((str(VIPS[version]), port))
    return client


@pytest.mark.parametrize("version", [4, 6])
def test_a_port_where_nobody_listens(balancer: LoadBalancer, version: int) -> None:
    """The backend's "port unreachable" gets to the client, and so does its reset."""
    del balancer
    with closing(client_of(version, CLOSED)) as client:
        client.send(b"hello")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1000)
    with in_netns(CLIENT), pytest.raises(ConnectionRefusedError):
        socket.create_connection((str(VIPS[version]), CLOSED), timeout=TIMEOUT)


@pytest.mark.parametrize("version", [4, 6])
def test_a_narrow_link_to_the_client(lab: Lab, balancer: LoadBalancer, version: int) -> None:
    """What the client's router says of too large answers gets to the backend, which learns."""
    with narrow_link():
        with closing(Talk(version)) as talk:
            assert talk.ask(DOWNLOAD) == talk.said
        assert learnt_mtu(talk.node, own(lab, version)) == NARROW
    counted = balancer.counters().service(balancer.service(f"tcp{version}").key)
    assert counted.reply_bytes > DOWNLOAD


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_in_fragments(balancer: LoadBalancer, version: int) -> None:
    """Of two to six fragments each: every byte is there and back, by several backends."""
    sizes = (1473, 2000, 4000, 4001, 8000)
    for _ in range(REQUESTS // 4):
        with closing(client_of(version)) as client:
            for size in sizes:
                data = bytes(at * 37 % 251 for at in range(size))
                client.send(data)
                assert client.recv(1 << 16) == data
    counted = balancer.counters()
    mine = counted.service(balancer.service(f"udp{version}").key)
    assert mine.flows == REQUESTS // 4
    assert mine.packets == mine.replies
    assert mine.packets >= REQUESTS // 4 * (2 + 2 + 3 + 3 + 6)
    assert len([each for each in mine.backends if each.packets]) > 1
    assert not any(n for verdict, n in counted.verdicts.items() if verdict.startswith("drop"))


@pytest.mark.parametrize("version", [4, 6])
def test_a_narrow_way_out(lab: Lab, balancer: LoadBalancer, version: int) -> None:
    """Whoever sends more than the load balancer can send on learns of it: client and backend.

    By their sockets: the kernel's routes are a cache of what its sockets have learnt.
    """
    for to, upload in (("backends", UPLOAD), ("client", 0)):
        forget_paths(lab)
        with closing(Talk(version)) as talk:
            assert min(talk.mtu, talk.their_mtu) > NARROW
            with narrow_way(lab, version, to):
                assert talk.ask(0 if upload else DOWNLOAD, upload) == talk.said
                talk.ask(0)
                assert (talk.mtu if upload else talk.their_mtu) == NARROW
    counted = balancer.counters()
    assert counted.verdicts["tx_too_big"] >= 2
    dropped = {verdict for verdict, n in counted.verdicts.items() if n and verdict[:4] == "drop"}
    assert dropped <= {"drop_mtu_quiet"}


@contextmanager
def narrow_way(lab: Lab, version: int, to: str) -> Iterator[None]:
    """The load balancer's ways to clients or backends take only so much."""
    links = [lab.topology.client] if to == "client" else lab.topology.backend_links
    networks = [str(link.ipv4 if version == 4 else link.ipv6) for link in links]
    link = lab.topology.balancer
    router = (link.router4 if version == 4 else link.router6).ip
    ip = ["ip", "-n", BALANCER, "route"]
    with ExitStack() as undo:
        for each in networks:
            subprocess.run([*ip, "add", each, "via", str(router), *LOCKED], check=True)
            undo.callback(subprocess.run, [*ip, "del", each], check=True)
        # A next hop is kept for the rest of its jiffy, long enough for all of a transfer.
        time.sleep(2 / per_second())
        yield


@contextmanager
def narrow_link() -> Iterator[None]:
    """The router's way to the client takes only so much, and the client doesn't know."""
    command = ["ip", "-n", ROUTER, "link", "set", "client", "mtu"]
    subprocess.run([*command, str(NARROW)], check=True)
    try:
        yield
    finally:
        subprocess.run([*command, "1500"], check=True)


def learnt_mtu(node: str, to: Address) -> int:
    """Path MTU that a host has learnt, 0 for none."""
    command = ["ip", "-n", node, "route", "get", str(to)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = re.search(r"expires.* mtu (\d+)", shown)
    return int(match[1]) if match else 0
