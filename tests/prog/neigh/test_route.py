# SPDX-License-Identifier: Apache-2.0
"""The datapath's own look-up, beside routes of every kind."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
from tests.prog.neigh.conftest import Network, ip

from towpath.datapath.neigh.route import ask
from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.kernel.errors import KernelError

FORWARDING = ("ipv4/conf/n0/forwarding", "ipv6/conf/n0/forwarding")


@pytest.fixture(params=["without a rule", "with a rule"])
def node(network: Network, request: pytest.FixtureRequest) -> Network:
    """A node that forwards, with routes of every kind.

    The first rule ever added changes what the kernel asks its tables for.
    """
    for each in FORWARDING:
        Path("/proc/sys/net", each).write_text("1")
    if request.param == "with a rule":
        ip("rule add to 203.0.113.0/24 lookup main priority 100")
        ip("-6 rule add to 2001:db8:f::/48 lookup main priority 100")
    ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev n0 nud permanent")
    ip("neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev n0 nud permanent")
    for route in (
        "10.0.0.0/16 via 192.0.2.2 mtu lock 1400",
        "10.1.0.0/16 via inet6 2001:db8::2 dev n0",
        "blackhole 10.4.0.0/16",
        "unreachable 10.5.0.0/16",
        "prohibit 10.6.0.0/16",
    ):
        ip(f"route add {route}")
    ip("-6 route add 2001:db8:1::/48 via 2001:db8::2")
    return network


@pytest.mark.parametrize(
    ("to", "verdict", "next_hop"),
    [
        ("192.0.2.2", "sent", "192.0.2.2"),
        ("192.0.2.3", "handoff", "192.0.2.3"),
        ("10.0.0.1", "sent", "192.0.2.2"),
        ("10.1.0.1", "sent", "2001:db8::2"),
        ("10.4.0.1", "drop_blackhole", None),
        ("10.5.0.1", "drop_unreachable", None),
        ("10.6.0.1", "drop_prohibited", None),
        ("192.0.2.1", "drop_no_route", None),
        ("198.51.100.1", "drop_no_route", None),
        ("2001:db8::2", "sent", "2001:db8::2"),
        ("2001:db8::3", "handoff", "2001:db8::3"),
        ("2001:db8:1::1", "sent", "2001:db8::2"),
        ("2001:db8:7::1", "drop_no_route", None),
    ],
)
def test_each_route_has_its_verdict(
    node: Network, to: str, verdict: str, next_hop: str | None
) -> None:
    """And its next hop, with and without rules."""
    found = ask(ip_address(to), "n0")
    assert node
    assert (found.verdict, found.next_hop) == (verdict, next_hop and ip_address(next_hop))
    assert found.device == ("n0" if next_hop else None)
    assert found.mac == ("02:00:00:00:00:02" if verdict == "sent" else None)


def test_the_route_says_source_and_mtu(node: Network) -> None:
    """The source where the kernel's look-up can tell it."""
    found = ask(ip_address("10.0.0.1"), "n0")
    assert node
    assert found.mtu == (1400 if fib_lookup().mtu else None)  # Linux 5.10 tells none
    if fib_lookup().source:
        assert found.source == ip_address("192.0.2.1")
    named = ask(ip_address("10.0.0.1"), "n0", ip_address("192.0.2.77"))
    assert named.source == ip_address("192.0.2.77")


def test_what_leaves_by_no_frame_is_the_kernels(node: Network) -> None:
    """Though its look-up finds a way."""
    ip("tuntap add t0 mode tun")
    ip("link set t0 up")
    ip("addr add 10.8.0.1/24 dev t0")
    node.send("10.8.0.9")  # from then on there is a neighbour, which the look-up finds
    found = ask(ip_address("10.8.0.9"), "n0")
    assert (found.verdict, found.device, found.mac) == ("handoff", "t0", None)
    assert "Ethernet" in found.why


def test_a_device_that_does_not_forward_is_told(network: Network) -> None:
    """A new one doesn't."""
    assert network
    Path("/proc/sys/net", FORWARDING[0]).write_text("0")
    assert ask(ip_address("192.0.2.2"), "n0").verdict == "drop_no_forwarding"


def test_a_device_that_is_not_there_is_an_error(network: Network) -> None:
    """With those that are."""
    assert network
    with pytest.raises(KernelError, match="no such device: eth9"):
        ask(ip_address("192.0.2.2"), "eth9")
