# SPDX-License-Identifier: Apache-2.0
"""Next hops while the network changes: nobody tells the follower, the kernel does."""

from __future__ import annotations

import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from tests.prog.neigh.conftest import LIMIT, PROC, Network, ip, ip_batch
from tests.prog.neigh.test_keeper import there, to

from towpath.datapath.neigh.follower import Follower
from towpath.datapath.neigh.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from towpath.kernel.net.neighbours import Key

BOTH = pytest.mark.parametrize("prefix", ["192.0.2.", "2001:db8::"])


@pytest.fixture
def follower(network: Network) -> Iterator[Follower]:
    """Follows the node."""
    assert network
    with Follower(per_second=1000) as made:
        yield made


def wait(until: Callable[[], object]) -> None:
    """Wait for something to become so."""
    end = time.monotonic() + LIMIT
    while not until():
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.01)


def mac(key: Key) -> bytes:
    """Return what the kernel would send to; empty: nothing."""
    entry = there(key)
    return entry.mac if entry and entry.valid else b""


@BOTH
def test_a_route_that_changes_moves_its_next_hop(
    network: Network, follower: Follower, prefix: str
) -> None:
    """The new one is resolved, the old one removed."""
    behind = "2001:db8:1::/48" if ":" in prefix else "10.0.0.0/8"
    old, new = network.key(f"{prefix}2"), network.key(f"{prefix}3")
    ip(f"route add {behind} via {prefix}2")
    follower.want("test", to(behind.partition("/")[0]))
    wait(lambda: mac(old))
    ip(f"route replace {behind} via {prefix}3")
    wait(lambda: mac(new) and not there(old))
    ip(f"route del {behind}")
    wait(lambda: not there(new))
    (trouble,) = follower.troubles().values()
    assert trouble == ("no_route", "no route")


def test_rules_and_next_hop_objects_are_followed(network: Network, follower: Follower) -> None:
    """Each leads elsewhere."""
    ip("nexthop add id 7 via 192.0.2.2 dev n0")
    ip("route add 10.0.0.0/8 nhid 7")
    follower.want("test", to("10.0.0.1"))
    wait(lambda: mac(network.key("192.0.2.2")))
    ip("nexthop replace id 7 via 192.0.2.3 dev n0")
    wait(lambda: mac(network.key("192.0.2.3")) and not there(network.key("192.0.2.2")))
    ip("route add 10.0.0.0/8 via 192.0.2.4 table 100")
    ip("rule add to 10.0.0.0/8 lookup 100")
    wait(lambda: mac(network.key("192.0.2.4")) and not there(network.key("192.0.2.3")))


def test_an_address_that_goes_takes_its_next_hops_along(
    network: Network, follower: Follower
) -> None:
    """And brings them back."""
    key = network.key("192.0.2.2")
    follower.want("test", to("192.0.2.2"))
    wait(lambda: mac(key))
    ip("addr del 192.0.2.1/24 dev n0")
    wait(lambda: follower.asked(lambda keeper: not keeper.entries()))
    assert not there(key)
    ip("addr add 192.0.2.1/24 dev n0")
    wait(lambda: mac(key))


@BOTH
def test_a_flushed_next_hop_comes_back(network: Network, follower: Follower, prefix: str) -> None:
    """The kernel tells of its end."""
    key = network.key(f"{prefix}2")
    follower.want("test", to(f"{prefix}2"))
    wait(lambda: mac(key))
    ip("neigh flush dev n0 nud all")
    wait(lambda: mac(key))


@BOTH
def test_a_carrier_that_comes_back_brings_the_peer_that_is_there_now(
    network: Network, follower: Follower, prefix: str
) -> None:
    """Be it another one than before."""
    key = network.key(f"{prefix}2")
    follower.want("test", to(f"{prefix}2"))
    wait(lambda: mac(key) == network.mac)
    network.there("link set p0 down")
    network.there("link set p0 address 02:00:00:00:00:77")
    network.there("link set p0 up")
    if ":" in prefix:
        network.there(f"addr replace {prefix}2/64 dev p0 nodad")
    wait(lambda: mac(key) == network.ask_mac())
    assert network.ask_mac() != network.mac


