# SPDX-License-Identifier: Apache-2.0
"""Links whose packets are larger than a page has room for, and proof that they were."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from towpath.kernel.bpf import probe
from towpath.lab.topology import DEVICE, ROUTER

if TYPE_CHECKING:
    from towpath.documents import ServiceCounters
    from towpath.lab import Lab, Topology

needs_fragments = pytest.mark.skipif(
    not probe.fragments(), reason="XDP programs take no frames in fragments"
)

JUMBO = 9000
ROOM = JUMBO - 40  # for an outer header


def widen(lab: Lab) -> None:
    """Give all links an MTU of 9000, and packets room for an outer header."""
    widen_links(lab.topology)


def widen_links(topology: Topology) -> None:
    """The same, where there is no lab."""
    for link in topology.links:
        for where, device in ((ROUTER, link.port), (link.node, DEVICE)):
            ip(where, "link", "set", device, "mtu", str(JUMBO))
        for family, gateway in ((4, link.router4.ip), (6, link.router6.ip)):
            way = ("default", "via", str(gateway), "mtu", str(ROOM))
            ip(link.node, f"-{family}", "route", "replace", *way)
            ip(link.node, f"-{family}", "route", "flush", "cache")


def ip(where: str, *arguments: str) -> None:
    """Run the ip tool in a namespace."""
    subprocess.run(["ip", "-n", where, *arguments], check=True, capture_output=True)


def assert_large(service: ServiceCounters) -> None:
    """Assert that most of a service's packets were larger than a page has room for."""
    assert service.drops == 0
    assert service.bytes / service.packets > 5000, service
