# SPDX-License-Identifier: Apache-2.0
"""Any packets of pods, and to them, beside an oracle."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from random import Random
from typing import TYPE_CHECKING

import pytest
from scapy.packet import Raw
from tests.prog.masquerade.oracle_flows import ACK, FIN, RST, SYN, TCP, UDP, Packet
from tests.prog.packets.harness import (
    BACKENDS,
    BACKENDS6,
    NODE_MAC,
    OTHER_VIP,
    POD_MAC,
    VIP,
    VIP6,
    Rig,
    Run,
    service,
)
from tests.prog.packets.oracle_flows import Expected, Offer, Oracle, Way

from towpath.datapath.socket.packets import program

if TYPE_CHECKING:
    from collections.abc import Iterator

PODS = {4: ("10.244.0.2", "10.244.0.3"), 6: ("fd00:1::2", "fd00:1::3")}
OFFERS = {
    (VIP, 8080, TCP): Offer(BACKENDS, 8080),
    (OTHER_VIP, 8080, TCP): Offer(BACKENDS[:2], 8080),
    (VIP, 8080, UDP): Offer(BACKENDS, 8080),
    (OTHER_VIP, 8080, UDP): Offer(BACKENDS[:1], 8080),
    (VIP6, 8080, TCP): Offer(BACKENDS6, 8080),
    (VIP6, 8080, UDP): Offer(BACKENDS6[:1], 8080),
}
FLAGS = (SYN, SYN, ACK, ACK, ACK, FIN | ACK, RST, RST | ACK, SYN | ACK)


@pytest.fixture
def patient(network: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Programs whose flows don't end for want of time, however long the test takes."""
    assert network is None
    for name in ("TCP_NEW", "TCP_CLOSING", "UDP_NEW"):
        monkeypatch.setattr(program, name, program.TCP_OPEN)
    with Rig(flows=8192) as rig:
        yield rig


def some(chance: Random, *, to_pod: bool) -> Packet:
    """A packet, of few ends, so that flows meet."""
    version = chance.choice((4, 4, 6))
    backends = BACKENDS if version == 4 else BACKENDS6
    vips = (VIP, OTHER_VIP) if version == 4 else (VIP6,)
    protocol = chance.choice((TCP, UDP))
    pod = ip_address(chance.choice(PODS[version])), chance.randrange(40000, 40006)
    other = ip_address(chance.choice((*vips, *vips, *backends))), chance.choice((8080, 8080, 9090))
    if to_pod:
        pod, other = other, pod
    return Packet(
        source=pod[0],
        destination=other[0],
        protocol=protocol,
        sport=pod[1],
        dport=other[1],
        hops=chance.randrange(1, 256),
        tos=chance.randrange(256),
        ident=chance.randrange(1 << 16),
        flags=chance.choice(FLAGS) if protocol == TCP else 0,
        options=chance.choice((0, 0, 0, 2)) if version == 4 else 0,
        payload=bytes(chance.randrange(256) for _ in range(chance.randrange(40))),
        wrong=chance.choice((0, 0, 0, 1234)),
    )


def check(run: Run, program_: str, expected: Expected) -> None:
    """The verdict, no other counter, and each byte."""
    moved = {f"{program_}.{expected.verdict}": 1}
    assert run.moved == (moved | {"from_pod.begun": 1} if expected.begun else moved)
    macs = (POD_MAC, NODE_MAC) if program_ == "from_pod" else (NODE_MAC, POD_MAC)
    head = b"".join(bytes.fromhex(each.replace(":", "")) for each in reversed(macs))
    kind = b"\x08\x00" if expected.packet.v4 else b"\x86\xdd"
    if expected.verdict != "drop_no_flow":
        assert run.data == head + kind + expected.packet.packed()


@pytest.mark.parametrize("seed", range(3))
def test_packets_become_what_they_are_to(patient: Rig, seed: int) -> None:
    """Some hundred of each kind, on two devices; answers to what was sent are among them."""
    chance = Random(seed)  # noqa: S311 -- not a secret
    rig, oracle, counts = patient, Oracle(OFFERS), Counter[str]()
    protocols = {TCP: "tcp", UDP: "udp"}
    rig.apply(
        *(
            service(vip, offer.backends, protocol=protocols[protocol], port=port)
            for (vip, port, protocol), offer in OFFERS.items()
        )
    )
    sent: list[tuple[Packet, str]] = []
    for _ in range(600):
        device = chance.choice(("pod", "other"))
        if chance.random() < 0.5:
            packet = some(chance, to_pod=False)
            expected = oracle.out(packet, device)
            run = rig.out(Raw(packet.packed()), device, ipv6=not packet.v4)
            if expected.open_port:
                port = int.from_bytes(run.data[_at(packet) : _at(packet) + 2], "big")
                way = expected.packet
                oracle.learn(packet, device, Way(way.destination, way.dport, port))
                expected.packet = replace(expected.packet, sport=port)
            if expected.verdict == "balanced":
                sent.append((expected.packet, device))
            check(run, "from_pod", expected)
        else:
            packet = some(chance, to_pod=True)
            if sent and chance.random() < 0.7:
                there, device = chance.choice(sent)
                packet = replace(
                    packet,
                    protocol=there.protocol,
                    source=there.destination,
                    destination=there.source,
                    sport=there.dport,
                    dport=there.sport,
                    options=packet.options if there.v4 else 0,
                )
            expected = oracle.to_pod(packet, device)
            run = rig.to_pod(Raw(packet.packed()), device, ipv6=not packet.v4)
            check(run, "to_pod", expected)
        counts[expected.verdict + (" anew" if expected.open_port else "")] += 1
    wanted = ("balanced", "balanced anew", "restored", "pass_no_service", "pass_no_flow")
    assert all(counts[each] for each in (*wanted, "drop_no_flow")), counts


def _at(packet: Packet) -> int:
    """Where the packet's port is in its frame."""
    return 14 + (20 + 4 * packet.options if packet.v4 else 40)
