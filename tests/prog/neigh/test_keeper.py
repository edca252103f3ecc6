# SPDX-License-Identifier: Apache-2.0
"""Next hops in a network of namespaces: made, taken over, held, resolved anew and removed."""

from __future__ import annotations

import socket
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from tests.prog.neigh.conftest import Network, ip, kept, worked

from towpath.core.neigh.rate import asked_together
from towpath.datapath.neigh.keeper import DOUBT_SECONDS, PROTOCOL, Keeper
from towpath.datapath.neigh.next_hops import Destination, find
from towpath.kernel.bpf.probe_net import managed_neighbours
from towpath.kernel.jiffies import per_second
from towpath.kernel.net import neighbours
from towpath.kernel.net.messages import ROUTE, Netlink

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from towpath.kernel.net.neighbours import Key, Neighbour

NEW_NEIGHBOUR = 28  # RTM_NEWNEIGH
BOTH = pytest.mark.parametrize("prefix", ["192.0.2.", "2001:db8::"])
BEHIND = {"192.0.2.": "10.1.0.0/16", "2001:db8::": "2001:db8:1::/48"}
"""What is behind a gateway, by the prefix that the gateway's address begins with."""
BITS = {"192.0.2.": "24", "2001:db8::": "64 nodad"}


def to(*addresses: str) -> list[Destination]:
    """Destinations that the node chooses a source for."""
    return [Destination(ip_address(each)) for each in addresses]


def there(key: Key) -> Neighbour | None:
    """Return what the kernel has for a next hop."""
    return next((each for each in neighbours.neighbours() if each.key == key), None)


def mac(keeper: Keeper, key: Key) -> bytes:
    """The MAC address that the kernel has for a next hop; empty: none."""
    found = keeper.entries()[key]
    return found.entry.mac if found else b""


def resolved(keeper: Keeper, key: Key) -> None:
    """Wait until a next hop of the keeper's is resolved."""
    worked(keeper, lambda: (found := keeper.entries().get(key)) is not None and found.valid)


@BOTH
def test_a_next_hop_is_resolved_without_a_packet(
    network: Network, keeper: Keeper, prefix: str
) -> None:
    """The kernel asks for it, and the entry says whose it is."""
    key = network.key(f"{prefix}2")
    keeper.want("test", to(f"{prefix}2"))
    resolved(keeper, key)
    entry = there(key)
    assert entry
    assert entry.mac == network.mac
    assert entry.protocol == PROTOCOL
    assert entry.flags == neighbours.EXTERN_LEARN
    assert bool(entry.extended & neighbours.MANAGED) == managed_neighbours()
    assert keeper.wanted_by(key) == tuple(to(f"{prefix}2"))


def test_a_gateway_is_resolved_for_what_is_behind_it(network: Network, keeper: Keeper) -> None:
    """All of them, of whatever family, and no destination itself."""
    ip("route add 10.0.0.0/8 nexthop via 192.0.2.2 nexthop via 192.0.2.3")
    ip("route add 198.51.100.0/24 via inet6 2001:db8::4 dev n0")
    keeper.want("test", to("10.1.1.1", "10.2.2.2", "198.51.100.1"))
    wanted = {network.key(each) for each in ("192.0.2.2", "192.0.2.3", "2001:db8::4")}
    assert set(keeper.entries()) == wanted
    for key in wanted:
        resolved(keeper, key)
    assert not there(network.key("10.1.1.1"))


def test_an_entry_of_the_kernels_is_kept_from_then_on(network: Network, keeper: Keeper) -> None:
    """It isn't asked for again: the MAC address is there throughout."""
    key = network.key("192.0.2.2")
    network.send("192.0.2.2")
    worked(keeper, lambda: (found := there(key)) is not None and found.valid)
    keeper.want("test", to("192.0.2.2"))
    worked(keeper, lambda: (found := keeper.entries()[key]) is not None and found.ours)
    entry = there(key)
    assert entry
    assert entry.mac == network.mac


@pytest.mark.parametrize(
    "made",
    [
        "lladdr 02:00:00:00:00:09 nud permanent",
        "lladdr 02:00:00:00:00:09 nud reachable extern_learn protocol zebra",
        "lladdr 02:00:00:00:00:09 nud reachable protocol static",
        f"lladdr 02:00:00:00:00:09 nud reachable protocol {PROTOCOL}",
        "lladdr 02:00:00:00:00:09 nud noarp",
    ],
)
def test_entries_of_others_are_never_touched(network: Network, keeper: Keeper, made: str) -> None:
    """The user's, other programs', and what has our number but not our flags."""
    key = network.key("192.0.2.2")
    ip(f"neigh add 192.0.2.2 dev n0 {made}")
    before = there(key)
    assert before
    keeper.want("test", to("192.0.2.2", "192.0.2.3"))
    resolved(keeper, network.key("192.0.2.3"))
    keeper.doubt(key.address)
    keeper.work(time.monotonic() + 60)
    keeper.let_go()
    after = there(key)
    assert after
    assert (after.mac, after.flags, after.extended, after.protocol) == (
        before.mac,
        before.flags,
        before.extended,
        before.protocol,
    )
    assert not there(network.key("192.0.2.3"))


