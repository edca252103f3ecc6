# SPDX-License-Identifier: Apache-2.0
"""Affinity: all flows of a client go to one backend, on every load balancer of a group."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.guests import examples
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import Rig, key_of, rigged, service
from tests.prog.lb.network import FAR, NEAR, Network
from tests.prog.lb.oracle import NO_BACKEND, TX, client_hash

from towpath.core.lb import maglev
from towpath.core.lb.hash import hash_client
from towpath.model import Affinity, Backend, BackendState, Protocol, Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.oracle import Outcome
    from tests.prog.lb.oracle_parse import Address

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
BASE = {4: VIPS[4] + 256, 6: VIPS[6] + (1 << 64)}
CLIENTS = examples(60, 20)
MANY = examples(3000, 200)
TIMEOUT = 600
MARGIN = 60  # seconds that a test may take
WRAP = 1 << 32  # of the seconds in an entry


@pytest.fixture(autouse=True)
def nothing_known(rig: Rig) -> None:
    """Each test starts with clients and flows that nobody knows."""
    rig.serve()


def sticky(inside: int, *backends: Address | Backend, **options: Any) -> Service:
    """The usual service, with affinity."""
    return service(VIPS[inside], *backends, affinity=Affinity(TIMEOUT), **options)


def clients(family: int, count: int = CLIENTS) -> Iterator[Address]:
    """So many of a family."""
    return (BASE[family] + n for n in range(count))


def begin(rig: Rig, client: Address, sport: int, **fields: Any) -> Outcome:
    """Send a packet of a client's flow."""
    return rig.expect(frame(client.version, source=client, sport=sport, **fields), TX)


def known(rig: Rig) -> Any:
    """The entries of clients that are in use."""
    ways = rig.balancer._program.rows("clients")["way"].reshape(-1)
    return ways, np.flatnonzero(ways["ref"])


def let_pass(rig: Rig, seconds: int) -> None:
    """Make as if every client had been seen so long ago."""
    ways, used = known(rig)
    ways["seen"][used] -= seconds
    rig.world.now += seconds


# ---- Where a client goes -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"flow_table": False}, {"forwarding": "l2"}])
@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_all_flows_of_a_client_go_to_one_backend(
    rig: Rig, inside: int, outside: int, options: dict[str, Any]
) -> None:
    """Whatever its ports; clients are spread over the backends."""
    rig.serve(sticky(inside, *NEAR[outside], **options))
    found: dict[Address, set[object]] = {}
    for sport in (1, 2, 2, 65535):
        for client in clients(inside):
            found.setdefault(client, set()).add(begin(rig, client, sport).backend)
    assert all(len(backends) == 1 for backends in found.values())
    assert len({backend for backends in found.values() for backend in backends}) > 3


@pytest.mark.parametrize("family", [4, 6])
def test_user_space_hashes_clients_alike(rig: Rig, family: int) -> None:
    """Program, oracle and the function that plans may use."""
    rig.serve(sticky(family, *NEAR[family]))
    for client in clients(family):
        begin(rig, client, 1)
        raw = client.packed.rjust(16, b"\0")
        value = hash_client(raw, rig.world.seed, is_v6=family == 6) >> 32
        assert value == client_hash(client, rig.world.seed)


def test_any_bit_of_the_address_makes_another_client(rig: Rig) -> None:
    """No two share an entry."""
    for family in (4, 6):
        rig.serve(sticky(family, *NEAR[family]))
        client = BASE[family]
        others = [type(client)(int(client) ^ 1 << bit) for bit in range(client.max_prefixlen)]
        for each in (client, *others):
            begin(rig, each, 1)
        assert len(known(rig)[1]) >= len(others) + 1
        rig.serve(sticky(family, NEAR[family][7]))
        rig.serve()


@pytest.mark.parametrize("family", [4, 6])
def test_clients_are_shared_out_by_weight(rig: Rig, family: int) -> None:
    """Affinity doesn't change whom how many of them go to."""
    weights = {address: n + 1 for n, address in enumerate(NEAR[family][:4])}
    rig.serve(sticky(family, *(Backend(*each) for each in weights.items())))
    shares = Counter(begin(rig, each, 1).backend for each in clients(family, MANY))
    for address, weight in weights.items():
        expected = MANY * weight / 10
        # Six standard deviations of a binomial distribution, at most.
        assert abs(shares[address] - expected) < 6 * (expected * (1 - weight / 10)) ** 0.5


