# SPDX-License-Identifier: Apache-2.0
"""Translations of load balancers that come and go, and of everything at once."""

from __future__ import annotations

import itertools
import random
import threading
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scapy.layers.inet import UDP
from tests.guests import examples
from tests.prog.lb.frames import PORT, VIPS, ether, ip
from tests.prog.lb.harness import service
from tests.prog.lb.network import GATEWAY, IN, NEAR, neighbour
from tests.prog.lb.network import ip as run_ip
from tests.prog.lb.oracle import NO_VIP, TX, XDP_DROP, XDP_PASS, XDP_TX, checksum
from tests.prog.lb.oracle_parse import parse
from tests.prog.lb.test_flood import one_cpu
from tests.prog.snat.harness import (
    NARROW,
    NAT_SMALL,
    PORTS,
    SNAT,
    SOURCES,
    NatRig,
    answer,
    client_frame,
    established,
    nat_rigged,
    port_of,
    snat_service,
)
from tests.prog.snat.harness_flows import listed
from tests.prog.snat.oracle import NO_PORT, NatOutcome, flow_hash64

from towpath.datapath.errors import DatapathError
from towpath.datapath.flows.nat_table import Wanted
from towpath.model import Backend, Protocol, Snat
from towpath.model.kinds import PortRange

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.prog.lb.network import Network
    from tests.prog.lb.oracle import Outcome
    from tests.prog.snat.harness_flows import Listed

    from towpath.model import Address

pytestmark = pytest.mark.thorough


@pytest.mark.host
def test_every_address_is_used(net: Network) -> None:
    """Sixteen addresses of sixteen ports are 256 flows towards one backend."""
    wide = replace(NARROW, ipv4=tuple(IPv4Address("192.0.2.208") + n for n in range(16)))
    with nat_rigged(net, wide) as nat:
        nat.serve(snat_service(4, NEAR[4][0]))
        used = set()
        for number in range(16 * PORTS):
            outcome = nat.check(client_frame(sport=1000 + number))
            if outcome.verdict == TX:
                nat.expect(answer(outcome), TX)
                assert isinstance(outcome, NatOutcome)
                assert outcome.entry is not None
                used.add((outcome.entry.source, outcome.entry.port))
        assert {source for source, _ in used} == set(wide.ipv4)
        assert len(used) > 16 * PORTS * 3 // 4


HALVES = ("forward", "reply")


@pytest.mark.parametrize("version", [4, 6])
def test_a_full_table_is_found_to_be_so_once_in_a_jiffy(net: Network, version: int) -> None:
    """Then who hasn't confirmed gives way at once, without a look at what else there may be."""
    small = replace(NAT_SMALL, nat_flows=1024)
    at = 34 if version == 4 else 54
    with nat_rigged(net, limits=small, still=True) as nat:

        def sent(sport: int, *, new_jiffy: bool = True) -> int:
            """The port that a client's packet goes out with."""
            run = nat.run(client_frame(version, sport=sport), new_jiffy=new_jiffy)
            assert run.retval == XDP_TX
            return int.from_bytes(run.data[at : at + 2], "big")

        nat.serve(snat_service(version, NEAR[version][0]))
        used = {sent(2000 + number) for number in range(3 * 1024)}
        rows, heads = nat.tables["flow_cpus"], nat.tables["nat_heads"]
        with one_cpu() as cpu:
            used.add(sent(1000))
            assert rows["full"][cpu] == 1
            tried = [0, 0]
            for sport in range(1001, 1900):
                flow = parse(client_frame(version, sport=sport)).flow
                hashed = flow_hash64(flow, nat.world.seed)
                first, second = itertools.islice(nat.world.table.candidates(flow, hashed), 2)
                if {first[1], second[1]} & used:
                    continue  # a candidate that another flow may have
                # A way that is free, at the second candidate.
                refs = nat.tables["nat_flows"]["way"]["ref"]
                before = [heads[half][second[2]].copy() for half in HALVES], refs[second[2]][0]
                for half in HALVES:
                    heads[half][second[2]] &= ~np.uint64(0xFF)
                refs[second[2]][0] = 0
                known = sport % 2
                rows["full"][cpu], tick = known, int(rows["tick"][cpu])
                port = sent(sport, new_jiffy=False)
                used.add(port)
                if rows["tick"][cpu] == tick:  # or else what was known is of another one
                    tried[known] += 1
                    assert port == (first if known else second)[1]
                if port != second[1]:  # it is free still
                    for half, head in zip(HALVES, before[0], strict=True):
                        heads[half][second[2]] = head
                    refs[second[2]][0] = before[1]
                # In another jiffy it is asked anew.
                used.add(sent(5000 + sport))
                if min(tried) == 5:
                    return
    pytest.fail(f"a packet takes longer than a jiffy; tried {tried}")


