# SPDX-License-Identifier: Apache-2.0
"""Another program's checks in the lab: its own sockets, with marks, through real tunnels."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_balancer import SMALL

from towpath.datapath.balancer import Balancer
from towpath.kernel.net.netns import in_netns
from towpath.lab import Lab
from towpath.lab.topology import BALANCER, DEVICE, VIP4, VIP6
from towpath.model import Device, parse_service
from towpath.model.settings import ForeignCheck

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.model import Address

FIRST = 1 << 16
CHECKER = """
import socket, sys
vip, mark = sys.argv[1], int(sys.argv[2])
kind = socket.AF_INET6 if ":" in vip else socket.AF_INET
with socket.socket(kind) as made:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    made.settimeout(60)
    made.connect((vip, 80))
    lines = [b"GET / HTTP/1.1", b"Host: towpath", b"X: " + b"x" * 6000, b"Connection: close"]
    made.sendall(b"\\r\\n".join(lines) + b"\\r\\n\\r\\n")
    print(b"".join(iter(lambda: made.recv(4096), b"")).rpartition(b"\\r\\n\\r\\n")[2].decode())
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The lab with two backends."""
    with Lab.up(2) as lab:
        yield lab


@pytest.fixture(scope="module")
def balancer(lab: Lab) -> Iterator[Balancer]:
    """Services of the first backend, and a mark for each of both, by each family."""
    links = lab.topology.backend_links
    addresses = [link.node4[0].ip for link in links] + [link.node6[0].ip for link in links]
    checks = [ForeignCheck(FIRST + at, each) for at, each in enumerate(addresses)]
    with in_netns(BALANCER), Balancer([Device(DEVICE)], limits=SMALL, foreign=checks) as balancer:
        fields = {"port": 80, "table_size": 251}
        balancer.apply(
            parse_service({"name": f"web{vip.version}", "vip": vip, "backends": [to]} | fields)
            for vip, to in ((VIP4, addresses[0]), (VIP6, addresses[2]))
        )
        balancer.health.open([VIP4, VIP6])
        yield balancer


@pytest.mark.parametrize(("vip", "first"), [(VIP4, 0), (VIP4, 2), (VIP6, 2)])
def test_a_checker_reaches_the_backend_of_its_mark(
    balancer: Balancer, vip: Address, first: int
) -> None:
    """Also one that gets no flows; with a socket that is bound to nothing, and a large request."""
    before = balancer.health.counters()
    for number in range(2):
        assert answered(vip, FIRST + first + number) == f"be{number + 1}\n"
    after = balancer.health.counters()
    assert after.pop("sent") > before.pop("sent")
    assert after == before


def test_a_rule_that_is_gone_is_put_back(balancer: Balancer) -> None:
    """And counted, when it is next looked at; at the end nothing is left."""
    repairs = balancer.health.repairs
    rules = ["ip", "netns", "exec", BALANCER, "ip", "rule"]
    subprocess.run([*rules, "del", "priority", "748"], check=True)
    with in_netns(BALANCER):
        balancer.health.follow()
    assert balancer.health.repairs == repairs + 1
    assert answered(VIP4, FIRST + 1) == "be2\n"
    with in_netns(BALANCER):
        balancer.health.close()
    shown = subprocess.run([*rules, "show"], check=True, capture_output=True, text=True).stdout
    assert "fwmark" not in shown
    with in_netns(BALANCER):
        balancer.health.open([VIP4, VIP6])


def answered(vip: Address, mark: int) -> str:
    """Who answers a program of its own, in the balancer's namespace."""
    command = ["ip", "netns", "exec", BALANCER, sys.executable, "-c", CHECKER, str(vip), str(mark)]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ, timeout=120
    ).stdout