def test_services_with_the_same_backends_agree(rig: Rig) -> None:
    """A client has one backend behind all ports of a VIP, if their tables are alike."""
    ports = [80, 443, 8080]
    rig.serve(
        *(sticky(4, *NEAR[4], port=port) for port in ports),
        sticky(4, *reversed(NEAR[4]), port=53, protocol=Protocol.UDP),
    )
    for client in clients(4):
        backends = {begin(rig, client, 7, dport=port).backend for port in ports}
        datagram = frame(4, 17, source=client, dport=53)
        assert {rig.expect(datagram, TX).backend} == backends


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_two_load_balancers_agree_without_telling_each_other(
    net: Network, rig: Rig, inside: int, outside: int
) -> None:
    """Each client goes to the same backend by either, from the first packet and after a change."""
    with ExitStack() as stack:
        stack.callback(rig.serve)
        other = stack.enter_context(rigged(net, devices=("tpx2",)))
        backends = [Backend(address, 1 + n) for n, address in enumerate(NEAR[outside])]
        for wanted in (backends, backends[::-1], backends[1:]):
            for each in (rig, other):
                each.serve(sticky(inside, *wanted))
            for client in clients(inside):
                sent = frame(inside, source=client)
                assert rig.check(sent).backend == other.check(sent).backend
        assert len({backend for backend, _ in other.world.clients.values()}) > 3


# ---- How long ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_client_keeps_its_backend_while_tables_change(
    rig: Rig, inside: int, outside: int
) -> None:
    """New flows too, where without affinity they would go by the new table."""
    first, *more = NEAR[outside]
    rig.serve(sticky(inside, first, more[0]))
    before = {client: begin(rig, client, 1).backend for client in clients(inside)}
    rig.serve(sticky(inside, Backend(first, 1), more[0], *(Backend(a, 5) for a in more[1:])))
    moved = 0
    for client, backend in before.items():
        outcome = begin(rig, client, 2)
        assert (outcome.backend, outcome.fresh) == (backend, True)
        assert outcome.key is not None
        assert outcome.flow is not None
        moved += rig.world.by_maglev(outcome.key, outcome.flow) != backend
    assert moved > len(before) // 2


@pytest.mark.parametrize("family", [4, 6])
def test_a_client_is_forgotten_when_its_time_is_up(rig: Rig, family: int) -> None:
    """Counted from the beginning of its last flow; known flows don't count, and stay."""
    first, *more = NEAR[family]
    rig.serve(sticky(family, first))
    for client in clients(family):
        begin(rig, client, 1)
    rig.serve(sticky(family, first, *more))
    let_pass(rig, TIMEOUT - MARGIN)
    assert {begin(rig, client, 2).backend for client in clients(family)} == {first}
    let_pass(rig, TIMEOUT - MARGIN)
    assert {begin(rig, client, 3).backend for client in clients(family)} == {first}
    let_pass(rig, TIMEOUT)
    assert {begin(rig, client, 1).backend for client in clients(family)} == {first}
    found = [begin(rig, client, 4) for client in clients(family)]
    assert len({outcome.backend for outcome in found}) > 3
    # And what they have found by then they keep.
    again = [begin(rig, client, 5).backend for client in clients(family)]
    assert again == [outcome.backend for outcome in found]


def test_to_the_second(rig: Rig) -> None:
    """By the clock since boot: one second before the end and at the end."""
    first, other = NEAR[4][:2]
    rig.serve(sticky(4, first))
    client = next(c for c in clients(4, 100) if goes_to(rig, c, other))
    begin(rig, client, 1)
    rig.serve(sticky(4, first, other))
    ways, (entry,) = known_of(rig, client)
    # The clock moves on by a second at most while this is done, or it is done again.
    while True:
        now = seconds_since_boot()
        ways["seen"][entry] = (now - TIMEOUT + 1) % WRAP
        run = rig.run(frame(4, source=client, sport=2))
        if seconds_since_boot() == now:
            break
    assert run.data[30:34] == first.packed
    ways["seen"][entry] = (seconds_since_boot() - TIMEOUT) % WRAP
    assert rig.run(frame(4, source=client, sport=3)).data[30:34] == other.packed


def seconds_since_boot() -> int:
    """As the program counts them."""
    return int(time.clock_gettime(time.CLOCK_MONOTONIC))


def goes_to(rig: Rig, client: Address, backend: Address) -> bool:
    """Whether a client that nobody knows goes there, of two backends."""
    members = NEAR[4][:2]
    table = maglev.table([(each.packed, 1) for each in members], 1021)
    return bool(members[table[client_hash(client, rig.world.seed) * 1021 >> 32]] == backend)


