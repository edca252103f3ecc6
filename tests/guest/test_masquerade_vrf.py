# SPDX-License-Identifier: Apache-2.0
"""Masquerade of pods whose device, and the ways out, are in a VRF."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_masquerade import (
    FAR,
    NEAR6,
    PINS,
    SECTION,
    Lab,
    ip,
    lab,
    moved,
    transfer,
)

from towpath.datapath.masquerade.follower import Follower

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE = {FAR: "10.0.0.1", NEAR6: "2001:db8:1::1"}


@pytest.fixture
def net() -> Iterator[Lab]:
    """A node whose devices are all in one, with no route in the main table."""
    with lab() as made:
        ip(
            "link add red type vrf table 10\nlink set red up\n"
            "link set veth1 master red\nlink set eth0 master red\nlink set eth1 master red\n"
            "addr add fd00:1::1/64 dev veth1 nodad\naddr add 2001:db8:1::1/64 dev eth0 nodad"
        )
        yield made


@pytest.mark.parametrize("through_stack", [False, True])
def test_connections_and_datagrams(net: Lab, *, through_stack: bool) -> None:
    """Of any size, by the VRF's routes; what the stack sends on is translated as well."""
    made = Follower(replace(SECTION, through_stack=through_stack), PINS)
    try:
        since = moved(made)
        for at, seen in NODE.items():
            ours, theirs, peer = net.connect(at, 80, net.listening(at, 80))
            assert peer == seen
            transfer(ours, theirs, 1 << 20)
            transfer(theirs, ours, 1 << 20)
            server = net.socket(net.world, socket.SOCK_DGRAM, at, 53)
            client = net.socket(net.pod, socket.SOCK_DGRAM, "::" if ":" in at else "")
            for size in (1, 4000):
                client.sendto(bytes(size), (at, 53))
                data, who = server.recvfrom(9000)
                assert (len(data), who[0]) == (size, seen)
                server.sendto(data, who)
                assert len(client.recv(9000)) == size
        counted = since()
        assert not any("drop" in name for name in counted), counted
        assert counted.get("to_net.stack", 0) > 0 if through_stack else counted["from_pod.sent"] > 0
    finally:
        made.detach()
