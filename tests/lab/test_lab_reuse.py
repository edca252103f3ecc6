# SPDX-License-Identifier: Apache-2.0
"""Real clients use their ports again while the backend that had them is terminating."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_lab import assert_nothing_left

from towpath.kernel.net.netns import in_netns
from towpath.lab import Lab
from towpath.lab.agent import Agent
from towpath.lab.topology import CLIENT, VIP4, VIP6

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.lab.traffic import Address

PORTS = range(20000, 20020)
REQUEST = b"GET / HTTP/1.0\r\n\r\n"
TIMEOUT = 30
"""Seconds; what is answered at all is answered at once, but for a lost packet."""


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """The real agent in a lab with a few backends."""
    with Lab.up(3) as lab:
        made = Agent(lab)
        yield made
        made.client.close()
    assert_nothing_left()


def ask_from(port: int, vip: Address) -> str:
    """Ask for a page from a port of the client's, and end the connection: who answered."""
    family = socket.AF_INET if vip.version == 4 else socket.AF_INET6
    with in_netns(CLIENT):
        made = socket.socket(family, socket.SOCK_STREAM)
    with closing(made) as connection:
        # The server ends first, so that it is its kernel that remembers the connection.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.settimeout(TIMEOUT)
        connection.bind(("", port))
        connection.connect((str(vip), 80))
        connection.sendall(REQUEST)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    return answer.rpartition(b"\r\n\r\n")[2].decode()


def ask_all() -> dict[tuple[Address, int], str]:
    """From every port, over both families: who answered."""
    return {(vip, port): ask_from(port, vip) for vip in (VIP4, VIP6) for port in PORTS}


def test_none_of_them_meets_the_backend_that_leaves(agent: Agent) -> None:
    """And those of other backends go where they went."""
    before = ask_all()
    assert ask_all() == before
    gone = before[VIP4, PORTS[0]]
    stays = {end: name for end, name in before.items() if name != gone}
    assert {vip for (vip, _), name in before.items() if name == gone} == {VIP4, VIP6}
    agent.remove(gone)
    after = ask_all()
    assert gone not in after.values()
    assert {end: after[end] for end in stays} == stays
    assert ask_all() == after