@BOTH
def test_a_gratuitous_announcement_is_believed_by_the_kernel(
    network: Network, follower: Follower, prefix: str
) -> None:
    """ARP's, and an unsolicited neighbour advertisement with the override flag.

    It is said again: the peer itself, when asked in between, says who it is.
    """
    key = network.key(f"{prefix}2")
    follower.want("test", to(f"{prefix}2"))
    wait(lambda: mac(key) == network.mac)

    def believed() -> bool:
        network.announce(f"{prefix}2", b"\2\0\0\0\0\x99")
        return mac(key) == b"\2\0\0\0\0\x99"

    wait(believed)


def test_a_mac_address_that_changes_without_a_word_is_found_out(
    network: Network, follower: Follower
) -> None:
    """By the kernel's own probes. Its times are shortened here, in no other place."""
    for name, value in (("base_reachable_time_ms", 1000), ("retrans_time_ms", 100)):
        (PROC / "ipv4/neigh/n0" / name).write_text(str(value))
    (PROC / "ipv4/neigh/n0/delay_first_probe_time").write_text("1")
    key = network.key("192.0.2.2")
    follower.want("test", to("192.0.2.2"))
    wait(lambda: mac(key) == network.mac)
    network.there("link set p0 address 02:00:00:00:00:77")
    wait(lambda: mac(key) == b"\2\0\0\0\0\x77")


def test_a_device_that_goes_is_missed_by_nobody(network: Network, follower: Follower) -> None:
    """The others' next hops stay; what was on it has no route."""
    ip("link add x0 type veth peer name x1")
    ip("link set x0 up")
    ip("link set x1 up")
    ip("addr add 198.51.100.1/24 dev x0")
    follower.want("test", to("192.0.2.2", "198.51.100.9"))
    wait(lambda: mac(network.key("192.0.2.2")))
    wait(lambda: follower.asked(lambda keeper: len(keeper.entries()) == 2))
    ip("link del x0")
    wait(lambda: follower.asked(lambda keeper: set(keeper.entries())) == {network.key("192.0.2.2")})
    assert mac(network.key("192.0.2.2"))
    assert follower.trouble is None


def test_changes_by_the_thousand_are_followed(network: Network, follower: Follower) -> None:
    """Nothing of them is missed, be it that messages were lost."""
    follower.want("test", to("10.0.39.15"))
    batch = [f"route add 10.{n // 256}.{n % 256}.0/24 via 192.0.2.2" for n in range(5000)]
    batch += ["route replace 10.0.39.0/24 via 192.0.2.3"]
    ip_batch(batch)
    wait(lambda: mac(network.key("192.0.2.3")) and not there(network.key("192.0.2.2")))


def test_it_takes_back_all_that_it_has_made(network: Network) -> None:
    """When it is told to; otherwise all of it stays."""
    key = network.key("192.0.2.2")
    with Follower() as first:
        first.want("test", to("192.0.2.2"))
        wait(lambda: mac(key))
    assert mac(key)
    second = Follower()
    second.let_go()
    assert not there(key)
    second.close()


def test_it_takes_back_what_does_not_answer(network: Network) -> None:
    """The kernel tells that such an entry is gone when it isn't: a managed one comes back."""
    silent = [f"192.0.2.{number}" for number in (77, 78, 79)]
    for _ in range(8):
        with Follower() as first:
            first.want("test", to(*silent))
            wait(lambda: all(there(network.key(each)) for each in silent))
        second = Follower()
        second.let_go()
        assert not any(there(network.key(each)) for each in silent)


def test_what_is_doubted_is_resolved_anew(network: Network, follower: Follower) -> None:
    """A failed check is told by whoever checks."""
    key = network.key("192.0.2.2")
    follower.want("test", to("192.0.2.2"))
    wait(lambda: mac(key) == network.mac)
    network.there("link set p0 address 02:00:00:00:00:77")
    follower.doubt(ip_address("192.0.2.2"))
    wait(lambda: mac(key) == b"\2\0\0\0\0\x77")


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_that_nobody_expects_is_told_and_is_no_end(
    network: Network, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Next hops are kept again when it is over."""

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as failing:
        failing.setattr(Keeper, "resync", fail)
        failing.setattr(Keeper, "reroute", fail)
        follower.want("test", to("192.0.2.2"))
        wait(lambda: follower.trouble == "can't start new thread")
    wait(lambda: follower.trouble is None and mac(network.key("192.0.2.2")))
