# SPDX-License-Identifier: Apache-2.0
"""Who gets which address of which pool, and keeps it."""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.kubernetes.harness_pools import SECTION, World

from towpath.core.kubernetes.rooms import Room
from towpath.model.kinds.ranges import AddressRanges
from towpath.model.sources.kubernetes import Section

SMALL = {"name": "small", "addresses": ["192.0.2.4-192.0.2.5"]}
OTHER = {"name": "other", "addresses": ["198.51.100.0/30", "2001:db8::/126"]}
BOTH = ["IPv4", "IPv6"]


def test_the_address_of_a_service() -> None:
    """One of the pool; it is kept whatever comes and goes, and by the next agent."""
    world = World(SMALL)
    world.service("one")
    world.service("two")
    world.settle()
    before = {each: world.has(each) for each in ("one", "two")}
    assert {*before["one"], *before["two"]} == {"192.0.2.4", "192.0.2.5"}
    assert world.reason("one") == "Given"
    world.service("three")
    world.settle()
    assert (world.has("three"), world.reason("three")) == ([], "PoolExhausted")
    world.anew()
    world.settle()
    assert {each: world.has(each) for each in before} == before
    assert world.has("three") == []
    world.check()


def test_one_that_goes_makes_room() -> None:
    """For the oldest that waits; so does one that is of another type, and its status is cleared."""
    world = World(SMALL)
    for name in ("one", "two", "three", "four"):
        world.service(name)
    world.settle()
    free = world.has("one")
    world.delete("one")
    world.settle()
    assert (world.has("three"), world.has("four")) == (free, [])
    free = world.has("two")
    world.service("two", type="ClusterIP")
    world.settle()
    assert world.has("four") == free
    assert world.services["default", "two"]["status"]["conditions"] is None
    world.check()


def test_one_that_is_made_anew() -> None:
    """Finds its address where it was."""
    world = World(OTHER)
    for number in range(3):
        world.service(f"s{number}")
    world.settle()
    before = world.has("s1")
    world.delete("s1")
    world.service("s1")
    world.settle()
    assert world.has("s1") == before


def test_both_families() -> None:
    """By what the Service has; one that requires both is told what is missing."""
    world = World(OTHER)
    world.service("dual", ipFamilies=BOTH)
    world.service("six", ipFamilies=["IPv6"])
    world.settle()
    assert [ip_address(each).version for each in world.has("dual")] == [4, 6]
    assert [ip_address(each).version for each in world.has("six")] == [6]
    world = World(SMALL)
    world.service("prefers", ipFamilies=BOTH, ipFamilyPolicy="PreferDualStack")
    world.service("requires", ipFamilies=BOTH, ipFamilyPolicy="RequireDualStack")
    world.settle()
    assert (len(world.has("prefers")), world.reason("prefers")) == (1, "Given")
    assert (len(world.has("requires")), world.reason("requires")) == (1, "NoPool")


def test_a_wish() -> None:
    """By annotation, else by loadBalancerIP.

    One that can't be given is told, and what is there stays; who has nothing gets nothing else.
    """
    world = World(SMALL, OTHER | {"auto_assign": False})
    world.service("field", loadBalancerIP="192.0.2.5")
    wish = {"towpath.alt/addresses": "198.51.100.2, 2001:db8::2"}
    world.service("both", annotations=wish, loadBalancerIP="192.0.2.4", ipFamilies=BOTH)
    world.settle()
    assert world.has("field") == ["192.0.2.5"]
    assert world.has("both") == ["198.51.100.2", "2001:db8::2"]
    world.service("late", loadBalancerIP="192.0.2.5")
    world.service("outside", loadBalancerIP="203.0.113.1")
    world.service("nonsense", loadBalancerIP="192.0.2.4.5")
    world.service("family", loadBalancerIP="2001:db8::3")
    world.settle()
    assert (world.has("late"), world.reason("late")) == ([], "AddressInUse")
    assert (world.has("outside"), world.reason("outside")) == ([], "NotInPool")
    assert (world.reason("nonsense"), world.reason("family")) == ("InvalidAddress", "OtherFamily")
    kept = world.has("both")
    moved = {"towpath.alt/addresses": "192.0.2.5"}
    world.service("both", annotations=moved, ipFamilies=BOTH)
    world.settle()
    assert (world.has("both"), world.reason("both")) == (kept, "AddressInUse")
    world.delete("field")
    world.settle()
    # The oldest that waits has its wish.
    assert world.has("both") == ["192.0.2.5", "2001:db8::2"]
    assert world.reason("late") == "AddressInUse"
    world.check()