def test_what_somebody_else_has_made_permanent_is_theirs(network: Network, keeper: Keeper) -> None:
    """Though our number is still on it. When it goes, ours comes back."""
    key = network.key("192.0.2.2")
    keeper.want("test", to("192.0.2.2"))
    resolved(keeper, key)
    ip("neigh replace 192.0.2.2 lladdr 02:00:00:00:00:09 dev n0 nud permanent")
    keeper.resync()
    pause = keeper.work(time.monotonic())
    assert pause is None or (pause > 1 and not managed_neighbours())  # a look, some time
    assert kept(keeper, key).taken
    ip("neigh del 192.0.2.2 dev n0")
    keeper.resync()
    resolved(keeper, key)
    assert kept(keeper, key).entry.mac == network.mac


@pytest.mark.thorough
def test_another_run_keeps_what_is_wanted_and_removes_the_rest(
    network: Network, keeper: Keeper
) -> None:
    """Also when the first one ended without a word."""
    keys = [network.key(f"192.0.2.{number}") for number in (2, 3)]
    keeper.want("test", to("192.0.2.2", "192.0.2.3"))
    for key in keys:
        resolved(keeper, key)
    with Netlink(ROUTE) as netlink:
        second = Keeper(netlink, managed=managed_neighbours())
        second.want("test", to("192.0.2.3"))
        second.resync()
        second.work(time.monotonic())
    assert there(keys[0]) is None
    entry = there(keys[1])
    assert entry
    assert entry.valid
    assert entry.updated >= 0


def test_a_flushed_entry_comes_back(network: Network, keeper: Keeper) -> None:
    """Whoever flushed it."""
    key = network.key("192.0.2.2")
    keeper.want("test", to("192.0.2.2"))
    resolved(keeper, key)
    ip("neigh flush dev n0 nud all")
    assert there(key) is None
    resolved(keeper, key)


@BOTH
def test_a_doubted_next_hop_is_resolved_anew(network: Network, keeper: Keeper, prefix: str) -> None:
    """Its MAC address has changed without a word, so the kernel believes the old one."""
    key = network.key(f"{prefix}2")
    keeper.want("test", to(f"{prefix}2"))
    resolved(keeper, key)
    network.there("link set p0 address 02:00:00:00:00:77")
    network.there(f"addr replace {prefix}2/{24 if '.' in prefix else 64} dev p0")
    keeper.resync()
    assert kept(keeper, key).entry.mac == network.mac
    keeper.doubt(ip_address(f"{prefix}2"))
    keeper.work(time.monotonic())
    worked(keeper, lambda: kept(keeper, key).entry.mac == network.ask_mac())
    assert network.ask_mac() != network.mac


class Counted(Netlink):
    """Counts requests to make neighbours."""

    made = 0

    def ask_each(self, requests: Sequence[tuple[int, bytes, int]]) -> list[int]:
        """Send requests, as ever."""
        self.made += sum(kind == NEW_NEIGHBOUR for kind, _, _ in requests)
        return super().ask_each(requests)


@pytest.mark.thorough
def test_a_next_hop_that_is_always_doubted_is_not_always_asked_for(network: Network) -> None:
    """Nobody answers there, and every check says so."""
    with Counted(ROUTE) as netlink:
        keeper = Keeper(netlink, managed=managed_neighbours())
        key = network.key("192.0.2.77")
        keeper.want("test", to("192.0.2.77"))
        begun = time.monotonic()
        for tenth in range(100):
            keeper.resync()
            keeper.doubt(key.address)
            keeper.work(begun + tenth / 10)
        seconds = 10
        assert 2 <= netlink.made <= 1 + seconds / DOUBT_SECONDS


def test_peers_are_asked_for_anew_whenever_a_carrier_comes_back(
    network: Network, keeper: Keeper
) -> None:
    """However soon after the last time: each time there may be somebody else."""
    key, now = network.key("192.0.2.2"), time.monotonic()
    keeper.want("test", to("192.0.2.2"))
    resolved(keeper, key)
    for peer in range(3):
        network.there("link set p0 down")
        network.there(f"link set p0 address 02:00:00:00:00:7{peer}")
        network.there("link set p0 up")
        worked(keeper, lambda: mac(keeper, key) == network.ask_mac(), now)


