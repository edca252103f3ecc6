# SPDX-License-Identifier: Apache-2.0
"""Clients whose answers would go nowhere: the look-up in the FIB would send them to the gateway."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from tests.prog.lb.network import GATEWAY, IN, Network, ip, neighbour
from tests.prog.lb.oracle import TX
from tests.prog.snat.harness import NatRig, client_frame, services

MARTIAN = "drop_martian"
MARTIANS = [
    "0.0.0.0",
    "0.255.255.255",
    "127.0.0.1",
    "127.255.255.255",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:198.51.100.77",
    "fe80::1",
    "febf::1",
    "ff02::1",
    "ff0e::1",
]
HOSTS = ["1.0.0.0", "126.255.255.255", "128.0.0.1", "169.254.1.1", "223.255.255.255"]
HOSTS += ["::2", "::fffe:198.51.100.77", "::1:0:0", "1::", "fe00::1", "fec0::1", "feff::1"]


@pytest.fixture
def routed(net: Network, nat: NatRig) -> NatRig:
    """With default routes, that everything is reached by; services of each kind."""
    for version in (4, 6):
        default = {4: "0.0.0.0/0", 6: "::/0"}[version]
        ip(f"route replace {default} via {neighbour(IN, version, GATEWAY)} dev {IN}")
    assert net
    nat.serve(*services())
    nat.empty()
    return nat


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("source", MARTIANS)
def test_a_martian_begins_no_flow(routed: NatRig, source: str, protocol: int) -> None:
    """It is dropped, and no translation is spent on it."""
    client = ip_address(source)
    for flags in "SA":
        made = client_frame(client.version, protocol, source=client, flags=flags)
        outcome = routed.check(made)
        assert outcome.verdict == MARTIAN
    assert not routed.tables["nat_flows"]["way"]["ref"].any()


@pytest.mark.parametrize("source", HOSTS)
def test_others_do(routed: NatRig, source: str) -> None:
    """Just beside those."""
    client = ip_address(source)
    routed.expect(client_frame(client.version, source=client), TX)