def known_of(rig: Rig, client: Address) -> tuple[Any, list[int]]:
    """The entries of one client."""
    ways, used = known(rig)
    raw = client.packed.rjust(16, b"\0")
    handles = {
        handle
        for each in rig.balancer._contents.tables.services.values()
        for handle in each.handles.values()
    }
    return ways, [
        int(at)
        for at in used
        if ways["addr"][at].tobytes() == raw and int(ways["ref"][at]) >> 32 in handles
    ]


@pytest.mark.parametrize("state", [None, BackendState.DRAINING, BackendState.QUARANTINED])
@pytest.mark.parametrize("family", [4, 6])
def test_a_drained_backend_gets_no_new_flows(
    rig: Rig, family: int, state: BackendState | None
) -> None:
    """Flows that are known stay there; the client goes elsewhere, and stays there from then on."""
    drained, *others = NEAR[family]
    rest = Backend(drained, 1, state) if state else Backend(drained, 0)
    rig.serve(sticky(family, drained, *others))
    before = {client: begin(rig, client, 1).backend for client in clients(family)}
    assert drained in before.values()
    rig.serve(sticky(family, rest, *others))
    assert {client: begin(rig, client, 1).backend for client in before} == before
    new = {client: begin(rig, client, 2).backend for client in before}
    assert all(new[c] == b for c, b in before.items() if b != drained)
    assert drained not in new.values()
    # Back in use: those who have moved have moved.
    rig.serve(sticky(family, drained, *others))
    assert {client: begin(rig, client, 3).backend for client in before} == new
    rig.serve(sticky(family, *(Backend(address, 0) for address in NEAR[family])))
    client = next(iter(before))
    assert begin(rig, client, 1).backend == before[client]
    rig.expect(frame(family, source=client, sport=4), NO_BACKEND)


@pytest.mark.parametrize("family", [4, 6])
def test_a_backend_that_goes_takes_nobody_along(rig: Rig, family: int) -> None:
    """Its clients go by Maglev at once; the others' notice nothing."""
    gone, *others = NEAR[family]
    rig.serve(sticky(family, gone, *others))
    before = {client: begin(rig, client, 1).backend for client in clients(family)}
    rig.serve(sticky(family, *others))
    for client, backend in before.items():
        found = begin(rig, client, 2).backend
        assert backend in {found, gone}
        assert found != gone


def test_affinity_switched_on_and_off(rig: Rig) -> None:
    """Known flows stay; without affinity flows of a client spread again."""
    plain, kept = service(VIPS[4], *NEAR[4]), sticky(4, *NEAR[4])
    client = BASE[4]
    rig.serve(plain)
    before = [begin(rig, client, sport).backend for sport in range(1, 50)]
    assert len(set(before)) > 3
    rig.serve(kept)
    assert [begin(rig, client, sport).backend for sport in range(1, 50)] == before
    assert len({begin(rig, client, sport).backend for sport in range(50, 100)}) == 1
    rig.serve(plain)
    assert len({begin(rig, client, sport).backend for sport in range(100, 150)}) > 3


def test_clients_of_one_service_are_none_of_anothers(rig: Rig) -> None:
    """Also if the other takes its place in the kernel."""
    rig.serve(sticky(4, NEAR[4][0]), sticky(4, FAR[4][0], port=81))
    for client in clients(4):
        begin(rig, client, 1)
        rig.check(frame(4, source=client, dport=81))
    rig.serve()
    rig.serve(sticky(4, *NEAR[4][1:3], port=82))
    for client in clients(4):
        outcome = begin(rig, client, 1, dport=82)
        assert outcome.flow is not None
        assert outcome.backend == rig.world.by_maglev(key_of(sticky(4, port=82)), outcome.flow)


def test_a_full_table_forgets_those_longest_unseen(rig: Rig) -> None:
    """Nothing is dropped for want of room: who was forgotten goes by Maglev."""
    rig.serve(sticky(4, *NEAR[4]))
    ways = rig.balancer._program.rows("clients")["way"]
    sets, width = ways.shape
    before = ways.copy()
    try:
        # Every set is full of others, one of them longer unseen than the rest.
        now = seconds_since_boot()
        ways["ref"], ways["service"] = 1 << 32, 99
        ways["seen"] = (now - 5) % WRAP
        ways["seen"][:, 3] = (now - 50) % WRAP
        for client in clients(4):
            begin(rig, client, 1)
            begin(rig, client, 2)
        changed = np.argwhere(ways["service"] != 99)
        assert len(changed) >= min(CLIENTS, sets) // 2
        assert width == 8
        assert (changed[:, 1] == 3).sum() > len(changed) // 2
    finally:
        ways[...] = before
