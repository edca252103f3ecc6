# SPDX-License-Identifier: Apache-2.0
"""Flows that the kernel's connection tracking translates: they pass, others are balanced."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import IP, UDP, fragment
from scapy.packet import Raw
from tests.prog.lb.frames import CLIENTS, PORT, VIPS, ether
from tests.prog.lb.oracle import TRACKED, TX
from tests.prog.lb.oracle_parse import FRAGMENT, Flow, parse
from tests.prog.snat.harness import (
    BOTH,
    NatRig,
    answer,
    client_frame,
    established,
    nat_rigged,
    services,
)
from tests.prog.snat.oracle import flow_hash64

from towpath.datapath.snat.tracked import Tracked
from towpath.kernel.net.conntrack_flows import Ending, Ends, Rewritten
from towpath.model import FlowTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network

BOTH_WAYS = True
_FAMILIES = {4: 2, 6: 10}
_PORT = PORT.to_bytes(2, "big")
LONG = 10**12  # ns
SEEN = 1


@pytest.fixture(scope="module")
def rig(net: Network) -> Iterator[NatRig]:
    """One that tracks, with a service of each kind."""
    with nat_rigged(net, tracks=True) as made:
        made.serve(*services())
        yield made


@pytest.fixture(autouse=True)
def unkept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has none of these flows: it isn't asked to keep them."""
    monkeypatch.setattr(Tracked, "_keep", lambda *_: None)


@pytest.fixture
def nat(rig: NatRig) -> Iterator[NatRig]:
    """Without translations; nothing is the kernel's."""
    rig.empty()
    yield rig
    settle(rig)
    rig.world.tracking, rig.world.tracked = "none", set()
    rig.world.table.held = set()


def tracked(rig: NatRig) -> Tracked:
    """Its."""
    found = rig.balancer.tracked
    assert found is not None
    return found


def listed(version: int, protocol: int, sport: int, **other: Any) -> Rewritten:
    """A flow to the service as the kernel lists it."""
    client, vip = CLIENTS[version].packed, VIPS[version].packed
    ports = {"source_port": sport.to_bytes(2, "big"), "port": PORT.to_bytes(2, "big")}
    original = Ends(_FAMILIES[version], protocol, client, vip, **ports)._replace(**other)
    backend = bytes(len(vip))
    back = original._replace(source=backend, destination=client)
    later = time.monotonic_ns() + LONG
    return Rewritten(original, back, later if protocol == 17 else 0)


def settle(rig: NatRig, *found: Rewritten) -> int:
    """Have these pass and no others."""
    mine = tracked(rig)
    mine.settle(found, mine.known(), mine.served())
    return mine.conclude()


def known(rig: NatRig, version: int, protocol: int, sport: int, flags: str = "A") -> bytes:
    """A packet of a flow, which the oracle is told is the kernel's."""
    frame = client_frame(version, protocol, sport=sport, flags=flags)
    rig.world.tracking = "known"
    rig.world.tracked.add(flow_of(frame))
    return frame


def flow_of(frame: bytes) -> Any:
    """As the oracle has it."""
    return parse(frame).flow