def test_who_may_have_a_pool() -> None:
    """Namespaces, labels, and a pool that is named."""
    world = World(
        SMALL | {"namespaces": ["web"], "selector": {"tier": "public"}},
        OTHER | {"auto_assign": False},
    )
    world.service("no")
    world.service("yes", namespace="web", labels={"tier": "public", "more": "x"})
    world.service("label", namespace="web")
    world.service("named", annotations={"towpath.alt/pool": "other"})
    world.service("wrong", annotations={"towpath.alt/pool": "othr"})
    world.settle()
    assert world.reason("no") == world.reason("wrong") == world.reason("label", "web") == "NoPool"
    assert world.has("yes", "web")[0].startswith("192.0.2.")
    assert world.has("named")[0].startswith("198.51.100.")
    # It names another one: it is moved there.
    world.service("named", namespace="web", labels={"tier": "public"})
    world.service("named", annotations={"towpath.alt/pool": "other2"})
    world.configure(SMALL, OTHER, {"name": "other2", "addresses": "203.0.113.7"})
    world.settle()
    assert world.has("named") == ["203.0.113.7"]
    world.check()


def test_sharing() -> None:
    """Only who asks for it, in one namespace, at other ports."""
    world = World(SMALL)
    shared = {"towpath.alt/share": "dns"}
    udp = [{"port": 53, "protocol": "UDP"}]
    tcp = [{"port": 53, "protocol": "TCP"}]
    world.service("udp", annotations=shared, ports=udp)
    world.service("tcp", annotations=shared, ports=tcp)
    world.service("clash", annotations=shared, ports=udp)
    more = [{"port": 1, "protocol": "TCP"}]
    world.service("elsewhere", namespace="web", annotations=shared, ports=more)
    world.service("alone", ports=[{"port": 99, "protocol": "TCP"}])
    world.settle()
    assert world.has("udp") == world.has("tcp") != world.has("clash")
    assert world.has("elsewhere", "web") == world.has("alone") == []
    world.anew()
    world.settle()
    assert world.has("udp") == world.has("tcp") != world.has("clash")
    # Its port becomes the other's: the younger one has to go, and there is room for nobody.
    world.service("udp", annotations=shared, ports=tcp)
    world.settle()
    assert world.has("udp")
    assert world.has("tcp") == world.has("clash") or world.reason("tcp") == "PoolExhausted"
    world.check()


def test_sharing_with_local_endpoints() -> None:
    """Only with the same endpoints: an address is announced where they are."""
    world = World(SMALL)
    shared = {"towpath.alt/share": "x"}
    local: dict[str, Any] = {"externalTrafficPolicy": "Local", "annotations": shared}
    for number, app in enumerate(("a", "a", "b")):
        ports = [{"port": number + 1, "protocol": "TCP"}]
        world.service(f"s{number}", selector={"app": app}, ports=ports, **local)
    world.settle()
    assert world.has("s0") == world.has("s1") != world.has("s2")


def test_pools_that_change() -> None:
    """An address stays while a pool has it; else it is exchanged, or kept if there is none."""
    world = World(OTHER)
    for number in range(4):
        world.service(f"s{number}")
    world.settle()
    before = {f"s{n}": world.has(f"s{n}") for n in range(4)}
    world.configure(SMALL, OTHER, {"name": "again", "addresses": ["198.51.100.1-198.51.100.9"]})
    world.settle()
    assert {each: world.has(each) for each in before} == before
    assert world.pools.overlaps() == [("other", "again")]
    # It shrinks to half, and there are two others.
    world.configure({"name": "other", "addresses": "198.51.100.0/31"}, SMALL)
    world.settle()
    held = {each: world.has(each)[0] for each in before}
    assert sorted(held.values()) == ["192.0.2.4", "192.0.2.5", "198.51.100.0", "198.51.100.1"]
    assert all(before[name] == [each] for name, each in held.items() if each.startswith("198."))
    # All pools are taken away: nobody loses anything, and all are told.
    world.configure()
    world.settle()
    assert {each: world.has(each)[0] for each in before} == held
    assert {world.reason(each) for each in before} == {"NotInPool"}
    world.check()


