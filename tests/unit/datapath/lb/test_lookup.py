# SPDX-License-Identifier: Apache-2.0
"""Ports and prefixes: the program finds the service that a plain reading of the keys says."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.unit.datapath.harness_memory import LENGTHS, PREFIX, PROBES, WHOLE, Memory

from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.grace import Reclaimer
from towpath.datapath.lb.lookup import Endpoints, Lengths
from towpath.datapath.lb.port_pages import PortPages
from towpath.datapath.lb.vips import VipIndex
from towpath.model import Protocol, ServiceKey
from towpath.model.kinds import ANY_PORT, Ports

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.model import Address

EDGES = (0, 1, 79, 80, 81, 254, 255, 256, 257, 443, 511, 512, 8000, 8999, 9000, 65279, 65280, 65535)
VIPS = [
    ip_address("203.0.113.10"),
    ip_network("203.0.113.8/30"),
    ip_network("203.0.113.0/24"),
    ip_address("2001:db8::10"),
    ip_network("2001:db8::/48"),
    ip_network("2001:db8:0:0:8000::/65"),
]
PROBED: list[Address] = [
    ip_address(text)
    for text in (
        "203.0.113.10",
        "203.0.113.8",
        "203.0.113.11",
        "203.0.113.12",
        "203.0.114.10",
        "2001:db8::10",
        "2001:db8::ffff",
        "2001:db8:0:0:8000::1",
        "2001:db8:1::10",
    )
]
edges = st.sampled_from(EDGES)
ranges = st.tuples(edges, edges).map(lambda pair: (min(pair), max(pair)))
port_sets = st.one_of(st.just(ANY_PORT), st.lists(ranges, min_size=1, max_size=6).map(Ports.of))
keys = st.builds(
    lambda vip, ports, protocol: ServiceKey(vip, ports.plain, protocol),
    st.sampled_from(VIPS),
    port_sets,
    st.sampled_from(Protocol),
)


class Place:
    """Endpoints over memory that outlives them."""

    def __init__(self, pages: int = 64) -> None:
        self.memory = Memory(port_pages=pages)
        self.endpoints = self.fresh()

    def fresh(self) -> Endpoints:
        """Endpoints of another process, which know nothing yet."""
        memory, self.reclaimer = self.memory, Reclaimer(lambda: None)
        return Endpoints(
            VipIndex(memory.vips, PROBES, self.reclaimer, PREFIX),
            PortPages(memory.pages, WHOLE, self.reclaimer),
            Lengths(memory.lengths[0]["ports"], LENGTHS),
            Lengths(memory.lengths[0]["known"], LENGTHS),
            PREFIX,
        )

    def image(self) -> bytes:
        """Everything that packets can be led by."""
        memory = self.memory
        return b"".join(each.tobytes() for each in (memory.vips["service"], memory.lengths))


def meant(truth: dict[int, ServiceKey], address: Address, port: int, protocol: Protocol) -> int:
    """The service that a packet is for: an exact key, else the longest prefix that has the port."""
    found = []
    for service, key in truth.items():
        network = ip_network(key.vip)
        same = (network.version, key.protocol) == (address.version, protocol)
        if same and address in network and port in key.ports:
            found.append((key.exact, network.prefixlen, service))
    return max(found)[2] if found else 0


class EndpointsMachine(RuleBasedStateMachine):
    """Services come, change their ports and go; now and then another process goes on."""

    @initialize(pages=st.sampled_from((6, 64)))
    def begin(self, pages: int) -> None:
        """Nothing is there, and room for much or for little."""
        self.place = Place(pages)
        self.truth: dict[int, ServiceKey] = {}
        self.next = 1

    def free(self, key: ServiceKey, but: int = 0) -> bool:
        """Whether a key clashes with no other service's."""
        others = (each for service, each in self.truth.items() if service != but)
        return not any(key == each or key.shared(each) for each in others)

    def carried_out(self, change: Callable[[Endpoints], None]) -> bool:
        """Whether a change was foretold to find room; it is then made, and does."""
        before = self.place.image()
        try:
            change(self.place.endpoints.dry_run())
        except CapacityError:
            return False
        finally:
            assert self.place.image() == before
        change(self.place.endpoints)
        return True

    @rule(key=keys)
    def publish(self, key: ServiceKey) -> None:
        """One more service."""
        if not self.free(key) or len(self.truth) == 8:
            return
        if self.carried_out(lambda endpoints: endpoints.publish(key, self.next)):
            self.truth[self.next] = key
            self.next += 1
            return
        before = self.place.image()
        with pytest.raises(CapacityError):
            self.place.endpoints.publish(key, self.next)
        assert self.place.image() == before

    @rule(key=keys, data=st.data())
    def move(self, key: ServiceKey, data: st.DataObject) -> None:
        """A service gets other ports."""
        if not self.truth:
            return
        service = data.draw(st.sampled_from(sorted(self.truth)))
        old = self.truth[service]
        if not self.free(key, service) or key == old:
            return
        if self.carried_out(lambda endpoints: endpoints.move(old, key, service)):
            self.truth[service] = key

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """A service goes."""
        if self.truth:
            service = data.draw(st.sampled_from(sorted(self.truth)))
            key = self.truth[service]
            if self.carried_out(lambda endpoints: endpoints.withdraw(key, service)):
                del self.truth[service]

    @rule()
    def adopt(self) -> None:
        """Another process finds the services that are there, and changes nothing."""
        before = self.place.image()
        self.place.endpoints = self.place.fresh()
        found = {service: key for key, service in self.place.endpoints.adopt()}
        assert found == self.truth
        assert self.place.image() == before

    @invariant()
    def packets_find_what_is_meant(self) -> None:
        """At every edge of every address."""
        for address, port, protocol in product(PROBED, EDGES, Protocol):
            key = ServiceKey(address, port, protocol)
            assert self.place.memory.service(key) == meant(self.truth, address, port, protocol)