def test_without_tracking_nothing_is_asked(net: Network) -> None:
    """The program has nothing of it. Before others, whose program is on the devices."""
    with nat_rigged(net) as made:
        made.serve(*services())
        assert made.balancer.tracked is None
        made.balancer._maps.rows("settings")["tracking"][0] = 2
        made.expect(client_frame(4, 17, sport=41015), TX)
        made.expect(client_frame(4, 6, sport=41015, flags="A"), TX)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_flows_that_are_listed_pass(nat: NatRig, version: int, protocol: int) -> None:
    """As they came, and counted; all others are balanced, also while they pass."""
    assert settle(nat, listed(version, protocol, 41000)) == 1
    frame = known(nat, version, protocol, 41000)
    for _ in range(2):
        nat.expect(frame, TRACKED)
    if protocol == 6:
        nat.expect(client_frame(version, protocol, sport=41000, flags="R"), TRACKED)
        nat.expect(client_frame(version, protocol, sport=41000, flags="FA"), TRACKED)
    established(nat, version, protocol, 41001)
    nat.expect(client_frame(version, protocol, sport=41002, flags="A"), TX)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_one_that_is_over_is_balanced(nat: NatRig, version: int, protocol: int) -> None:
    """When the kernel lists it no longer."""
    settle(nat, listed(version, protocol, 41003))
    frame = known(nat, version, protocol, 41003)
    nat.expect(frame, TRACKED)
    assert settle(nat) == 0
    assert not tracked(nat).any
    nat.world.tracking, nat.world.tracked = "none", set()
    nat.expect(frame, TX)


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_have_it_last(nat: NatRig, version: int) -> None:
    """User space knows by that when one is over; until then there is no other flow in its place."""
    short = listed(version, 17, 41016)._replace(until=time.monotonic_ns() + 10**10)
    assert settle(nat, short) == 1
    (until,) = tracked(nat).known().values()
    nat.expect(known(nat, version, 17, 41016), TRACKED)
    (longer,) = tracked(nat).known().values()
    assert until + 10 * 10**9 < longer
    # The list may be older than what the program knows.
    assert settle(nat, short) == 1
    assert list(tracked(nat).known().values()) == [longer]
    (key,) = tracked(nat).known()
    tracked(nat)._enter({key: time.monotonic_ns() - 1})
    over = short._replace(until=0)
    assert settle(nat, over) == 0
    nat.world.tracking, nat.world.tracked = "none", set()
    nat.expect(client_frame(version, 17, sport=41016), TX)


@pytest.mark.parametrize("version", [4, 6])
def test_a_new_sender_with_the_port_of_one_that_is_over(nat: NatRig, version: int) -> None:
    """It has come since the list was taken: it stays the kernel's, which has its answer to send."""
    flow = listed(version, 17, 41017)
    settle(nat, flow)
    mine = tracked(nat)
    (key,) = mine.known()
    mine._enter({key: (time.monotonic_ns() - 1) | SEEN})
    before = mine.known()
    frame = known(nat, version, 17, 41017)
    nat.expect(frame, TRACKED)
    over = flow._replace(until=0)
    mine.settle([over], before, mine.served())
    assert mine.known()[key] > time.monotonic_ns()
    nat.expect(frame, TRACKED)
    mine._enter({key: (time.monotonic_ns() - 1) | SEEN})
    assert settle(nat, over) == 0


@pytest.mark.parametrize("version", [4, 6])
def test_a_syn_begins_a_connection_here(nat: NatRig, version: int) -> None:
    """Whatever had its ports before; what belongs to it doesn't pass any more."""
    settle(nat, listed(version, 6, 41004))
    known(nat, version, 6, 41004)
    nat.expect(client_frame(version, 6, sport=41004, flags="S"), TX)
    assert tracked(nat).count == 0
    established(nat, version, 6, 41004)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_what_is_not_known_is_noted_while_services_come(
    nat: NatRig, version: int, protocol: int
) -> None:
    """So what began before the list was made, and isn't in it, passes until the next one."""
    tracked(nat).take()
    nat.world.tracking = "take"
    frame = client_frame(version, protocol, sport=41005, flags="A")
    before = tracked(nat).known()
    nat.expect(frame, TRACKED)
    established(nat, version, 6, 41006)
    tracked(nat).settle((), before, tracked(nat).served())
    assert tracked(nat).conclude() == 1
    nat.world.tracking = "known"
    nat.expect(frame, TRACKED)
    nat.expect(client_frame(version, protocol, sport=41007, flags="A"), TX)
    assert settle(nat) == 0


def test_what_is_to_no_service_is_not_noted(nat: NatRig) -> None:
    """Connections of pods, and to hosts' ports, would have no end."""
    others = [
        listed(4, 6, 41008, port=(PORT + 1).to_bytes(2, "big")),
        listed(4, 6, 41009, destination=bytes((10, 96, 0, 1))),
    ]
    assert settle(nat, *others) == 0
    assert not tracked(nat).any


