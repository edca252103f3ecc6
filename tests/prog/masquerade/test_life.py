# SPDX-License-Identifier: Apache-2.0
"""How flows begin, what keeps them and what ends them."""

from __future__ import annotations

import socket
import subprocess
import time
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit, SCTPChunkInitAck
from scapy.packet import Raw
from tests.guests import cases
from tests.prog.masquerade.harness import (
    GATEWAY_MAC,
    LAN,
    OTHER_POD,
    POD,
    POD_MAC,
    REDIRECT,
    REMOTE,
    SECTION,
    SHOT,
    UNSPEC,
    WAN,
    Rig,
    mac,
)
from tests.prog.masquerade.oracle import fresh, port_of

from towpath.model.kinds import PortRange

if TYPE_CHECKING:
    from collections.abc import Iterator

V4 = IP(src=POD, dst=REMOTE)


def datagram(source: str = POD, sport: int = 5, remote: str = REMOTE, dport: int = 53) -> IP:
    """A pod's."""
    return IP(src=source, dst=remote) / UDP(sport=sport, dport=dport) / Raw(b"x")


@pytest.fixture
def few(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """With 16 ports."""
    request.getfixturevalue("network")
    made = Rig(replace(SECTION, ports=PortRange(61000, 61015)))
    yield made
    made.close()


@pytest.fixture
def independent(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """With endpoint-independent mapping."""
    request.getfixturevalue("network")
    made = Rig(replace(SECTION, mapping="endpoint-independent"))
    yield made
    made.close()


def test_two_pods_with_one_port_get_two(masq: Rig) -> None:
    """Towards one remote."""
    ports = {port_of(masq.out(datagram(source)).packet, source=True) for source in (POD, OTHER_POD)}
    assert len(ports) == 2


@pytest.mark.thorough
def test_all_ports_are_used_and_no_more(few: Rig) -> None:
    """Towards one remote; another one has all of them again."""
    for remote in (REMOTE, "203.0.113.10"):
        # At once: a port whose flow nobody has answered for seconds may be another's.
        runs = few.burst([datagram(sport=sport, remote=remote) for sport in range(1, 18)])
        ports = [port_of(Ether(each.data), source=True) for each in runs if each.retval != SHOT]
        assert sorted(ports) == list(range(61000, 61016))
        assert few.moved()["from_pod.drop_ports"] == 1


@pytest.mark.thorough
def test_a_flow_finds_a_port_as_long_as_there_are_candidates(
    request: pytest.FixtureRequest,
) -> None:
    """Sixteen that are all different, of a count of ports that has many divisors."""
    request.getfixturevalue("network")
    made = Rig(replace(SECTION, ports=PortRange(61000, 61031), flows=1 << 16))
    try:
        remotes = cases([f"203.0.113.{n}" for n in range(1, 101)], 20)
        for remote in remotes:
            runs = made.burst([datagram(sport=sport, remote=remote) for sport in range(1, 17)])
            ports = {port_of(Ether(each.data), source=True) for each in runs}
            assert len(ports) == 16
        count = 16 * len(remotes)
        assert made.moved() == {"from_pod.sent": count, "from_pod.bound": count}
    finally:
        made.close()


@pytest.mark.thorough
def test_flows_are_found_in_whatever_way_of_their_set(request: pytest.FixtureRequest) -> None:
    """Eight in one set, of which most haven't got the way that is their own."""
    request.getfixturevalue("network")
    made = Rig(replace(SECTION, flows=8))
    try:
        assert made.program.maps["masq_flows"].max_entries == 1
        packets = [datagram(sport=sport, dport=53 + sport) for sport in range(8)]
        sent = [made.out(each).packet for each in packets]
        assert made.program.maps["masq_flows"].lookup(0)["way"]["ref"].all()
        for sport, (packet, first) in enumerate(zip(packets, sent, strict=True)):
            again = made.out(packet)
            assert again.moved == {"from_pod.sent": 1}
            assert again.packet == first
            back = IP(src=REMOTE, dst=WAN) / UDP(sport=53 + sport, dport=first[UDP].sport)
            answer = made.answer(back)
            assert answer.moved == {"from_net.sent": 1}
            assert (answer.packet[IP].dst, answer.packet[UDP].dport) == (POD, sport)
    finally:
        made.close()


@pytest.mark.thorough
@pytest.mark.parametrize("alike", [0, 3, 15])
def test_a_pods_address_is_its_devices_own(masq: Rig, alike: int) -> None:
    """Whoever sends with it by another one isn't translated, not even in the same moment."""
    masq.alike(alike)
    frame = Ether(src=POD_MAC, dst=mac("lan")) / datagram()
    masq.out(datagram())
    for _ in range(50):  # most of them within a jiffy
        assert masq.out(datagram()).moved == {"from_pod.sent": 1}
        assert masq.run("from_pod", frame, "lan").moved == {"from_pod.pass_other": 1}
        assert masq.leave(datagram()).moved == {"to_net.stack": 1}
        left = masq.run("to_net", frame, "wan", came_by="lan")
        assert left.moved == {"to_net.pass_other": 1}


def test_a_socket_of_the_node_keeps_its_port(few: Rig) -> None:
    """Found when a flow is bound; packets for it get to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("0.0.0.0", 61007))
        runs = [few.out(datagram(sport=sport)) for sport in range(1, 17)]
        ports = {port_of(each.packet, source=True) for each in runs if each.action != SHOT}
        assert ports == set(range(61000, 61016)) - {61007}
        run = few.answer(IP(src=REMOTE, dst=WAN) / UDP(sport=53, dport=61007))
        assert run.moved == {"from_net.pass_socket": 1}
        assert run.action == UNSPEC


def test_a_listener_of_the_node_keeps_its_port(few: Rig) -> None:
    """Of TCP."""
    with socket.socket() as own:
        own.bind((WAN, 61003))
        own.listen()
        runs = [few.out(V4 / TCP(sport=sport, dport=80, flags="S")) for sport in range(1, 17)]
        ports = {port_of(each.packet, source=True) for each in runs if each.action != SHOT}
        assert ports == set(range(61000, 61016)) - {61003}


@pytest.mark.thorough
def test_a_port_that_the_agent_has_seen_taken_is_left(few: Rig) -> None:
    """Whatever its socket does with it."""
    taken = few.program.maps["masq_ports"].lookup(1)
    taken["taken"][61004 >> 6] |= np.uint64(1 << (61004 & 63))
    few.program.maps["masq_ports"].update(1, taken)
    runs = [few.out(datagram(sport=sport)) for sport in range(1, 17)]
    assert 61004 not in {port_of(e.packet, source=True) for e in runs if e.action != SHOT}
    run = few.answer(IP(src=REMOTE, dst=WAN) / UDP(sport=53, dport=61004))
    assert run.moved == {"from_net.pass_socket": 1}


def test_an_address_that_has_gone_takes_its_flows_along(masq: Rig) -> None:
    """The next packet gets another address, and answers to the one before find nothing."""
    before = masq.out(datagram(remote="10.0.0.100")).packet
    assert before[IP].src == LAN
    masq.sources.sync([ip_address(WAN), ip_address("10.0.0.5")])
    # The route still prefers what is gone: what is not known is not sent.
    subprocess.run(["ip", "addr", "del", f"{LAN}/24", "dev", "lan"], check=True)
    try:
        run = masq.answer(
            IP(src="10.0.0.100", dst=LAN) / UDP(sport=53, dport=before[UDP].sport), "lan"
        )
        assert run.moved == {"from_net.pass_other": 1}
        subprocess.run(["ip", "addr", "add", "10.0.0.5/24", "dev", "lan"], check=False)
        subprocess.run(
            ["ip", "neigh", "replace", "10.0.0.100", "lladdr", "02:00:00:00:02:64", "dev", "lan"],
            check=True,
        )
        masq.follow_routes()
        after = masq.out(datagram(remote="10.0.0.100"))
        assert after.moved == {"from_pod.sent": 1, "from_pod.bound": 1}
        assert after.packet[IP].src == "10.0.0.5"
    finally:
        restore_lan()


def restore_lan() -> None:
    """As the harness has it."""
    from tests.prog.masquerade.harness import NODE, ip_batch  # noqa: PLC0415

    ip_batch("addr flush dev lan")
    lines = [line for line in NODE.splitlines() if "lan" in line or "10.8." in line]
    ip_batch("\n".join(lines))


@pytest.mark.thorough
def test_a_source_that_is_not_known_is_not_sent_from(masq: Rig) -> None:
    """Nothing leaves untranslated meanwhile."""
    masq.sources.sync([ip_address(LAN)])
    run = masq.out(datagram())
    assert run.moved == {"from_pod.drop_source": 1}
    assert run.action == SHOT


@pytest.mark.thorough
def test_a_device_that_is_not_followed_is_not_sent_by(masq: Rig) -> None:
    """The program that sees to what the stack sends isn't there yet."""
    masq.program.maps["masq_devices"].delete(masq.index["wan"])
    run = masq.out(datagram())
    assert run.moved == {"from_pod.drop_device": 1}


@pytest.mark.thorough
def test_what_pods_answer_is_not_translated(masq: Rig) -> None:
    """To connections and datagrams that came in from outside."""
    asked = IP(src=REMOTE, dst=POD) / TCP(sport=40000, dport=80, flags="S")
    assert masq.inward(asked).moved == {"to_pod.pass_inbound": 1}
    for flags in ("SA", "A", "R"):
        run = masq.out(V4 / TCP(sport=80, dport=40000, flags=flags))
        assert run.moved == {"from_pod.pass_inbound": 1}
        assert run.action == UNSPEC
        leaves = masq.leave(V4 / TCP(sport=80, dport=40000, flags=flags))
        assert leaves.moved == {"to_net.pass_inbound": 1}
    query = IP(src=REMOTE, dst=POD) / UDP(sport=40000, dport=53)
    assert masq.inward(query).moved == {"to_pod.pass_inbound": 1}
    assert masq.out(datagram(sport=53, dport=40000)).moved == {"from_pod.pass_inbound": 1}
    ping = IP(src=REMOTE, dst=POD) / ICMP(type=8, id=3)
    assert masq.inward(ping).moved == {"to_pod.pass_inbound": 1}
    assert masq.out(V4 / ICMP(type=0, id=3)).moved == {"from_pod.pass_inbound": 1}


@pytest.mark.parametrize("node", [WAN, "10.244.0.1"], ids=["outside", "spared"])
def test_what_the_node_has_asked_for_others_is_answered_to_them(masq: Rig, node: str) -> None:
    """By the stack, which has given the answer their address before it is seen, if it is one."""
    noted = "pass_inbound" if node == WAN else "pass_excluded"
    query = IP(src=node, dst=POD) / UDP(sport=50000, dport=5353)
    assert masq.inward(query).moved == {f"to_pod.{noted}": 1}
    answer = datagram(sport=5353, dport=40000)
    assert masq.out(answer).moved == {"from_pod.pass_inbound": 1}
    assert masq.leave(answer).moved == {"to_net.stack": 1, "to_net.bound": 1}
    assert masq.out(datagram(sport=5354, dport=40000)).moved["from_pod.bound"] == 1
    asked = IP(src=node, dst=POD) / TCP(sport=50000, dport=8080, flags="A")
    assert masq.inward(asked).moved == {f"to_pod.{noted}": 1}
    for flags in ("SA", "A", "R"):
        back = V4 / TCP(sport=8080, dport=40000, flags=flags)
        assert masq.out(back).moved == {"from_pod.pass_inbound": 1}
    begins = masq.out(V4 / TCP(sport=8080, dport=40000, flags="S"))
    assert begins.moved["from_pod.bound"] == 1


@pytest.mark.thorough
def test_a_pods_own_connection_is_translated_whatever_came_in_before(masq: Rig) -> None:
    """A SYN begins one, even with the ports of one that came in."""
    masq.inward(IP(src=REMOTE, dst=POD) / TCP(sport=443, dport=40000, flags="A"))
    run = masq.out(V4 / TCP(sport=40000, dport=443, flags="S"))
    assert run.moved == {"from_pod.sent": 1, "from_pod.bound": 1}


@pytest.mark.thorough
def test_a_connection_goes_on_when_the_table_is_lost(masq: Rig) -> None:
    """Its ports follow from its addresses and the seed."""
    before = masq.out(V4 / TCP(sport=40000, dport=443, flags="S")).packet
    for name in ("masq_heads", "masq_flows"):
        table = masq.program.maps[name]
        for number in range(table.max_entries):
            table.update(number, np.zeros((), table.value_dtype))
    run = masq.out(V4 / TCP(sport=40000, dport=443, flags="A"))
    assert run.moved == {"from_pod.sent": 1, "from_pod.bound": 1}
    assert run.packet[TCP].sport == before[TCP].sport


def test_sctp_keeps_its_port(masq: Rig) -> None:
    """Its checksum covers it, and is not made anew."""
    sent = IP(src=POD, dst=REMOTE) / SCTP(sport=40000, dport=9) / SCTPChunkInit(init_tag=1)
    run = masq.out(sent)
    assert run.moved == {"from_pod.sent": 1, "from_pod.bound": 1}
    assert (run.packet[IP].src, run.packet[SCTP].sport) == (WAN, 40000)
    assert bytes(run.packet[SCTP]) == bytes(IP(bytes(sent))[SCTP])
    back = IP(src=REMOTE, dst=WAN) / SCTP(sport=9, dport=40000) / SCTPChunkInitAck(init_tag=2)
    got = masq.answer(back)
    assert got.moved == {"from_net.sent": 1}
    assert got.packet[IP].dst == POD
    other = IP(src=OTHER_POD, dst=REMOTE) / SCTP(sport=40000, dport=9) / SCTPChunkInit(init_tag=1)
    assert masq.out(other).moved == {"from_pod.drop_ports": 1}
    own = IP(src=REMOTE, dst=WAN) / SCTP(sport=9, dport=40001) / SCTPChunkInitAck(init_tag=2)
    assert masq.answer(own).moved == {"from_net.pass_local": 1}


def test_one_port_for_all_remotes(independent: Rig) -> None:
    """RFC 4787, REQ-1; and another one for another socket."""
    remotes = ("203.0.113.9", "203.0.113.10", "203.0.113.11")
    runs = [
        independent.out(datagram(remote=remote, dport=port))
        for remote in remotes
        for port in (53, 54)
    ]
    ports = {port_of(run.packet, source=True) for run in runs}
    assert len(ports) == 1
    other = independent.out(datagram(OTHER_POD))
    assert port_of(other.packet, source=True) not in ports
    (port,) = ports
    for remote in remotes:
        back = IP(src=remote, dst=WAN) / UDP(sport=54, dport=port)
        assert independent.answer(back).packet[IP].dst == POD
    stray = IP(src="203.0.113.99", dst=WAN) / UDP(sport=54, dport=port)
    assert independent.answer(stray).moved == {"from_net.drop_unsolicited": 1}


@pytest.mark.thorough
@pytest.mark.usefixtures("network")
def test_endpoints_never_share_a_port() -> None:
    """16 of them have all there are, of whatever remote; the next one has none."""
    few = Rig(replace(SECTION, mapping="endpoint-independent", ports=PortRange(61000, 61015)))
    try:
        # At once: a port that nobody has used for a while may be another's.
        remotes = REMOTE, "203.0.113.77"
        packets = [datagram(sport=s, remote=each) for each in remotes for s in range(1, 17)]
        runs = few.burst([*packets, datagram(sport=99, remote="203.0.113.78")])
        ports = [port_of(Ether(run.data), source=True) for run in runs[:-1]]
        assert sorted(ports[:16]) == list(range(61000, 61016))
        assert ports[16:] == ports[:16]
        assert few.moved() == {"from_pod.sent": 32, "from_pod.bound": 32, "from_pod.drop_ports": 1}
    finally:
        few.close()


@pytest.mark.usefixtures("network")
def test_through_the_stack() -> None:
    """Out: left as it is, and translated when it leaves. Back: translated, and the stack's."""
    made = Rig(replace(SECTION, through_stack=True))
    try:
        packet = datagram()
        run = made.out(packet)
        assert run.moved == {"from_pod.pass_stack": 1}
        assert run.packet[IP].src == POD
        left = made.leave(packet).packet
        assert left[IP].src == WAN
        back = IP(src=REMOTE, dst=WAN, ttl=7) / UDP(sport=53, dport=left[UDP].sport)
        got = made.answer(back)
        assert got.moved == {"from_net.stack": 1}
        assert got.action == UNSPEC
        assert (got.packet[IP].dst, got.packet[IP].ttl) == (POD, 7)
    finally:
        made.close()


def test_a_peer_gets_its_packets_in_its_namespace(masq: Rig) -> None:
    """Where the pod's device has its other end there."""
    masq.device("cni0", peer=True)
    sent = masq.out(datagram()).packet
    run = masq.answer(IP(src=REMOTE, dst=WAN) / UDP(sport=53, dport=sent[UDP].sport))
    assert run.moved == {"from_net.peer": 1}
    assert run.packet[IP].dst == POD


@pytest.fixture
def full_cone(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """With endpoint-independent mapping and filtering."""
    request.getfixturevalue("network")
    section = replace(SECTION, mapping="endpoint-independent", filtering="endpoint-independent")
    made = Rig(section)
    yield made
    made.close()


def test_whoever_sends_to_a_pods_port_reaches_it(full_cone: Rig) -> None:
    """With endpoint-independent filtering; what it answers leaves from that port."""
    sent = full_cone.out(datagram()).packet
    port = port_of(sent, source=True)
    stranger = IP(src="203.0.113.99", dst=WAN) / UDP(sport=777, dport=port)
    run = full_cone.answer(stranger)
    assert run.moved == {"from_net.sent": 1}
    assert (run.packet[IP].dst, run.packet[UDP].dport) == (POD, 5)
    answer = full_cone.out(datagram(remote="203.0.113.99", dport=777))
    assert answer.moved == {"from_pod.sent": 1}
    assert port_of(answer.packet, source=True) == port
    nobody = IP(src="203.0.113.99", dst=WAN) / UDP(sport=777, dport=port ^ 1)
    assert full_cone.answer(nobody).moved == {"from_net.drop_unsolicited": 1}


@pytest.mark.thorough
def test_pods_reach_each_other_by_what_they_are_translated_to(full_cone: Rig) -> None:
    """RFC 4787, REQ-9: from the translated address and port, both ways."""
    server = port_of(full_cone.out(datagram()).packet, source=True)
    there = full_cone.out(datagram(OTHER_POD, sport=9, remote=WAN, dport=server))
    assert there.moved == {"from_pod.sent": 1, "from_pod.bound": 1}
    assert (there.packet[IP].src, there.packet[IP].dst) == (WAN, POD)
    assert (there.packet[UDP].dport, there.packet[IP].ttl) == (5, 63)
    assert fresh(there.packet[IP]).chksum == there.packet[IP].chksum
    assert fresh(there.packet[IP])[UDP].chksum == there.packet[UDP].chksum
    client = there.packet[UDP].sport
    back = full_cone.out(datagram(POD, sport=5, remote=WAN, dport=client))
    assert (back.packet[IP].src, back.packet[IP].dst) == (WAN, OTHER_POD)
    assert (back.packet[UDP].sport, back.packet[UDP].dport) == (server, 9)
    own = full_cone.out(datagram(OTHER_POD, remote=WAN, dport=server ^ 1))
    assert own.moved == {"from_pod.pass_local": 1}


@pytest.mark.thorough
def test_the_stacks_error_about_an_answer_is_the_remotes(masq: Rig) -> None:
    """It quotes what the remote has sent, and not the pod's address."""
    sent = masq.out(datagram()).packet
    came = fresh(IP(src=REMOTE, dst=WAN) / UDP(sport=53, dport=sent[UDP].sport) / Raw(b"long"))
    given = fresh(masq.answer(came).packet[IP])
    error = IP(src=WAN, dst=REMOTE) / ICMP(type=3, code=4) / Raw(bytes(given))
    frame = Ether(src=mac("wan"), dst=GATEWAY_MAC) / error
    run = masq.run("to_net", frame, "wan")
    assert run.moved == {"to_net.stack": 1}
    quoted = came.copy()
    quoted.ttl -= 1
    wanted = IP(src=WAN, dst=REMOTE) / ICMP(type=3, code=4) / Raw(bytes(fresh(quoted)))
    assert run.data[14:] == bytes(wanted)
    own = IP(src=WAN, dst=REMOTE) / ICMP(type=3, code=3) / came
    left = masq.run("to_net", Ether(src=mac("wan"), dst=GATEWAY_MAC) / own, "wan")
    assert left.moved == {"to_net.pass_local": 1}


@pytest.mark.thorough
def test_unknown_connections_are_the_stacks_for_a_while(masq: Rig) -> None:
    """Netfilter may know them; those that the table has known are never left to it."""
    known = V4 / TCP(sport=1, dport=2, flags="S")
    masq.out(known)
    state = masq.program.maps["masq_states"].lookup(0)
    state["adopt_until"] = int(time.clock_gettime(time.CLOCK_MONOTONIC)) + 3600
    masq.program.maps["masq_states"].update(0, state)
    run = masq.out(V4 / TCP(sport=9, dport=2, flags="A"))
    assert run.moved == {"from_pod.pass_inbound": 1}
    assert masq.out(V4 / TCP(sport=9, dport=2, flags="S")).moved["from_pod.sent"] == 1
    for source in (WAN, LAN, "10.0.0.5"):
        masq.sources.sync(ip_address(each) for each in (WAN, LAN, "10.0.0.5") if each != source)
    masq.sources.sync(ip_address(each) for each in (WAN, LAN))
    masq.follow_routes()
    again = masq.out(V4 / TCP(sport=1, dport=2, flags="A"))
    assert again.moved == {"from_pod.sent": 1, "from_pod.bound": 1}


@pytest.mark.thorough
@pytest.mark.usefixtures("network")
def test_a_flood_begins_so_many_flows_and_no_more() -> None:
    """In a jiffy and CPU; those that there are go on."""
    made = Rig(replace(SECTION, rate=1000))
    try:
        packets = [datagram(sport=1 + n) for n in cases(range(500), 5)]
        seen = Counter(run.retval for run in made.burst(packets))
        moved = made.moved()
        assert moved["from_pod.drop_rate"] == seen[SHOT] > 0
        assert moved["from_pod.sent"] == moved["from_pod.bound"] == seen[REDIRECT] > 0
        known = made.burst(packets[:1] * len(packets))
        assert {run.retval for run in known[1:]} == {REDIRECT}
    finally:
        made.close()