def test_an_address_that_two_have() -> None:
    """The younger one gets another; or none, which is better than that both have it."""
    world = World(SMALL)
    world.service("old")
    world.settle()
    twice = {"loadBalancer": {"ingress": [{"ip": world.has("old")[0], "ipMode": "VIP"}]}}
    world.service("young", status=dict(twice))
    before = world.has("old")
    world.settle()
    assert world.has("old") == before != world.has("young")
    world.service("younger", status=dict(twice))
    world.settle()
    assert (world.has("old"), world.has("younger")) == (before, [])
    world.check()


def test_what_others_have_given() -> None:
    """Services of other classes are theirs: nothing is written, and their addresses are taken."""
    world = World(SMALL)
    taken = {"loadBalancer": {"ingress": [{"ip": "192.0.2.4"}]}}
    world.service("theirs", loadBalancerClass="example.org/other", status=taken)
    world.service("classless", loadBalancerClass=None)
    world.service("one")
    world.service("two")
    world.settle()
    assert world.has("one") == ["192.0.2.5"]
    assert (world.has("two"), world.reason("two")) == ([], "PoolExhausted")
    assert world.services["default", "theirs"]["status"] == taken
    assert world.services["default", "classless"]["status"] == {}


def test_services_without_a_class() -> None:
    """If configured; but none that another has given an address already."""
    section = Section(pools=SECTION.pools, default_load_balancer=True)
    world = World(SMALL, section=section)
    given = {"loadBalancer": {"ingress": [{"hostname": "lb.example.org"}]}}
    world.service("cloud", loadBalancerClass=None, status=given)
    world.service("ours", loadBalancerClass=None)
    world.settle()
    assert len(world.has("ours")) == 1
    assert world.services["default", "cloud"]["status"] == given
    before = world.has("ours")
    world.anew()
    world.settle()
    assert world.has("ours") == before


def test_a_status_that_somebody_empties() -> None:
    """It is written again, as it was; and what else is in it is put right."""
    world = World(OTHER)
    world.service("one")
    world.settle()
    before = world.has("one")
    world.services["default", "one"]["status"] = {}
    world.told(("default", "one"))
    world.settle()
    assert world.has("one") == before
    status = world.services["default", "one"]["status"]
    status["loadBalancer"]["ingress"].append({"ip": "203.0.113.9"})
    world.told(("default", "one"))
    world.settle()
    assert world.has("one") == before


def test_a_nodes_own_address() -> None:
    """Isn't given, nor wished for with success."""
    world = World(SMALL)
    world.pools.reserve([ip_address("192.0.2.4")])
    world.service("one")
    world.service("wish", loadBalancerIP="192.0.2.4")
    world.settle()
    assert world.has("one") == ["192.0.2.5"]
    assert world.reason("wish") == "AddressInUse"
    assert world.pools.usage()[0].used == 2
    world.pools.reserve([])
    world.settle()
    assert world.has("wish") == ["192.0.2.4"]


def test_what_could_not_be_written() -> None:
    """Is decided again, the same; nobody else gets it meanwhile."""
    world = World(SMALL)
    world.service("one")
    (first,) = world.pools.decisions()
    world.service("two")
    world.service("three")
    found = {each.claim.name[1]: each.addresses for each in world.pools.decisions()}
    assert len(found["two"]) == 1
    assert found["two"] != first.addresses
    assert found["three"] == ()
    world.pools.again(("default", "one"))
    (again,) = world.pools.decisions()
    assert again == first


