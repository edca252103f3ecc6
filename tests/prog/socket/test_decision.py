# SPDX-License-Identifier: Apache-2.0
"""The decision beside an oracle: by test runs for services of all kinds, and by real sockets."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest
from tests.prog.socket.harness import BACKENDS, BACKENDS6, PORT, VIP, VIP6, service
from tests.prog.socket.oracle import TCP, UDP, Member, Offer, Oracle, Outcome

from towpath.datapath.address import unpack
from towpath.datapath.socket.trial import Question, ask
from towpath.kernel.cgroup import cgroup_id
from towpath.model.kinds import Ports
from towpath.model.service import Backend, BackendState, Protocol, Service

if TYPE_CHECKING:
    from typing import Any

    from tests.prog.socket.harness import Rig

NUMBERS = {TCP: Protocol.TCP, UDP: Protocol.UDP}


def built(offer: Offer, number: int) -> Service:
    """The same service as Towpath has it."""
    ports = offer.ports
    single = len(ports) == 1 and ports[0][0] == ports[0][1]
    allowed = (ip_network("2001:db8:1::/64" if ":" in offer.vip else "198.51.100.0/24"),)
    return service(
        offer.vip,
        [
            Backend(
                ip_address(each.address),
                each.weight,
                BackendState.DRAINING if each.away else BackendState.ACTIVE,
                each.port or None,
            )
            for each in offer.members
        ],
        protocol=str(NUMBERS[offer.protocol]),
        port=ports[0][0] if single else Ports.of(ports),
        name=f"s{number}",
        affinity=offer.keeps or None,
        hash_by=offer.hash_by,
        allow_from=allowed if offer.restricted else None,
    )


def answered(rig: Rig, question: Question) -> Outcome:
    """What a test run says."""
    names = rig.sockets.program.names("socket_verdict", "SOCKET_", "SOCKET_VERDICTS")
    answer, _ = ask(rig.sockets.program, question)
    verdict = names[int(answer["verdict"])]
    if verdict not in {"balanced", "pass_family"}:
        return Outcome(verdict)
    backend = unpack(answer["addr"].tobytes(), int(answer["family"]))
    return Outcome(verdict, str(backend), int(answer["port"]))


def some_members(rng: random.Random, *, v6: bool) -> tuple[Member, ...]:
    """Backends of one family, some of which get no new flows."""
    pool = [f"fd00::{n:x}" if v6 else f"10.0.0.{n}" for n in range(1, 30)]
    return tuple(
        Member(each, rng.choice((0, 1, 1, 3)), away=rng.random() < 0.2)
        for each in rng.sample(pool, rng.randrange(5))
    )


def some_offers(rng: random.Random) -> list[Offer]:
    """Services of one port and of many, of addresses and prefixes, some of the other family."""
    made = []
    for n in range(1, 13):
        v6 = rng.random() < 0.5
        vip = f"2001:db8::{n:x}" if v6 else f"192.0.2.{n}"
        if n % 3 == 0:
            vip = (
                f"2001:db8:{n:x}::/{rng.choice((48, 64))}"
                if v6
                else f"10.{n}.0.0/{rng.choice((16, 24))}"
            )
        ports = rng.choice((((80, 80),), ((53, 53), (8000, 8999)), ((1, 65535),)))
        crossed = v6 ^ (rng.random() < 0.1)
        keeps = rng.choice((0, 0, 600))
        made.append(
            Offer(
                vip,
                ports,
                rng.choice((TCP, UDP)),
                some_members(rng, v6=crossed),
                keeps=keeps,
                hash_by="flow" if keeps else rng.choice(("flow", "client", "port")),
                restricted=rng.random() < 0.1,
            )
        )
    return made


def some_address(rng: random.Random, offers: list[Offer]) -> str:
    """One that a service has."""
    offer = rng.choice(offers)
    if offer.prefix is None:
        return offer.vip
    bits = offer.prefix.max_prefixlen - offer.prefix.prefixlen
    return str(offer.prefix.network_address + rng.getrandbits(bits))


@pytest.mark.parametrize("seed", range(20))
def test_test_runs_decide_as_the_oracle_does(rig: Rig, seed: int) -> None:
    """Whatever services there are; and nothing is counted by it."""
    rng = random.Random(seed)  # noqa: S311 - examples
    offers = some_offers(rng)
    rig.apply(*(built(each, n) for n, each in enumerate(offers)))
    oracle = Oracle(rig.tables.seeds["hash_seed"], offers)
    verdicts = set()
    with rig.counting() as moved:
        for _ in range(200):
            address = some_address(rng, offers)
            port = rng.choice((80, 53, 8000, 8999, 9000))
            protocol = rng.choice((TCP, UDP))
            who: dict[str, Any] = {
                "socket": rng.getrandbits(64),
                "netns": rng.getrandbits(64),
                "connects": rng.randrange(9),
            }
            question = Question(ip_address(address), port, NUMBERS[protocol], **who)
            expected = oracle.decide(address, port, protocol, **who)
            assert answered(rig, question) == expected, (address, port, protocol)
            verdicts.add(expected.verdict)
    assert moved == {}
    assert {"balanced", "pass_no_service"} <= verdicts


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_sockets_go_where_the_oracle_says(rig: Rig, family: str, protocol: int) -> None:
    """By their cookies, and by how often they have connected."""
    v6 = family == "AF_INET6"
    vip, backends = (VIP6, BACKENDS6) if v6 else (VIP, BACKENDS)
    offer = Offer(vip, ((PORT, PORT),), protocol, tuple(map(Member, backends)))
    rig.apply(built(offer, 0))
    oracle = Oracle(rig.tables.seeds["hash_seed"], [offer])
    kind = "SOCK_STREAM" if protocol == TCP else "SOCK_DGRAM"
    for _ in range(20):
        cookie = rig.run(f"make('s', {family}, {kind})")
        again = 1 if protocol == TCP else 4
        for connects in range(again):
            rig.run(f"S['s'].connect(('{vip}', {PORT}))")
            name = rig.run("S['s'].recv(100).decode()" if protocol == TCP else "ask('s')")
            expected = oracle.decide(vip, PORT, protocol, socket=cookie, connects=connects)
            assert Outcome("balanced", name, PORT) == expected


def test_clients_stay_as_the_oracle_says(rig: Rig) -> None:
    """Test runs know of clients what hooks have learnt, and teach them nothing."""
    offer = Offer(VIP, ((PORT, PORT),), TCP, tuple(map(Member, BACKENDS)), keeps=600)
    rig.apply(built(offer, 0))
    oracle = Oracle(rig.tables.seeds["hash_seed"], [offer])
    for netns in range(50):
        expected = oracle.decide(VIP, PORT, TCP, netns=netns)
        question = Question(ip_address(VIP), PORT, Protocol.TCP, netns=netns)
        assert answered(rig, question) == expected
    assert not rig.tables.rows("clients")["way"]["ref"].any()
    came = rig.run(f"tcp('{VIP}', {PORT})")[0]
    (client,) = (each for each in rig.tables.rows("clients")["way"].reshape(-1) if each["ref"])
    words = client["addr"]["word"]
    netns = _cookie(words)
    assert oracle.decide(VIP, PORT, TCP, netns=netns).backend == came
    # Its place by Maglev goes to another backend, and the client stays.
    heavy = (Member(f"10.0.1.{n}", 9) for n in range(9))
    others = replace(offer, members=(*offer.members, *heavy))
    rig.apply(built(others, 0))
    oracle.offers = [others]
    oracle.clients[VIP, netns] = (came, 0)
    question = Question(ip_address(VIP), PORT, Protocol.TCP, netns=netns)
    assert answered(rig, question) == oracle.decide(VIP, PORT, TCP, netns=netns, now=1)


def _cookie(words: Any) -> int:
    """Of a client's address: its halves are this machine's numbers."""
    low = int.from_bytes(words[3:].tobytes(), "little")
    return int.from_bytes(words[2:3].tobytes(), "little") << 32 | low


def test_what_was_noted_counts_while_it_may(rig: Rig) -> None:
    """Datagrams of a socket stay with a backend, for as long as a flow lasts."""
    import time  # noqa: PLC0415

    rig.apply(service(protocol="udp"))
    (installed,) = rig.contents.installed
    now = int(time.clock_gettime(time.CLOCK_MONOTONIC))
    by = rig.sockets.program.constant("socket_decision", "SOCKET_BY_NOTE")
    for address, handle in installed.handles.items():
        question = Question(ip_address(VIP), PORT, Protocol.UDP, known=handle, seen=now)
        answer, _ = ask(rig.sockets.program, question)
        assert (int(answer["handle"]), int(answer["by"])) == (handle, by)
        assert answered(rig, question).backend == str(address)
        old = replace(question, seen=(now - 400) % (1 << 32))
        answer, _ = ask(rig.sockets.program, old)
        assert int(answer["by"]) != by
        stale = replace(question, known=handle + (1 << 20))
        answer, _ = ask(rig.sockets.program, stale)
        assert int(answer["by"]) != by


def test_cgroups_are_told_by_their_ids(rig: Rig) -> None:
    """Wherever among those that a process is in."""
    rig.apply(service())
    rig.sockets.replace_excluded([rig.cgroup])
    mine = cgroup_id(rig.cgroup)
    question = Question(ip_address(VIP), PORT, Protocol.TCP)
    assert answered(rig, question).verdict == "balanced"
    for ids in ([1, mine], [1, 7, mine], [1, mine, 9, 10]):
        assert answered(rig, replace(question, cgroups=ids)) == Outcome("pass_cgroup")
    assert answered(rig, replace(question, cgroups=[1, 7, 9])).verdict == "balanced"


def test_what_is_for_this_node_comes_first(rig: Rig) -> None:
    """At its port of its address, with ports of its backends' own; else what is for all."""
    inner = service(backends=[Backend(ip_address(BACKENDS[0]))], name="inner", scope="node")
    outer = service(backends=[Backend(ip_address(BACKENDS[1]))], name="outer")
    rig.apply(inner, outer)
    with rig.counting() as moved:
        assert rig.run(f"tcp('{VIP}', {PORT})") == [BACKENDS[0], [VIP, PORT]]
    assert moved.pop(f"inner, {BACKENDS[0]}: connects") == 1
    assert not any("outer" in name for name in moved)
    rig.apply(outer)
    assert rig.run(f"tcp('{VIP}', {PORT})")[0] == BACKENDS[1]
    other = replace(inner, port=81, backends=(Backend(ip_address(BACKENDS[2]), port=PORT),))
    rig.apply(outer, other)
    assert rig.run(f"tcp('{VIP}', 81)") == [BACKENDS[2], [VIP, 81]]
    rig.apply(outer)
    assert "errno" in rig.run(f"tcp('{VIP}', 81)")