TestEndpoints = EndpointsMachine.TestCase
TestEndpoints.settings = TestEndpoints.settings.__class__(max_examples=25, stateful_step_count=12)


@given(st.lists(port_sets, min_size=1, max_size=4))
def test_pages_say_what_was_written(sets: list[Ports]) -> None:
    """The later of two that have a port has it; what is read back is the same."""
    pages = PortPages(np.zeros_like(Place(256 * 3).memory.pages), WHOLE, Reclaimer(lambda: None))
    wanted = dict(enumerate(sets, 1))
    first = pages.build(wanted)
    owner = {port: service for service, ports in wanted.items() for port in ports}
    read = {port: service for service, ports in pages.read(first).items() for port in ports}
    assert read == owner


def test_ports_that_are_all_alike_take_one_page() -> None:
    """Any, and whole blocks of 256; others take one more for each block."""
    place = Place(pages=3)
    vip = VIPS[2]
    place.endpoints.publish(ServiceKey(vip, ANY_PORT, Protocol.TCP), 1)
    place.endpoints.publish(ServiceKey(vip, Ports.of([(256, 511)]), Protocol.UDP), 2)
    with pytest.raises(CapacityError, match="pages of ports: 4 needed, 3 at most"):
        place.endpoints.publish(ServiceKey(VIPS[1], Ports.of([(256, 300)]), Protocol.TCP), 3)


def test_what_does_not_fit_changes_nothing() -> None:
    """No page, or too many lengths: packets find what they found before."""
    place = Place(pages=2)
    place.endpoints.publish(ServiceKey(VIPS[0], Ports.of([(80, 81)]), Protocol.TCP), 1)
    before = place.image()
    for vip in (VIPS[0], VIPS[1]):
        key = ServiceKey(vip, Ports.of([(1000, 2000)]), Protocol.UDP)
        with pytest.raises(CapacityError):
            place.endpoints.publish(key, 2)
        assert place.image() == before


def test_lengths_are_limited() -> None:
    """As many different ones as a word has bytes, in each family."""
    place = Place()
    nets = [ip_network(f"10.0.0.0/{length}") for length in range(24, 24 + LENGTHS + 1)]
    for service, net in enumerate(nets[:-1], 1):
        place.endpoints.publish(ServiceKey(net, 80, Protocol.TCP), service)
    before = place.image()
    with pytest.raises(CapacityError, match=r"lengths of VIP prefixes: 9 needed, 8 at most$"):
        place.endpoints.publish(ServiceKey(nets[-1], 80, Protocol.TCP), 99)
    assert place.image() == before
    place.endpoints.withdraw(ServiceKey(nets[0], 80, Protocol.TCP), 1)
    place.endpoints.publish(ServiceKey(nets[-1], 80, Protocol.TCP), 99)
    assert place.memory.service(ServiceKey(ip_address("10.0.0.0"), 80, Protocol.TCP)) == 99


def test_what_is_for_this_node_only() -> None:
    """Packets that come in find what is for all, and to them the address is no VIP else."""
    place = Place()
    inner = ServiceKey(VIPS[0], 80, Protocol.TCP, "node")
    outer = inner._replace(scope="all")
    empty = place.memory.lengths.tobytes()
    place.endpoints.publish(inner, 1)
    assert place.memory.lengths.tobytes() == empty
    assert [key[18] for key, _ in place.endpoints._index] == [0x86]
    assert place.memory.service(outer) == 0
    place.endpoints.publish(outer, 2)
    assert place.memory.service(outer) == 2
    place.endpoints = place.fresh()
    assert dict(place.endpoints.adopt()) == {inner: 1, outer: 2}
    place.endpoints.withdraw(inner, 1)
    assert place.memory.service(outer) == 2
    place.endpoints.withdraw(outer, 2)
    assert place.memory.lengths.tobytes() == empty
    assert list(place.endpoints._index) == []
