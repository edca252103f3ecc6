# SPDX-License-Identifier: Apache-2.0
"""The flow table as user space reads it, beside what the oracle remembers."""

from __future__ import annotations

import time
from collections import Counter
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from tests.guests import examples
from tests.prog.lb.frames import VIPS, flows, frame, made_for
from tests.prog.lb.harness import SMALL, Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import TX

from towpath.datapath.flows.flow_table import EVERY, Filter
from towpath.kernel.jiffies import Jiffies, per_second
from towpath.lab.waiting import wait_until
from towpath.model import Protocol
from towpath.model.kinds import Ports

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Address

    from towpath.datapath.flows.flow_table import Entries

MANY = examples(200, 60)

Known = tuple["Address", int, int, "Address"]
"""Client and its port, index of the service, backend."""


@pytest.fixture(autouse=True)
def nothing_known(rig: Rig) -> None:
    """Each test starts with flows that nobody knows."""
    rig.serve()


def known(rig: Rig) -> Counter[Known]:
    """What the oracle remembers."""
    indexes = {key: index for index, key in rig._indexes()[0].items()}
    return Counter(
        (flow.source, flow.source_port, indexes[key], backend)
        for (key, flow), backend in rig.world.remembered.items()
    )


def read(rig: Rig, entries: Entries) -> Counter[Known]:
    """What was read, in the same terms."""
    installed = rig.balancer._contents.tables.services.values()
    addresses = {handle: a for each in installed for a, handle in each.handles.items()}
    versions = {each.index: each.key.vip.version for each in installed}
    return Counter(
        (
            ip_address(bytes(entries.clients[i])[12 if versions[service] == 4 else 0 :]),
            int(entries.client_ports[i]),
            service,
            addresses[int(entries.handles[i])],
        )
        for i, service in enumerate(entries.services.tolist())
    )