@pytest.mark.parametrize("begin", [0, 1, 5, 9, 1 << 63])
def test_rooms(begin: int) -> None:
    """All addresses of ranges that touch and overlap are found once, from anywhere on."""
    kind = AddressRanges()
    room = Room(kind.parse(["192.0.2.8-192.0.2.9", "192.0.2.0/30", "192.0.2.3-192.0.2.5"]))
    found: list[Any] = []
    while (address := room.free(begin, found)) is not None:
        found.append(address)
    assert room.size == len(found) == 8
    assert sorted(int(each) & 255 for each in found) == [0, 1, 2, 3, 4, 5, 8, 9]
    assert all(each in room for each in found)
    assert ip_address("192.0.2.6") not in room


def test_a_wide_room() -> None:
    """A /64 costs no more than what is taken of it."""
    room = Room(AddressRanges().parse("2001:db8::/64"))
    assert room.size == 1 << 64
    first = room.free((1 << 64) - 1, ())
    assert first is not None
    assert room.free((1 << 64) - 1, {first}) == ip_address("2001:db8::")


POOLS: tuple[dict[str, Any], ...] = (
    SMALL,
    OTHER,
    {"name": "web", "addresses": ["192.0.2.5-192.0.2.8"], "namespaces": ["web"]},
    {
        "name": "asked",
        "addresses": ["203.0.113.0/31", "2001:db8::2-2001:db8::4"],
        "auto_assign": False,
    },
)


def _act(world: World, chance: random.Random) -> None:
    """Do something that users, other controllers or API servers do."""
    key = (chance.choice(("default", "web")), f"s{chance.randrange(6)}")
    what = chance.randrange(10)
    if what < 5:
        annotations = {}
        if chance.random() < 0.3:
            annotations["towpath.alt/share"] = chance.choice("ab")
        if chance.random() < 0.2:
            annotations["towpath.alt/addresses"] = f"192.0.2.{chance.randrange(3, 9)}"
        if chance.random() < 0.2:
            annotations["towpath.alt/pool"] = chance.choice(("small", "other", "asked"))
        world.service(
            key[1],
            namespace=key[0],
            annotations=annotations,
            ports=[{"port": chance.randrange(3), "protocol": "TCP"}],
            ipFamilies=chance.choice((["IPv4"], ["IPv6"], BOTH)),
            type=chance.choice(("LoadBalancer", "LoadBalancer", "ClusterIP")),
        )
    elif what < 7 and key in world.services:
        world.delete(key[1], key[0])
    elif what == 7:
        world.configure(*chance.sample(POOLS, chance.randrange(len(POOLS) + 1)))
    elif what == 8:
        world.anew()
    elif key in world.services and world.services[key]["spec"]["type"] == "LoadBalancer":
        # Somebody writes into a status, perhaps what another has.
        stolen = chance.choice([*world.holders(), "192.0.2.5"])
        ingress = [{"ip": stolen, "ipMode": "VIP"}]
        world.services[key]["status"] = {"loadBalancer": {"ingress": ingress}}
        world.told(key)


@settings(max_examples=40)
@given(st.integers(0, 1 << 32))
def test_whatever_happens(seed: int) -> None:
    """No address is given twice, none is lost, and none is refused that is free."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    world = World(*POOLS[:2])
    for _ in range(30):
        for _ in range(chance.randrange(1, 4)):
            _act(world, chance)
        world.settle()
        world.check()


@settings(max_examples=40)
@given(st.integers(0, 1 << 32))
def test_nobody_is_moved_by_others(seed: int) -> None:
    """Services that come, change and go leave the others where they are."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    world = World(SMALL, OTHER)
    for _ in range(40):
        before = {key: world.has(key[1], key[0]) for key in world.services}
        name = f"s{chance.randrange(9)}"
        if ("default", name) in world.services and chance.random() < 0.4:
            world.delete(name)
        else:
            world.service(name, ipFamilies=chance.choice((["IPv4"], BOTH)))
        if chance.random() < 0.2:
            world.anew()
        world.settle()
        for key, addresses in before.items():
            if key[1] != name:
                assert set(addresses) <= set(world.has(key[1], key[0]))
        world.check()