def test_destinations_say_why_they_are_not_reached(network: Network, keeper: Keeper) -> None:
    """Others are unaffected."""
    for kind in ("blackhole", "unreachable", "prohibit"):
        ip(f"route add {kind} 10.{len(kind)}.0.0/16")
        ip(f"-6 route add {kind} 2001:db8:{len(kind)}::/48")
    ip("route add throw 10.66.0.0/16")
    ip("route add 10.5.0.0/16 via 192.0.2.2")
    wanted = {
        "192.0.2.3": None,
        "198.51.100.1": "no_route",
        "10.9.0.1": "blackhole",
        "10.11.0.1": "unreachable",
        "10.8.0.1": "prohibit",
        "10.66.0.1": "no_route",
        "192.0.2.1": "local",
        "192.0.2.255": "broadcast",
        "2001:db8::3": None,
        "2001:db8:77::1": "no_route",
        "2001:db8:9::1": "blackhole",
        "2001:db8:11::1": "unreachable",
        "2001:db8:8::1": "prohibit",
        "2001:db8::1": "local",
    }
    onlink = Destination(ip_address("10.5.0.1"), on_link=True)
    keeper.want("test", [*to(*wanted), onlink])
    found = {str(each.address): why.reason for each, why in keeper.troubles().items()}
    assert found == {each: why for each, why in wanted.items() if why} | {"10.5.0.1": "not_on_link"}
    assert set(keeper.entries()) == {network.key("192.0.2.3"), network.key("2001:db8::3")}


@pytest.mark.thorough
def test_what_no_host_has_is_not_reached_by_the_default_route(
    network: Network, keeper: Keeper
) -> None:
    """The kernel's look-up doesn't care. A route of its own says that somebody does have it."""
    ip("route add default via 192.0.2.2")
    ip("route add 240.1.0.0/16 via 192.0.2.2")
    ip("route add 169.254.1.0/24 dev n0")
    wanted = to("198.51.100.1", "240.0.0.1", "169.254.2.1", "240.1.0.1", "169.254.1.7")
    keeper.want("test", wanted)
    found = {str(each.address): why.reason for each, why in keeper.troubles().items()}
    assert found == {"240.0.0.1": "martian", "169.254.2.1": "martian"}
    assert set(keeper.entries()) == {network.key("192.0.2.2"), network.key("169.254.1.7")}


@BOTH
def test_a_next_hop_that_is_this_node_is_told(
    network: Network, keeper: Keeper, prefix: str
) -> None:
    """A gateway that was another host when its route was made. Of several only this one is out."""
    behind = (
        ("2001:db8:1::/48", "2001:db8:2::/48") if ":" in prefix else ("10.1.0.0/16", "10.2.0.0/16")
    )
    there_is = [each.partition("/")[0] for each in behind]
    ip(f"route add {behind[0]} via {prefix}2")
    ip(f"route add {behind[1]} nexthop via {prefix}2 nexthop via {prefix}3")
    ip(f"addr add {prefix}2/{BITS[prefix]} dev n0")
    keeper.want("test", to(*there_is))
    found = {str(each.address): why for each, why in keeper.troubles().items()}
    assert found == {there_is[0]: ("own_gateway", f"its next hop is this node: {prefix}2")}
    assert set(keeper.entries()) == {network.key(f"{prefix}3")}


def test_a_device_without_carrier_is_told(network: Network, keeper: Keeper) -> None:
    """Its next hops stay wanted."""
    keeper.want("test", to("192.0.2.2"))
    network.there("link set p0 down")
    keeper.resync()
    (why,) = keeper.troubles().values()
    assert why == ("no_carrier", "no carrier on n0")
    assert set(keeper.entries()) == {network.key("192.0.2.2")}
    network.there("link set p0 up")
    worked(keeper, lambda: not keeper.troubles())


@BOTH
def test_of_two_routes_of_one_metric_the_kernels_is_taken(
    network: Network, keeper: Keeper, prefix: str
) -> None:
    """IPv4: the first. IPv6 makes several ways of them."""
    behind = BEHIND[prefix]
    ip(f"route add {behind} via {prefix}2 metric 7")
    ip(f"route append {behind} via {prefix}3 metric 7")
    keeper.want("test", to(behind.partition("/")[0]))
    several = {network.key(f"{prefix}2"), network.key(f"{prefix}3")}
    assert set(keeper.entries()) == (several if ":" in prefix else {network.key(f"{prefix}2")})
    assert not keeper.troubles()


