# SPDX-License-Identifier: Apache-2.0
"""Addresses of the node's that come and go by themselves."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_masquerade import NEAR6, PINS, SECTION, Lab, ip, lab, transfer, wait

from towpath.datapath.masquerade.follower import Follower
from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.kernel.net.devices import Devices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.kernel.net.devices import Owned


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


def known(masq: Follower, address: str) -> bool:
    """Whether packets may leave from an address."""
    return masq.asked(lambda node: ip_address(address) in node.sources.by_address)


def test_temporary_addresses(net: Lab, masq: Follower) -> None:
    """Flows begin from one, where the node prefers it, and stay with it when it is deprecated."""
    if not fib_lookup().source:
        pytest.skip("this kernel's FIB tells no sources (Linux 6.7)")
    for name, value in (("use_tempaddr", "2"), ("accept_dad", "0")):
        Path("/proc/sys/net/ipv6/conf/eth0", name).write_text(value, encoding="ascii")
    ip("addr add 2001:db8:1::9/64 dev eth0 nodad mngtmpaddr")

    def temporary() -> list[str]:
        found = (str(each.interface.ip) for each in addresses() if each.secondary)
        return [each for each in found if known(masq, each)]

    def addresses() -> list[Owned]:
        with Devices() as devices:
            return [each for each in devices.addresses() if ":" in str(each.interface)]

    wait(lambda: bool(temporary()), "a temporary address that can be used")
    (first,) = temporary()
    listener = net.listening(NEAR6, 80)
    ours, theirs, seen = net.connect(NEAR6, 80, listener)
    assert seen == first
    ip(f"addr change {first}/64 dev eth0 preferred_lft 0")

    def another() -> str:
        return net.connect(NEAR6, 80, listener)[2]

    wait(lambda: another() != first, "an address that isn't deprecated")
    transfer(ours, theirs, 1 << 20)
    transfer(theirs, ours, 1 << 20)
    ip(f"addr del {first}/64 dev eth0")
    wait(lambda: not known(masq, first), "the address to be gone")
    ours.send(b"x")
    with pytest.raises(ConnectionResetError):
        ours.recv(10)