def test_answers_to_a_port_of_a_service_pass(nat: NatRig) -> None:
    """Others' source NAT may choose the very number, towards a backend or whoever answers."""
    flow = listed(4, 17, 41010)
    back = flow.reply._replace(
        source=CLIENTS[4].packed,
        source_port=(9000).to_bytes(2, "big"),
        destination=VIPS[4].packed,
        port=PORT.to_bytes(2, "big"),
    )
    assert settle(nat, flow._replace(reply=back)) == 2
    nat.expect(known(nat, 4, 17, 9000), TRACKED)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_a_port_that_the_kernel_has_towards_a_backend(
    nat: NatRig, version: int, protocol: int
) -> None:
    """Is given to no other flow to that backend while the kernel has it, and then again."""
    frame = client_frame(version, protocol, sport=41018)
    flow, table = flow_of(frame), nat.world.table
    source, port, _ = next(table.candidates(flow, flow_hash64(flow, nat.world.seed)))
    key = nat.world.find(flow)
    assert key is not None
    backends = nat.world.backends_of(key)
    flows = []
    number = port.to_bytes(2, "big")
    for at, each in enumerate(backends):
        one = listed(version, protocol, 42000 + at, port=b"\0\1")
        back = one.reply._replace(source=each.packed, source_port=_PORT, port=number)
        flows.append(one._replace(reply=back._replace(destination=source.packed)))
    assert len(flows) > 1
    assert settle(nat, *flows) == 0
    assert tracked(nat).any
    table.held = {Flow(each, source, PORT, port, protocol) for each in backends}
    nat.expect(frame, TX)
    assert {each.port for each in table.entries()} != {port}
    settle(nat)
    assert not tracked(nat).any
    table.held = set()
    nat.empty()
    nat.expect(frame, TX)
    assert {each.port for each in table.entries()} == {port}


@pytest.mark.parametrize("version", [4, 6])
def test_a_syn_ends_what_the_kernel_has(
    nat: NatRig, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It isn't noted again when the kernel lists it still."""
    ended: list[Rewritten] = []
    monkeypatch.setattr(Ending, "end", lambda _, flow: ended.append(flow))
    flow, other = listed(version, 6, 41019), listed(version, 6, 41020)
    assert settle(nat, flow, other) == 2
    known(nat, version, 6, 41019)
    known(nat, version, 6, 41020)
    nat.expect(client_frame(version, 6, sport=41019, flags="S"), TX)
    assert settle(nat, flow, other) == 1
    assert ended == [flow]


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_what_is_handed_back(nat: NatRig, version: int, protocol: int) -> None:
    """Nothing begins; what is known goes on until the program goes, both ways."""
    sent = established(nat, version, protocol, 41011)
    tracked(nat)._state = tracked(nat)._names["GIVE"]
    nat.world.tracking = "give"
    nat.expect(client_frame(version, protocol, sport=41012, flags="S"), TRACKED)
    nat.expect(client_frame(version, protocol, sport=41012, flags="A"), TRACKED)
    nat.expect(client_frame(version, protocol, sport=41011, flags="A"), TX)
    nat.expect(answer(sent, flags="A"), TX)
    assert tracked(nat).count == 0


def test_fragments_pass_whole(nat: NatRig) -> None:
    """The later ones have no ports."""
    settle(nat, listed(4, 17, 41013))
    known(nat, 4, 17, 41013)
    whole = IP(src=str(CLIENTS[4]), dst=str(VIPS[4]), id=77) / UDP(sport=41013, dport=PORT)
    first, *later = fragment(IP(bytes(whole / Raw(bytes(3000)))), 1000)
    nat.expect(bytes(ether() / first), TRACKED)
    for each in later:
        nat.expect(bytes(ether() / each), FRAGMENT)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_a_trace_says_so(nat: NatRig, version: int, protocol: int) -> None:
    """And notes nothing, and takes nothing out."""
    tracked(nat).take()
    flow = FlowTuple(
        CLIENTS[version], 41014, VIPS[version], PORT, Protocol(("tcp", "udp")[protocol == 17])
    )
    found = nat.balancer.trace(flow)
    assert found.verdict == TRACKED
    assert tracked(nat).count == 0
    settle(nat, listed(version, protocol, 41014))
    assert nat.balancer.trace(flow).verdict == TRACKED
    settle(nat)
    assert nat.balancer.trace(flow).verdict == TX
