# SPDX-License-Identifier: Apache-2.0
"""Programs that people use, in a pod, through a node that masquerades it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.dns import DNS, DNSRR
from tests.lab.harness_masquerade import (
    FAR,
    LIMIT,
    NEAR6,
    PINS,
    SECTION,
    Lab,
    lab,
    moved,
    wait,
)

from towpath.datapath.masquerade.follower import Follower
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NODE, NODE6 = "10.0.0.1", "2001:db8:1::1"  # as the world sees pods
GATEWAY, GATEWAY6 = "10.244.0.1", "fd00:1::1"  # the node, as pods see it
BYTES = 32 << 20


@pytest.fixture
def net() -> Iterator[Lab]:
    """A pod, a node, a world."""
    with lab() as made:
        yield made


@pytest.fixture
def masq(net: Lab) -> Iterator[Follower]:
    """Masquerade on the node."""
    assert net
    made = Follower(SECTION, PINS)
    yield made
    made.detach()


def run(netns: int, command: Sequence[str]) -> str:
    """Run a program in a namespace; what it says."""
    with in_netns(netns):
        ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    return ran.stdout


# ---- iperf3 --------------------------------------------------------------------------------------


def iperf3(net: Lab, at: str, *options: str) -> tuple[Any, Any]:
    """Run it; what client and server report."""
    with in_netns(net.world):
        server = subprocess.Popen(
            ["iperf3", "--server", "--one-off", "--json", "--bind", at],
            stdout=subprocess.PIPE,
            text=True,
        )
    try:
        wait(lambda: listens(net.world, 5201), "iperf3 to listen")
        said = run(net.pod, ["iperf3", "--client", at, "--json", *options])
        told, _ = server.communicate(timeout=LIMIT)
    finally:
        server.kill()
        server.wait()
    return json.loads(said), json.loads(told)


def listens(netns: int, port: int) -> bool:
    """Whether a TCP socket of the namespace does."""
    with in_netns(netns):
        tables = [Path("/proc/thread-self/net", name).read_text() for name in ("tcp", "tcp6")]
    return any(re.search(rf":{port:04X} \S+:0000 0A ", table) for table in tables)


@pytest.mark.parametrize(("at", "seen"), [(FAR, NODE), (NEAR6, NODE6)])
@pytest.mark.parametrize("back", [False, True], ids=["out", "back"])
def test_iperf3_by_tcp(net: Lab, masq: Follower, at: str, seen: str, *, back: bool) -> None:
    """All of it arrives, of four connections at once."""
    since = moved(masq)
    options = ["--bytes", str(BYTES), "--parallel", "4", *(["--reverse"] if back else [])]
    client, server = iperf3(net, at, *options)
    assert server["start"]["accepted_connection"]["host"] == seen
    sent, received = client["end"]["sum_sent"], client["end"]["sum_received"]
    assert sent["bytes"] >= BYTES
    assert 0 < received["bytes"] <= sent["bytes"]
    counted = since()
    assert counted["from_pod.bound"] == 5
    assert not any("drop" in name for name in counted), counted


def test_iperf3_by_udp(net: Lab, masq: Follower) -> None:
    """What is lost is lost by sockets, and not here."""
    since = moved(masq)
    client, server = iperf3(net, FAR, "--udp", "--bytes", str(BYTES >> 4), "--bitrate", "50M")
    assert server["start"]["accepted_connection"]["host"] == NODE
    assert client["end"]["sum"]["packets"] > client["end"]["sum"]["lost_packets"]
    counted = since()
    assert counted["from_pod.bound"] == 2
    assert not any("drop" in name for name in counted), counted


# ---- ping, traceroute ----------------------------------------------------------------------------


@pytest.mark.parametrize("at", [FAR, NEAR6])
@pytest.mark.parametrize("size", ["56", "4000"])
def test_ping(net: Lab, masq: Follower, at: str, size: str) -> None:
    """One of an Ethernet packet, and one of several fragments."""
    since = moved(masq)
    said = run(net.pod, ["ping", "-c", "3", "-i", "0.2", "-s", size, at])
    assert " 3 received" in said
    counted = since()
    assert counted["from_pod.bound"] == 1
    assert not any("drop" in name for name in counted), counted


@pytest.mark.parametrize(("at", "node"), [(FAR, GATEWAY), (NEAR6, GATEWAY6)], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("by", [[], ["--icmp"], ["--tcp"]], ids=["udp", "icmp", "tcp"])
def test_traceroute(net: Lab, masq: Follower, at: str, node: str, by: list[str]) -> None:
    """The node is a hop, and then comes who it is for."""
    assert masq
    said = run(net.pod, ["traceroute", "-n", "-q", "1", "-w", "20", *by, at])
    hops = [re.split(r"\s+", line.strip())[:2] for line in said.splitlines()[1:]]
    assert hops == [["1", node], ["2", at]]


# ---- DNS -----------------------------------------------------------------------------------------


class Nameserver(threading.Thread):
    """Answers each question for TXT with the address of who asks, by UDP and TCP."""

    def __init__(self, net: Lab, at: str) -> None:
        super().__init__(daemon=True)
        self._udp = net.socket(net.world, socket.SOCK_DGRAM, at, 53)
        self._tcp = net.listening(at, 53)

    def run(self) -> None:
        """One by UDP, and one by TCP."""
        asked, who = self._udp.recvfrom(4096)
        self._udp.sendto(answer(asked, who[0]), who)
        connection, who = self._tcp.accept()
        with connection:
            asked = connection.recv(4096)
            told = answer(asked[2:], who[0])
            connection.sendall(len(told).to_bytes(2, "big") + told)


def answer(question: bytes, who: str) -> bytes:
    """An answer in the form of RFC 1035."""
    asked = DNS(question)
    record = DNSRR(rrname=asked.qd[0].qname, type="TXT", rdata=who)
    return bytes(DNS(id=asked.id, qr=1, aa=1, qd=asked.qd, an=[record], ar=[]))


@pytest.mark.parametrize(("at", "seen"), [(FAR, NODE), (NEAR6, NODE6)])
def test_dig(net: Lab, masq: Follower, at: str, seen: str) -> None:
    """By UDP, and by TCP."""
    assert masq
    server = Nameserver(net, at)
    server.start()
    for by in ("+notcp", "+tcp"):
        said = run(net.pod, ["dig", f"@{at}", by, "+tries=1", "+time=30", "+short", "who", "TXT"])
        assert said.strip() == f'"{seen}"'
    server.join(LIMIT)
