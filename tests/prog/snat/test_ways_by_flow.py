# SPDX-License-Identifier: Apache-2.0
"""Translated flows between the same hosts that go different ways, there and back."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import CLIENTS
from tests.prog.lb.network import FAR, HOST, IN, NEAR, OUT, Network, ip, network
from tests.prog.lb.oracle import REDIRECT, TX
from tests.prog.lb.test_ways_by_flow import FLOWS, TARGET, kernels_choice, published, several, wait
from tests.prog.snat.harness import NatRig, answer, client_frame, nat_rigged, port_of, snat_service
from tests.prog.snat.oracle import NatOutcome

from towpath.datapath.neigh.follower import Follower

if TYPE_CHECKING:
    from collections.abc import Iterator

TCP_NUMBER = "6"


@pytest.fixture
def net() -> Iterator[Network]:
    """A network of the test's own: what rules there are stays."""
    with network() as made:
        for each in ("all", IN, OUT):
            Path(f"/proc/sys/net/ipv4/conf/{each}/rp_filter").write_text("0")
        yield made


@pytest.fixture
def nat(net: Network) -> Iterator[NatRig]:
    """One that is told how flows' ways may differ."""
    with Follower() as follower, nat_rigged(net, next_hops=follower) as made:
        yield made


@pytest.mark.thorough
def test_each_flow_takes_the_way_that_the_kernel_would(net: Network, nat: NatRig) -> None:
    """By addresses and ports, if it is so configured: to the backend, and back to the client."""
    Path("/proc/sys/net/ipv4/fib_multipath_hash_policy").write_text("1")
    target, client, gateways = TARGET[4], CLIENTS[4], NEAR[4][:2]
    several(*gateways)
    hops = " ".join(f"nexthop via {each}" for each in gateways)
    ip(f"route replace {client}/{HOST[4]} {hops}")
    nat.serve(snat_service(4, target))
    wait(lambda: {"backend", "client"} <= published(nat, 4))
    used = []
    for sport in range(1000, 1000 + FLOWS):
        made = client_frame(sport=sport)
        nat.world.ways[target] = net.ways[gateways[0]]
        foretold = deepcopy(nat.world).judge(made, nat.devices[IN])
        there = kernels_choice(target, *question(foretold))
        nat.world.ways[target] = net.ways[there]
        sent = nat.expect(made, TX)
        back = kernels_choice(client, *answered(sport))
        nat.world.ways[client] = net.ways[back]
        nat.expect(answer(sent), TX)
        used.append((there, back))
    assert len(set(used)) == 4


def question(outcome: object) -> list[str]:
    """How `ip route get` is asked for a translated packet."""
    assert isinstance(outcome, NatOutcome)
    source = str(nat_source(outcome))
    ports = ["sport", str(port_of(outcome)), "dport", "80"]
    return ["from", source, "ipproto", TCP_NUMBER, *ports]


def nat_source(outcome: NatOutcome) -> object:
    """What a packet is translated to."""
    assert outcome.entry is not None
    return outcome.entry.reply.destination


def answered(sport: int) -> list[str]:
    """The same for the answer to a client's port."""
    ports = ["sport", "80", "dport", str(sport)]
    return ["from", "203.0.113.10", "ipproto", TCP_NUMBER, *ports]


@pytest.mark.parametrize("version", [4, 6])
def test_rules_for_ports_are_followed_by_each_packet(
    net: Network, nat: NatRig, version: int
) -> None:
    """Of one client, to one backend, in one moment: by the backend's port, and by its own."""
    target, client = TARGET[version], CLIENTS[version]
    near, far = NEAR[version][0], FAR[version][0]
    ip(
        f"route add {target}/{HOST[version]} via {near}",
        f"route add {target}/{HOST[version]} via {far} table 100",
        f"route add {client}/{HOST[version]} via {far} table 100",
    )
    ip(
        f"rule add ipproto tcp to {target} dport 81 lookup 100",
        f"rule add ipproto tcp to {client} dport 41000-41999 lookup 100",
        version=version,
    )
    nat.serve(snat_service(version, target), snat_service(version, target, port=81))
    wait(lambda: {"backend", "client"} <= published(nat, version))
    back = nat.world.ways[client]
    for round_ in range(20):
        for dport, sport in ((80, 40000), (81, 41000), (80, 41000), (81, 40000)):
            flags = "A" if round_ else "S"
            nat.world.ways[target] = net.ways[far if dport == 81 else near]
            made = client_frame(version, flags=flags, sport=sport, dport=dport)
            sent = nat.expect(made, REDIRECT if dport == 81 else TX)
            nat.world.ways[client] = net.ways[far] if sport == 41000 else back
            nat.expect(answer(sent), REDIRECT if sport == 41000 else TX)