@pytest.mark.host
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("own", [None, 8080])
def test_any_sequence(net: Network, version: int, own: int | None) -> None:
    """Clients, backends and time in any order: port, bytes and counters as the oracle says."""
    dice = random.Random(version)  # noqa: S311 - a test that repeats
    with nat_rigged(net, NARROW, limits=replace(NAT_SMALL, nat_flows=1024)) as nat:
        first, second = NEAR[version][:2]
        backends = Backend(first, port=own), Backend(second)
        nat.serve(*(snat_service(version, *backends, protocol=p) for p in Protocol))
        # More connections than there are ports, so that some are refused whatever the hash is.
        for sport in range(1, 3 * PORTS):
            begun = nat.check(client_frame(version, sport=sport))
            if begun.verdict == TX:
                nat.expect(answer(begun), TX)
                nat.check(client_frame(version, sport=sport, flags="A"))
        known: list[tuple[tuple[int, int], Outcome]] = []
        for number in range(examples(4000, 800)):
            kind = dice.random()
            # First connections come, then some of them end.
            ends = dice.random() < (0.1 if number > 400 else 0)
            flags = dice.choice(["FA", "R"] if ends else ["S", "A", "A", "A"])
            recent = known if dice.random() < 0.05 else known[-60:]
            if kind < 0.6 or not known:
                anyone = dice.choice([6, 17]), dice.randrange(1, 200)
                protocol, sport = dice.choice(recent)[0] if kind < 0.3 and known else anyone
                outcome = nat.check(client_frame(version, protocol, sport=sport, flags=flags))
                if outcome.verdict == TX:
                    known.append(((protocol, sport), outcome))
            elif kind < 0.995:
                nat.check(answer(dice.choice(recent)[1], flags=flags))
            elif number > 400:
                nat.later(dice.choice([1, 5, 10, 25, 7000]))
        assert {NO_PORT, TX} <= set(nat.seen)
        assert max(nat.world.table.reach.values()) == 15


def test_ports_that_change_hands_while_packets_come(net: Network) -> None:
    """Clients take each other's ports while backends answer to all of them.

    Each answer that is translated goes to a client that there is, never to a mixture of two.
    """
    clients, frames = many_clients()
    with nat_rigged(net, NARROW, limits=replace(NAT_SMALL, nat_flows=1024)) as nat:
        nat.serve(snat_service(4, NEAR[4][0], protocol=Protocol.UDP))
        ports = {run.data[34:36] for run in map(nat.run, frames) if run.retval == XDP_TX}
        assert len(ports) == PORTS
        back = answers_meanwhile(nat, lambda: [nat.run(each) for each in frames])
    for frame in back:
        assert clients[ip_address(frame[30:34])] == int.from_bytes(frame[36:38], "big")
        assert checksum(frame[14:34]) == 0
    assert len({frame[30:34] for frame in back}) > PORTS


def many_clients() -> tuple[dict[Address, int], list[bytes]]:
    """Clients, each with a port that no other has, and a datagram of each; routes lead to them."""
    clients = {ip_address("198.51.100.0") + n: 40000 + 7 * n for n in range(256)}
    run_ip(f"route replace 198.51.100.0/24 via {neighbour(IN, 4, GATEWAY)} dev {IN}")
    return clients, [
        client_frame(4, 17, source=client, sport=port) for client, port in clients.items()
    ]


def answers_meanwhile(nat: NatRig, ask: Callable[[], object]) -> list[bytes]:
    """What is translated of answers to every port while a thread asks again and again."""
    replies = [
        bytes(ether() / ip(4, source=NEAR[4][0], vip=SOURCES[4]) / UDP(sport=80, dport=20000 + n))
        for n in range(PORTS)
    ]
    back: list[bytes] = []

    def answers() -> None:
        back.extend(run.data for run in map(nat.run, replies) if run.retval == XDP_TX)

    meanwhile(ask, answers)
    return back


def meanwhile(ask: Callable[[], object], look: Callable[[], object]) -> None:
    """Look while a thread asks again and again."""
    done = threading.Event()

    def asking() -> None:
        for _ in range(examples(40, 5)):
            ask()
        done.set()

    thread = threading.Thread(target=asking)
    thread.start()
    while not done.is_set():
        look()
    thread.join()


def test_ports_that_change_hands_while_flows_are_listed(net: Network) -> None:
    """Every flow that is listed is one that there was, never a mixture of two."""
    clients, frames = many_clients()
    with nat_rigged(net, NARROW, limits=replace(NAT_SMALL, nat_flows=1024)) as nat:
        nat.serve(snat_service(4, NEAR[4][0], protocol=Protocol.UDP))
        seen: set[Listed] = set()

        def look() -> None:
            seen.update(listed(nat, nat.balancer.nat_flows.entries(Wanted(expired=True))))

        meanwhile(lambda: [nat.run(each) for each in frames], look)
    assert {(client, port) for client, port, *_ in seen} <= clients.items()
    assert len({client for client, *_ in seen}) > PORTS


def test_without_an_address_no_flow_is_listed(net: Network) -> None:
    """And there is no room for any."""
    with nat_rigged(net, Snat()) as nat:
        assert nat.balancer.nat_flows.capacity == 0
        assert not nat.balancer.nat_flows.entries()
        assert not nat.balancer.nat_flows.counts()


# ---- Restarts ------------------------------------------------------------------------------------