@pytest.mark.thorough
@BOTH
def test_a_next_hop_that_does_not_answer_is_told(
    network: Network, keeper: Keeper, prefix: str
) -> None:
    """From when the kernel has given it up until it answers, whatever it says in between."""
    behind = BEHIND[prefix]
    ip(f"route add {behind} nexthop via {prefix}2 nexthop via {prefix}77")
    there_is = behind.partition("/")[0]
    keeper.want("test", to(f"{prefix}2", f"{prefix}77", there_is))
    worked(keeper, lambda: len(keeper.troubles()) == 2)
    found = {str(each.address): why for each, why in keeper.troubles().items()}
    assert found == {
        f"{prefix}77": ("no_answer", f"its next hop doesn't answer: {prefix}77 on n0"),
        there_is: ("no_answer", f"1 of its 2 next hops don't answer: {prefix}77 on n0"),
    }
    entry = there(network.key(f"{prefix}77"))
    assert entry
    keeper.entry_changed(entry._replace(state=neighbours.INCOMPLETE))
    assert len(keeper.troubles()) == 2
    network.there(
        f"addr add {prefix}77/{64 if ':' in prefix else 24} dev p0" + " nodad" * (":" in prefix)
    )
    worked(keeper, lambda: not keeper.troubles())


@pytest.mark.thorough
def test_two_keepers_leave_each_others_entries_alone(network: Network) -> None:
    """Each removes what it has made itself; what both want is made again by who is left."""
    with Netlink(ROUTE) as one, Netlink(ROUTE) as two:
        first = Keeper(one, managed=managed_neighbours())
        first.resync()
        first.want("test", to("192.0.2.2", "192.0.2.3"))
        first.work(time.monotonic())
        second = Keeper(two, managed=managed_neighbours(), inherit=False)
        second.resync()
        second.want("test", to("192.0.2.3", "192.0.2.4"))
        worked(second, lambda: there(network.key("192.0.2.4")) is not None)
        worked(second, second.let_go)
        assert there(network.key("192.0.2.2"))
        assert there(network.key("192.0.2.3"))
        second.want("test", to("192.0.2.4"))
        second.work(time.monotonic() + 1)
        worked(first, first.let_go)
        assert not there(network.key("192.0.2.2"))
        assert there(network.key("192.0.2.4"))


def test_devices_that_resolve_nothing_have_no_entries(network: Network, keeper: Keeper) -> None:
    """Point-to-point, and those without ARP."""
    ip("tuntap add t0 mode tun")
    ip("link add t1 type veth peer name t2")
    ip("link set t1 arp off")
    for number, device in enumerate(("t0", "t1", "t2")):
        ip(f"link set {device} up")
        ip(f"addr add 10.{number}.0.1/24 dev {device}")
    keeper.want("test", to("10.0.0.9", "10.1.0.9", "192.0.2.2"))
    assert set(keeper.entries()) == {network.key("192.0.2.2")}


def test_next_hops_with_traffic_are_made_first(network: Network) -> None:
    """However many there are, and no more at once than is allowed."""
    together = max(1, asked_together(per_second()))
    with Netlink(ROUTE) as netlink:
        keeper = Keeper(netlink, managed=managed_neighbours(), per_second=100 * (together + 0.1))
        keeper.resync()
        keeper.want("test", to(*(f"192.0.2.{number}" for number in range(100, 200))))
        keeper.prefer([ip_address("192.0.2.190"), ip_address("192.0.2.191")])
        pause = keeper.work(1000.0)
        made = [each.key for each in neighbours.neighbours(socket.AF_INET)]
        ours = {str(each.address) for each in made if each.device == network.device}
        assert ours == {"192.0.2.190", "192.0.2.191"} | {f"192.0.2.{100 + n}" for n in range(8)}
        assert pause == pytest.approx(0.1)


def test_nothing_is_asked_for_on_a_device_without_carrier(network: Network, keeper: Keeper) -> None:
    """It is when the carrier is back."""
    network.there("link set p0 down")
    keeper.resync()
    keeper.want("test", to("192.0.2.2"))
    assert keeper.work(time.monotonic()) is None
    network.there("link set p0 up")
    resolved(keeper, network.key("192.0.2.2"))


def test_what_comes_to_be_wanted_is_looked_up_alone(
    network: Network, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ways of what was wanted before are as they were; what isn't any more has none."""
    asked: list[list[Destination]] = []

    def noted(netlink: Netlink, wanted: Iterable[Destination], known: Any) -> Any:
        asked.append(list(wanted))
        return find(netlink, asked[-1], known)

    keeper.want("test", to("192.0.2.2", "192.0.2.3"))
    monkeypatch.setattr("towpath.datapath.neigh.keeper.find", noted)
    keeper.note("test", to("192.0.2.3", "192.0.2.4"))
    keeper.extend()
    assert asked == [to("192.0.2.4")]
    assert set(keeper.entries()) == {network.key(f"192.0.2.{host}") for host in (3, 4)}
    found = keeper.ways, keeper.troubles()
    keeper.extend()
    keeper.reroute()
    assert asked[1:] == [to("192.0.2.3", "192.0.2.4")]
    assert (keeper.ways, keeper.troubles()) == found
