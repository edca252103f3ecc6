# SPDX-License-Identifier: Apache-2.0
"""Following a namespace: what is told, in which order, and what happens when it is too much."""

from __future__ import annotations

import select
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from tests.prog.kernel.conftest import ip

from towpath.kernel.errors import KernelError
from towpath.kernel.net import messages
from towpath.kernel.net.netns import new_netns
from towpath.kernel.net.watch import Change, Group, Watch, decoded
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR = 20, 21
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH = 28, 29
NEWRULE = 32
NOTHING = bytes(16)  # a fixed part that asks for everything


@pytest.fixture
def home() -> Iterator[int]:
    """A namespace of the test's own; an open file that stands for it."""
    with new_netns() as namespace:
        ip("link set lo up")
        yield namespace


def add(name: str = "tp0") -> None:
    """Make a veth pair of which nothing is told once it is there."""
    ip(f"link add {name} type veth peer name {name}p")
    for each in (name, f"{name}p"):
        ip(f"link set {each} up")


def told(watch: Watch) -> list[Change]:
    """What is there to be read: netlink tells before the command that caused it returns."""
    found = watch.read()
    assert found is not None
    return found


def kinds_until(watch: Watch, kind: int) -> set[int]:
    """The kinds that are told, until this one is: IPv6 addresses are a worker's of the kernel."""
    found: set[int] = set()

    def seen() -> bool:
        found.update(each.kind for each in told(watch))
        return kind in found

    wait_until(seen, seconds=60, what=f"a message of kind {kind}")
    return found


def test_nothing_is_told_of_what_was_before(home: int) -> None:
    """That is asked for."""
    assert home
    add()
    with Watch([Group.LINK]) as watch:
        assert told(watch) == []
        assert not select.select([watch], [], [], 0)[0]
        there = watch.ask(GETLINK, NOTHING)
    names = [decoded(each).get("ifname") for each in there]
    assert {each.kind for each in there} == {NEWLINK}
    assert {"lo", "tp0", "tp0p"} <= set(names)


def test_each_group_tells_its_own(home: int) -> None:
    """A device, an address, a route, a neighbour, a rule: made and removed; nothing else."""
    assert home
    add()
    cases = {
        Group.LINK: ("link {} tpbr type bridge", NEWLINK, DELLINK),
        Group.IPV4_ADDRESS: ("address {} 192.0.2.1/24 dev tp0", NEWADDR, DELADDR),
        Group.IPV6_ADDRESS: ("address {} 2001:db8::1/64 dev tp0 nodad", NEWADDR, DELADDR),
        Group.IPV4_ROUTE: ("route {} 198.51.100.0/24 dev tp0", NEWROUTE, DELROUTE),
        Group.IPV6_ROUTE: ("route {} 2001:db8:9::/48 dev tp0", NEWROUTE, DELROUTE),
        Group.NEIGHBOUR: (
            "neighbour {} 192.0.2.9 lladdr 02:00:00:00:00:09 dev tp0 nud permanent",
            NEWNEIGH,
            DELNEIGH,
        ),
        Group.IPV4_RULE: ("rule {} fwmark 116 table 99", NEWRULE, NEWRULE + 1),
        Group.IPV6_RULE: ("-6 rule {} fwmark 116 table 99", NEWRULE, NEWRULE + 1),
    }
    for group, (command, made, gone) in cases.items():
        with Watch([group]) as watch:
            ip(command.format("add"))
            assert kinds_until(watch, made) == {made}
            ip(command.format("del"))
            kinds_until(watch, gone)


def test_routes_and_neighbours_are_decoded(home: int) -> None:
    """As pyroute2 has them, with all their attributes."""
    assert home
    add()
    ip("address add 192.0.2.1/24 dev tp0")
    index = socket.if_nametoindex("tp0")
    with Watch([Group.IPV4_ROUTE, Group.NEIGHBOUR]) as watch:
        ip("route add 198.51.100.0/24 via 192.0.2.9 src 192.0.2.1 metric 7")
        (route,) = map(decoded, told(watch))
        ip("neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev tp0 nud permanent")
        (neighbour,) = map(decoded, told(watch))
        listed = [
            decoded(each) for each in watch.ask(GETROUTE, bytes([socket.AF_INET]) + bytes(11))
        ]
    assert (route["dst_len"], route.get("dst"), route.get("gateway")) == (
        24,
        "198.51.100.0",
        "192.0.2.9",
    )
    assert (route.get("prefsrc"), route.get("oif"), route.get("priority")) == (
        "192.0.2.1",
        index,
        7,
    )
    assert (neighbour["ifindex"], neighbour.get("dst"), neighbour.get("lladdr")) == (
        index,
        "192.0.2.9",
        "02:00:00:00:00:09",
    )
    assert "198.51.100.0" in [each.get("dst") for each in listed]


def test_an_unknown_message_is_an_error(home: int) -> None:
    """Rather than a wrong reading."""
    assert home
    with pytest.raises(KeyError):
        decoded(Change(7777, NOTHING))


def test_too_much_is_told_as_lost_and_the_socket_goes_on(home: int) -> None:
    """None, once; then what there is can be asked for, and what comes later is told."""
    assert home
    with Watch([Group.LINK], buffer=1 << 15) as watch:
        # A kernel may have devices of its own in each namespace, such as tunl0.
        before = len(watch.ask(GETLINK, NOTHING))
        for number in range(16):
            add(f"tp{number}")
        assert watch.read() is None
        assert told(watch) == []
        assert len(watch.ask(GETLINK, NOTHING)) == before + 32
        ip("link delete tp3")
        assert DELLINK in {each.kind for each in told(watch)}
        for number in range(16, 32):
            add(f"tp{number}")
        assert watch.read() is None
        assert len(watch.ask(GETLINK, NOTHING)) == before + 62


def test_it_stays_in_its_namespace(home: int) -> None:
    """That which it was made in, or for, whatever the thread does then."""
    with new_netns(), Watch([Group.LINK], home) as there, Watch([Group.LINK]) as here:
        add("tp5")
        assert told(there) == []
        assert {decoded(each).get("ifname") for each in told(here)} == {"tp5", "tp5p"}
        assert len(here.ask(GETLINK, NOTHING)) == len(there.ask(GETLINK, NOTHING)) + 2
    with pytest.raises(KernelError, match="open network namespace nope"):
        Watch([Group.LINK], "nope")


def test_only_the_kernel_is_listened_to(home: int) -> None:
    """Whoever may may send such a message to the group, too."""
    assert home
    with (
        Watch([Group.LINK]) as watch,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as other,
    ):
        other.bind((0, 0))
        forged = messages.message(DELLINK, struct.pack("=BxHiII", 0, 0, 1, 0, 0))
        other.sendto(forged, (0, 1 << (Group.LINK - 1)))
        assert told(watch) == []
        add()
        assert DELLINK not in {each.kind for each in told(watch)}


def test_closing_twice_is_once(home: int) -> None:
    """And nothing is followed then."""
    assert home
    watch = Watch([Group.LINK])
    watch.close()
    watch.close()
    assert watch.fileno() == -1