def test_another_process_goes_on(net: Network, pins: Path) -> None:
    """With the same addresses and ports every flow keeps its own, and backends theirs."""
    backends = Backend(NEAR[4][0], port=8080), Backend(NEAR[4][1])
    with nat_rigged(net, NARROW, pins=pins) as nat:
        nat.serve(snat_service(4, *backends))
        flows = [established(nat, 4, 6, 1000 + n) for n in range(8)]
    with nat_rigged(net, replace(NARROW, tcp_timeout=600), pins=pins) as after:
        (observed,) = after.balancer.observed()
        assert (observed.forwarding, set(observed.backends)) == ("snat", set(backends))
        after.told([observed])
        after.world.table = replace(nat.world.table, timeouts=after.world.table.timeouts)
        for number, flow in enumerate(flows):
            again = after.expect(client_frame(sport=1000 + number, flags="A"), TX)
            assert (again.fresh, port_of(again)) == (False, port_of(flow))
            after.expect(answer(flow, flags="A"), TX)
        after.balancer.detach()


def test_other_ports_forget_the_flows(net: Network, pins: Path) -> None:
    """They wouldn't be found again, and would hold ports until they are old."""
    with nat_rigged(net, NARROW, pins=pins) as nat:
        nat.serve(snat_service(4))
        flows = [established(nat, 4, 6, 1000 + n) for n in range(8)]
    moved = replace(NARROW, ports=PortRange(21000, 21100))
    with nat_rigged(net, moved, pins=pins) as after:
        for number, flow in enumerate(flows):
            after.expect(answer(flow, flags="A"), NO_VIP)
            again = after.expect(client_frame(sport=1000 + number, flags="A"), TX)
            assert again.fresh
            assert 21000 <= port_of(again) <= 21100
        after.balancer.detach()


@pytest.mark.parametrize("flows", [1 << 12, NAT_SMALL.nat_flows, 1 << 16])
def test_tables_of_other_sizes_take_flows_along(net: Network, pins: Path, flows: int) -> None:
    """Each keeps its backend and port, both ways, and how long it is kept."""
    others = service(VIPS[6] + 9, *NEAR[6])
    with nat_rigged(net, pins=pins) as nat:
        nat.serve(others)
        own = Backend(NEAR[6][0], port=8080)
        nat.serve(others, snat_service(4), snat_service(6, own, protocol=Protocol.UDP))
        kept = [
            established(nat, version, protocol, 1000 + n)
            for version, protocol in ((4, 6), (6, 17))
            for n in range(examples(300, 50))
        ]
    limits = replace(NAT_SMALL, nat_flows=flows, flows=1 << 17)
    with nat_rigged(net, limits=limits, pins=pins) as after:
        after.told(after.balancer.observed())
        by_handle = after.balancer.members()
        for flow in kept:
            assert isinstance(flow, NatOutcome)
            assert flow.entry is not None
            reply = after.run(answer(flow, flags="A"))
            assert reply.retval == XDP_TX
            sent = flow.entry.flow
            version, protocol = sent.source.version, sent.protocol
            run = after.run(client_frame(version, protocol, sport=sent.source_port, flags="A"))
            at = {4: 34, 6: 54}[version]
            assert run.data[at : at + 2] == port_of(flow).to_bytes(2, "big")
        assert {member.backend for member in by_handle.values()} >= {k.backend for k in kept}
        counted = after.balancer.counters()
        assert sum(each.flows for each in counted.services) == len(kept)
        assert sum(each.replies for each in counted.services) == 2 * len(kept)
        after.balancer.detach()


def test_a_process_without_an_address(net: Network, pins: Path) -> None:
    """Until the service that it has taken over is gone, its packets are dropped and counted."""
    with nat_rigged(net, NARROW, pins=pins) as nat:
        nat.serve(snat_service(4))
        flow = established(nat, 4, 6, 1000)
    with nat_rigged(net, Snat(), pins=pins) as after:
        for frame in (client_frame(sport=1000, flags="A"), client_frame(sport=5)):
            before = after.counters()
            assert after.run(frame).retval == XDP_DROP
            moved = after.moved(before, after.counters())
            assert moved.pop("drop_nat_ports") == 1
            key = (VIPS[4], PORT, 6)
            units = {"packets": 1, "bytes": len(frame) - 14, "drops": 1, "drop_nat_ports": 1}
            assert moved == {(key, unit): by for unit, by in units.items()}
        assert after.run(answer(flow, flags="A")).retval == XDP_PASS
        after.serve()
        after.expect(client_frame(), NO_VIP)
        after.balancer.detach()


def test_without_an_address_a_service_is_refused(net: Network) -> None:
    """By name, with what is missing; what was there before still is."""
    with nat_rigged(net, Snat(ipv4=SNAT.ipv4)) as nat:
        nat.serve(snat_service(4))
        with pytest.raises(DatapathError, match=r"tcp-80-2001:db8:4::10: snat needs an IPv6 addr"):
            nat.balancer.apply([snat_service(4), snat_service(6)])
        nat.expect(client_frame(), TX)
        nat.expect(client_frame(6), NO_VIP)
