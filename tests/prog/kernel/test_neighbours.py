# SPDX-License-Identifier: Apache-2.0
"""Making and reading neighbours, compared with what iproute2 says and makes."""

from __future__ import annotations

import errno
import json
import subprocess
from ipaddress import ip_address
from typing import Any

import pytest
from tests.prog.kernel.conftest import ip
from tests.prog.kernel.harness_caps import only

from towpath.kernel.errors import KernelError
from towpath.kernel.net import neighbours
from towpath.kernel.net.messages import ROUTE, Netlink
from towpath.kernel.net.neighbours import Key, Neighbour, Request

PROTOCOL = 200


@pytest.fixture
def link(veth: int) -> int:
    """Addresses on tp0, whose peer answers for nothing; returns its index."""
    ip("addr add 192.0.2.1/24 dev tp0")
    ip("addr add 2001:db8::1/64 dev tp0 nodad")
    return veth


def key(device: int, address: str) -> Key:
    """A neighbour's key."""
    return Key(device, ip_address(address))


def put(*requests: Request) -> list[int]:
    """Make entries."""
    with Netlink(ROUTE) as netlink:
        return neighbours.put(netlink, requests)


def found(wanted: Key) -> Neighbour | None:
    """Return an entry, or None."""
    return next((each for each in neighbours.neighbours() if each.key == wanted), None)


def told_by_ip(wanted: Key) -> Any:
    """Return iproute2's account of a neighbour."""
    command = ["ip", "-json", "-statistics", "neigh", "show", "nud", "all", str(wanted.address)]
    command += ["dev", "tp0"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.mark.parametrize("address", ["192.0.2.2", "2001:db8::2"])
def test_what_iproute2_makes_is_read(link: int, address: str) -> None:
    """MAC, state and flags."""
    ip(f"neigh add {address} lladdr 02:00:00:00:00:09 dev tp0 nud permanent protocol 200")
    entry = found(key(link, address))
    assert entry
    assert entry.mac.hex(":") == "02:00:00:00:00:09"
    assert neighbours.STATES[entry.state] == "permanent"
    assert (entry.protocol, entry.extended, entry.valid) == (PROTOCOL, 0, True)


@pytest.mark.parametrize("address", ["192.0.2.2", "2001:db8::2", "fe80::2"])
def test_managed_entry_is_what_iproute2_says(link: int, address: str) -> None:
    """Nobody answers, so the kernel goes on asking."""
    wanted = key(link, address)
    assert put(Request(wanted, protocol=PROTOCOL)) == [0]
    entry = found(wanted)
    (told,) = told_by_ip(wanted)
    assert entry
    assert entry.flags == neighbours.EXTERN_LEARN
    assert entry.protocol == PROTOCOL
    assert ("managed" in told) == bool(entry.extended & neighbours.MANAGED)
    assert "extern_learn" in told
    assert entry.mac == b""
    assert not entry.valid


def test_each_request_has_its_own_result(link: int) -> None:
    """One that is refused doesn't keep back the others."""
    mine, gone = key(link, "192.0.2.2"), key(9999, "192.0.2.2")
    other = key(link, "192.0.2.3")
    results = put(
        Request(mine, new=True), Request(gone), Request(mine, new=True), Request(other, new=True)
    )
    assert results == [0, errno.ENODEV, errno.EEXIST, 0]
    assert found(mine)
    assert found(other)


def test_many_are_made_and_removed(link: int) -> None:
    """More than fit into one buffer."""
    keys = [key(link, f"10.0.{n // 250}.{n % 250 + 1}") for n in range(1000)]
    assert put(*(Request(each, protocol=PROTOCOL) for each in keys)) == [0] * len(keys)
    there = {each.key for each in neighbours.neighbours() if each.protocol == PROTOCOL}
    assert there == set(keys)
    with Netlink(ROUTE) as netlink:
        assert neighbours.delete(netlink, keys) == [0] * len(keys)
        assert neighbours.delete(netlink, keys[:1]) == [errno.ENOENT]
    assert not [each for each in neighbours.neighbours() if each.protocol == PROTOCOL]


def test_not_allowed_is_said_so(link: int) -> None:
    """With what is needed."""
    with only(), pytest.raises(KernelError, match="CAP_NET_ADMIN"):
        put(Request(key(link, "192.0.2.2")))