def serve_all(rig: Rig) -> None:
    """Services of both families and protocols, one with a set of ports, one that forgets."""
    some = Ports.of([(8000, 8099), (9000, 9000)])
    rig.serve(
        service(VIPS[4], *NEAR[4][:3]),
        service(VIPS[4], *NEAR[6][:2], protocol=Protocol.UDP),
        service(VIPS[6], *NEAR[6][:3]),
        service(VIPS[4] + 1, *NEAR[4][:2], port=some),
        service(VIPS[4] + 2, NEAR[4][0], flow_table=False),
    )
    for each in flows(MANY):
        rig.expect(each, TX)
    for each in flows(MANY // 2, 4, 17):
        rig.expect(each, TX)
    for each in flows(MANY // 2, 6):
        rig.expect(each, TX)
    for port in (8000, 8050, 9000):
        rig.expect(frame(4, vip=VIPS[4] + 1, dport=port), TX)
    rig.expect(frame(4, vip=VIPS[4] + 2), TX)


def test_every_flow_that_is_remembered_is_read(rig: Rig) -> None:
    """With its client, service and backend; and no other."""
    serve_all(rig)
    entries = rig.balancer.flow_table.entries()
    assert len(entries) == 2 * MANY + 3
    assert read(rig, entries) == known(rig)
    assert (entries.places[1:] > entries.places[:-1]).all()


def test_counts_are_by_backend(rig: Rig) -> None:
    """By the handles that the tables have."""
    serve_all(rig)
    backends = Counter((service, backend) for _, _, service, backend in known(rig).elements())
    expected = {
        each.handles[address]: backends[each.index, address]
        for each in rig.balancer._contents.tables.services.values()
        for address in each.handles
        if backends[each.index, address]
    }
    assert rig.balancer.flow_table.counts() == expected
    assert rig.balancer.flow_table.counts(Filter(max_idle_seconds=60)) == expected


def test_flows_of_a_removed_backend_are_left_out(rig: Rig) -> None:
    """They are stale, and so they stay when another one gets the index."""
    first, second, third = NEAR[4][:3]
    rig.serve(service(VIPS[4], first, second))
    for each in flows(MANY):
        rig.expect(each, TX)
    rig.serve(service(VIPS[4], second))
    assert 0 < len(rig.balancer.flow_table.entries()) < MANY
    assert read(rig, rig.balancer.flow_table.entries()) == known(rig)
    rig.serve(service(VIPS[4], second, third))
    assert read(rig, rig.balancer.flow_table.entries()) == known(rig)
    rig.serve()
    assert len(rig.balancer.flow_table.entries()) == 0
    assert rig.balancer.flow_table.counts() == {}


@pytest.mark.parametrize(
    ("network", "family"),
    [
        (ip_network("198.51.0.0/32"), 4),
        (ip_network("198.51.0.0/30"), 4),
        (ip_network("198.51.0.4/30"), None),
        (ip_network("0.0.0.0/0"), 4),
        (ip_network("2001:db8:3::/128"), 6),
        (ip_network("2001:db8:3::/48"), 6),
        (ip_network("2001:db8:4::/48"), None),
        (ip_network("::/0"), 6),
    ],
    ids=str,
)
def test_by_client(rig: Rig, network: Any, family: int | None) -> None:
    """A prefix has the clients of its family that are in it."""
    rig.serve(*(service(VIPS[version], *NEAR[version]) for version in (4, 6)))
    for version in (4, 6):
        for each in flows(MANY // 4, version):
            rig.expect(each, TX)
    found = read(rig, rig.balancer.flow_table.entries(Filter(clients=network)))
    assert found == {
        each: n for each, n in known(rig).items() if each[0] in network and family is not None
    }
    assert {each[0].version for each in found} == ({family} if family else set())


def test_by_backend(rig: Rig) -> None:
    """Several at once; none means none."""
    serve_all(rig)
    table, everything = rig.balancer.flow_table, known(rig)
    installed = list(rig.balancer._contents.tables.services.values())
    both = [each for each in installed if NEAR[4][1] in each.handles]
    wanted = [(each.index, address) for each in both for address in NEAR[4][:2]]
    by_index = {each.index: each for each in installed}
    for chosen in ([], wanted[:1], wanted):
        handles = {by_index[index].handles[address] for index, address in chosen}
        found = read(rig, table.entries(Filter(handles=handles)))
        assert found == {each: n for each, n in everything.items() if each[2:] in chosen}
        assert bool(found) == bool(chosen)


def test_in_pages(rig: Rig) -> None:
    """Each begins where the last one ended; together they are everything."""
    serve_all(rig)
    table, everything = rig.balancer.flow_table, rig.balancer.flow_table.entries()
    pages: list[Entries] = []
    start = 0
    while len(page := table.entries(start=start, limit=7)):
        assert len(page) <= 7
        pages.append(page)
        start = int(page.places[-1]) + 1
    assert all(len(page) == 7 for page in pages[:-1])
    together = type(everything).joined(pages)
    assert together.places.tolist() == everything.places.tolist()
    assert read(rig, together) == known(rig)


def test_a_flow_ages_until_it_is_seen(rig: Rig) -> None:
    """Right to a step of the program's clock, and a step is the least that can be asked for."""
    rig.serve(service(VIPS[4], NEAR[4][0]))
    table = rig.balancer.flow_table
    step = table.resolution_seconds
    old, new = flows(2)
    began = time.monotonic()
    for each in (old, new):
        rig.expect(each, TX)
    sent = time.monotonic()
    while time.monotonic() - sent < 8 * step:
        rig.expect(new, TX)
    least = time.monotonic() - sent
    found = table.entries()
    most = time.monotonic() - began
    seen = dict(zip(*(getattr(found, n).tolist() for n in FIELDS), strict=True))
    assert least - 2 * step < seen[port(old)] < most + 2 * step
    assert seen[port(new)] < seen[port(old)]
    recent = Filter(max_idle_seconds=least - 2 * step)

    def ask() -> tuple[list[int], list[int]]:
        rig.expect(new, TX)
        return table.entries(recent).client_ports.tolist(), list(table.counts(recent).values())

    # However long this process had to wait for a CPU in between.
    wait_until(lambda: ask() == ([port(new)], [1]), seconds=60, what="one flow that is recent")
    assert len(table.entries(Filter(max_idle_seconds=table.span_seconds))) == 2


FIELDS = ("client_ports", "idle_seconds")


def port(made: bytes) -> int:
    """The client's port of a TCP frame of IPv4."""
    return int.from_bytes(made[34:36], "big")


def test_entries_that_no_packet_finds_are_left_out(rig: Rig) -> None:
    """Half written ones: cleared, with another's tag, or with another service's handle."""
    rig.serve(service(VIPS[4], NEAR[4][0]), service(VIPS[4] + 1, NEAR[4][1]))
    for each in flows(8):
        rig.expect(each, TX)
    rig.expect(made_for(service(VIPS[4] + 1, NEAR[4][1])), TX)
    table, program = rig.balancer.flow_table, rig.balancer._program
    ways = program.rows("flows")["way"].reshape(-1)
    tags = program.rows("flow_tags").view("u1")
    cleared, tagged, other = table.entries().places[:3].tolist()
    ways["ref"][cleared] = 0
    tags[tagged] ^= 0x55
    ways["service"][other] ^= 3
    left = table.entries()
    assert len(left) == 6
    assert not {cleared, tagged, other} & set(left.places.tolist())


def test_the_clock_is_the_programs(rig: Rig) -> None:
    """As many jiffies a second as the kernel has, and as it told the program in the last packet."""
    rig.serve(service(VIPS[4], NEAR[4][0]))
    with Jiffies() as clock:
        began = time.monotonic()
        before, after = clock.now(), time.monotonic()
        rig.run(frame())
        learnt = int(rig.tables["flow_cpus"]["tick"].max())
        assert before <= learnt <= clock.now()
        while (least := time.monotonic() - after) < 0.2:
            pass
        passed = clock.now() - before
        most = time.monotonic() - began
        assert 0.9 * least < passed / per_second() < 1.1 * most


def test_a_full_table_is_read_in_large_parts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way taken: what is asked of the kernel and of numpy is of thousands at once."""
    rig.serve(service(VIPS[4], *NEAR[4][:4]))
    for each in flows(8):
        rig.expect(each, TX)
    table, program = rig.balancer.flow_table, rig.balancer._program
    ways = program.rows("flows")["way"].reshape(-1)
    tags = program.rows("flow_tags").view("u1")
    try:
        places = table.entries().places
        ways[:] = ways[places[0]]
        tags[:] = tags[places[0]]
        parts: list[int] = []
        read = table._read

        def reading(first: int, wanted: Filter) -> Entries:
            parts.append(first)
            return read(first, wanted)

        monkeypatch.setattr(table, "_read", reading)
        assert sum(table.counts().values()) == SMALL.flows
        assert len(table.entries(EVERY)) == SMALL.flows
        assert len(parts) == 2 * SMALL.flows // 16_384
    finally:
        ways[:] = 0
        tags[:] = 0
