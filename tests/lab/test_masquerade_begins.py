# SPDX-License-Identifier: Apache-2.0
"""Masquerade that begins on a node where netfilter has translated for pods until now."""

from __future__ import annotations

import socket
import subprocess
from contextlib import closing, contextmanager
from socket import SOCK_DGRAM, SOCK_STREAM
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_masquerade import NEAR, PINS, POD, SECTION, Lab, lab

from towpath.datapath.attach.places import Places
from towpath.datapath.masquerade import node
from towpath.datapath.masquerade.follower import Follower

if TYPE_CHECKING:
    from collections.abc import Iterator

VIP, NODE = "198.51.100.10", "192.168.0.1"
RULES = f"""
table ip proxy {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    ip daddr {VIP} meta l4proto {{ tcp, udp }} th dport 80 dnat to {NEAR}:8080
    ip daddr {NODE} udp dport 30053 dnat to {POD}:53
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {POD} oifname "eth0" masquerade
  }}
}}
"""
"""As kube-proxy does it, and a CNI plugin: a service elsewhere, a node port, what pods send."""


@pytest.fixture
def net() -> Iterator[Lab]:
    """A pod, a node with rules, a world. The VIP has a way out, by which nobody answers."""
    with lab() as made:
        subprocess.run(["ip", "route", "add", "default", "via", NEAR], check=True)
        subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)
        yield made


@contextmanager
def masquerading() -> Iterator[Follower]:
    """On the node."""
    made = Follower(SECTION, PINS)
    try:
        yield made
    finally:
        made.detach()


def asked(client: socket.socket, server: socket.socket) -> tuple[str, int]:
    """Whom a server sees that is asked, and has answered."""
    client.send(b"?")
    question, whom = server.recvfrom(100)
    server.sendto(question, whom)
    assert client.recv(100) == b"?"
    return whom[0], int(whom[1])


def test_what_came_in_before_is_answered(net: Lab) -> None:
    """From the port that was asked, however late."""
    server = net.socket(net.pod, SOCK_DGRAM, POD, 53)
    client = net.socket(net.world, SOCK_DGRAM, NEAR)
    client.connect((NODE, 30053))
    client.settimeout(2)
    client.send(b"?")
    question, whom = server.recvfrom(100)
    assert whom[0] == NEAR
    with masquerading():
        server.sendto(question, whom)
        assert client.recv(100) == b"?"


@pytest.mark.parametrize("to", [(VIP, 80), (NEAR, 8080)], ids=["service", "elsewhere"])
def test_what_pods_have_begun_goes_on(
    net: Lab, to: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel translates it, also what rests while it begins and long after."""
    monkeypatch.setattr(node, "ADOPT_SECONDS", 0)
    server = net.socket(net.world, SOCK_DGRAM, NEAR, 8080)
    listener = net.listening(NEAR, 8080)
    client, stream = net.socket(net.pod, SOCK_DGRAM), net.socket(net.pod, SOCK_STREAM)
    client.connect(to)
    seen = asked(client, server)
    stream.connect(to)
    with closing(listener.accept()[0]) as accepted, masquerading():
        for each in (client, stream, accepted, server):
            each.settimeout(2)
        assert asked(client, server) == seen
        stream.send(b"?")
        assert accepted.recv(100) == b"?"
        accepted.send(b"!")
        assert stream.recv(100) == b"!"


def test_what_begins_then_is_masqueraded(net: Lab) -> None:
    """At once."""
    server = net.socket(net.world, SOCK_DGRAM, NEAR, 8080)
    with masquerading():
        new = net.socket(net.pod, SOCK_DGRAM)
        new.connect((NEAR, 8080))
        address, port = asked(new, server)
        assert address == NODE
        assert port in range(61000, 65536)


def test_what_comes_in_while_it_ends_is_answered(net: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs go one by one: what notes it may be gone before what would masquerade the answer."""
    server = net.socket(net.pod, SOCK_DGRAM, POD, 53)
    client = net.socket(net.world, SOCK_DGRAM, NEAR)
    client.connect((NODE, 30053))
    client.settimeout(2)
    with masquerading() as masq, monkeypatch.context() as patch:
        egress = f"{socket.if_nametoindex('veth1')}-egress"
        patch.setattr(Places, "detach", lambda places: places.drop(egress))
        masq.asked(lambda each: each.detach())
        client.send(b"?")
        question, whom = server.recvfrom(100)
        server.sendto(question, whom)
        assert client.recv(100) == b"?"
