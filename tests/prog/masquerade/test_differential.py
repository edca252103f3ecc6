# SPDX-License-Identifier: Apache-2.0
"""Any packets, in any order, beside an oracle in plain Python.

A few tens of thousands each time; TOWPATH_PACKETS=1000000 has it be a million.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from tests.guests import examples
from tests.prog.masquerade.harness import (
    GATEWAY_MAC,
    LAN,
    LAN_MAC,
    POD_MAC,
    REDIRECT,
    SECOND,
    SECTION,
    SHOT,
    UNSPEC,
    WAN,
    WAN6,
    Rig,
    ip_batch,
    mac,
)
from tests.prog.masquerade.oracle_flows import (
    ACK,
    FIN,
    ICMP,
    ICMP6,
    RST,
    SYN,
    TCP,
    UDP,
    Expected,
    Oracle,
    Packet,
    mostly,
)

from towpath.datapath.masquerade import program
from towpath.datapath.masquerade.tables import read_counts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

PACKETS = int(os.environ.get("TOWPATH_PACKETS") or examples(20_000, 2500))
CHECKED = 5000  # packets after which counters are compared
PODS4, PODS6 = [f"10.244.0.{n}" for n in range(2, 30)], [f"fd00:1::{n:x}" for n in range(2, 30)]
FAR = [f"203.0.113.{n}" for n in range(1, 40)]
NEAR, HINTED = ["10.0.0.100"], [f"10.8.0.{n}" for n in range(1, 9)]
FAR6 = [f"2001:db8:9::{n:x}" for n in range(1, 40)]
ROUTES = (("10.0.0.0/24", LAN), ("10.8.0.0/16", SECOND), ("0.0.0.0/0", WAN), ("::/0", WAN6))
FLAGS = (SYN, ACK, ACK, ACK, ACK | FIN, RST, SYN | ACK)
_ETHERTYPES = {True: b"\x08\0", False: b"\x86\xdd"}
_SKB, _INGRESS = 192, 36


@pytest.fixture
def lasting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Flows that outlive the test, and neighbours that are known."""
    request.getfixturevalue("network")
    for name in ("TCP_NEW", "TCP_CLOSING", "UDP_NEW"):
        monkeypatch.setattr(program, name, 14000)
    ip_batch(
        "\n".join(
            f"neigh replace {pod} lladdr {POD_MAC} nud permanent dev cni0"
            for pod in (*PODS4, *PODS6)
        )
    )
    made = Rig(replace(SECTION, flows=1 << 20, tcp_timeout=14400, udp_timeout=14400))
    yield made
    made.close()


class Sides:
    """Makes packets, and runs the programs on them."""

    def __init__(self, rig: Rig, chance: Random) -> None:
        self.rig = rig
        self.chance = chance
        self.oracle = Oracle(
            ("10.244.0.0/24", "fd00:1::/64"),
            ("10.9.9.0/24", "2001:db8:99::/48"),
            ROUTES,
            61000,
            65535,
        )
        self.sent: list[Packet] = []
        self.macs = {name: bytes.fromhex(mac(name).replace(":", "")) for name in rig.index}
        self.contexts = {}
        for name, index in rig.index.items():
            context = bytearray(_SKB)
            struct.pack_into("=II", context, _INGRESS, 0, index)
            self.contexts[name] = bytes(context)

    # ---- Packets ---------------------------------------------------------------------------------

    def a_pods(self) -> Packet:
        """From a pod, to anywhere."""
        chance = self.chance
        v4 = chance.random() < 0.6
        source = chance.choice(PODS4 if v4 else PODS6)
        remote = chance.choice(FAR + NEAR + HINTED if v4 else FAR6)
        if chance.random() < 0.02:
            others = ["10.9.9.1", "10.244.0.77"] if v4 else ["2001:db8:99::1", "fd00:1::77"]
            remote = chance.choice(others)
        if chance.random() < 0.02:
            source = "10.245.0.1" if v4 else "fd00:2::1"
        protocol = chance.choice((TCP, TCP, UDP, ICMP if v4 else ICMP6))
        echo = protocol in (ICMP, ICMP6)
        packet = Packet(
            ip_address(source),
            ip_address(remote),
            protocol,
            chance.randrange(1, 40),
            0 if echo else chance.choice((53, 80, 443)),
            asks=not echo or chance.random() < 0.97,
        )
        if not packet.asks:
            packet = replace(packet, sport=0, dport=packet.sport)
        return self.dressed(packet)

    def an_answer(self) -> Packet:
        """From outside: to a flow that there is, most often."""
        chance = self.chance
        if self.sent and chance.random() < 0.9:
            to = chance.choice(self.sent)
            packet = Packet(to.destination, to.source, to.protocol, to.dport, to.sport)
            if to.protocol in (ICMP, ICMP6):
                packet = replace(packet, asks=chance.random() < 0.05)
                if packet.asks:
                    packet = replace(packet, sport=packet.dport, dport=0)
        else:
            protocol = chance.choice((TCP, UDP))
            port = chance.randrange(60000, 65536)
            packet = Packet(ip_address(chance.choice(FAR)), ip_address(WAN), protocol, 80, port)
        return self.dressed(packet)

    def dressed(self, packet: Packet) -> Packet:
        """With what doesn't tell flows apart."""
        chance = self.chance
        return replace(
            packet,
            hops=mostly(chance, chance.randrange(2, 256), 1),
            tos=mostly(chance, 0, 4, 0x10, 0xFF),
            ident=chance.randrange(1 << 16) if packet.v4 else 0,
            flags=chance.choice(FLAGS) if packet.protocol == TCP else 0,
            options=mostly(chance, 0, 1, 3) if packet.v4 else 0,
            payload=chance.randbytes(chance.randrange(40)),
            wrong=mostly(chance, 0, chance.randrange(1, 1 << 15)),
        )

    # ---- Runs ------------------------------------------------------------------------------------

    def send(self) -> None:
        """Have a pod send something."""
        packet = self.a_pods()
        expected = self.oracle.out(packet)
        got = self.run("masq_from_pod", packet, expected, "cni0", POD_MAC)
        if expected.packet is None or got is None:
            return
        if expected.fresh:
            port = self.port(got, packet)
            self.oracle.learn(packet, port)
            expected.packet = replace(expected.packet, sport=port)
            self.oracle.counts["from_pod.bound"] += 1
        near = packet.destination in map(ip_address, [*NEAR, *HINTED])
        leaves, to = ("lan", LAN_MAC) if near else ("wan", GATEWAY_MAC)
        self.compare(got, expected.packet, to, leaves)
        if packet.asks:
            self.sent.append(expected.packet)

    def receive(self) -> None:
        """Have something come from outside."""
        packet = self.an_answer()
        device = "lan" if packet.destination in map(ip_address, (LAN, SECOND)) else "wan"
        expected = self.oracle.answer(packet)
        got = self.run("masq_from_net", packet, expected, device, GATEWAY_MAC)
        if expected.packet is not None and got is not None:
            self.compare(got, expected.packet, POD_MAC, "cni0")

    def run(
        self, name: str, packet: Packet, expected: Expected, device: str, source: str
    ) -> bytes | None:
        """Run a program; the packet, if it was to be redirected."""
        frame = self.macs[device] + bytes.fromhex(source.replace(":", ""))
        frame += _ETHERTYPES[packet.v4] + packet.packed()
        done = self.rig.program.programs[name].test_run(frame, ctx=self.contexts[device])
        self.oracle.counts[f"{name.removeprefix('masq_')}.{expected.counter}"] += 1
        if expected.packet is not None:
            assert done.retval == REDIRECT, (packet, expected)
            return done.data
        assert done.retval == (SHOT if "drop" in expected.counter else UNSPEC), (packet, expected)
        assert done.data == frame, (packet, expected)
        return None

    def port(self, got: bytes, packet: Packet) -> int:
        """The port that a new flow has got."""
        at = 14 + (20 + 4 * packet.options if packet.v4 else 40)
        if packet.protocol in (ICMP, ICMP6):
            at += 4
        return int(struct.unpack_from("!H", got, at)[0])

    def compare(self, got: bytes, wanted: Packet, to: str, device: str) -> None:
        """Every byte."""
        frame = bytes.fromhex(to.replace(":", "")) + self.macs[device]
        assert got == frame + _ETHERTYPES[wanted.v4] + wanted.packed(), wanted

    def compare_counts(self) -> None:
        """Every counter."""
        counted = Counter(
            {
                f"{name}.{verdict}": number
                for name, verdicts in read_counts(self.rig.program).items()
                for verdict, number in verdicts.items()
                if number and verdict != "bytes"
            }
        )
        assert counted == self.oracle.counts


@pytest.mark.parametrize("alike", [0, 15], ids=["by_flow", "by_destination"])
def test_any_packets_are_as_the_oracle_has_them(lasting: Rig, alike: int) -> None:
    """Bytes, actions and counters, of a state that all of them have made.

    ``alike``: what each CPU keeps ways by.
    """
    lasting.alike(alike)
    seed = int(os.environ.get("TOWPATH_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)  # noqa: S311
    sides = Sides(lasting, chance)
    assert socket.if_nameindex()
    try:
        for number in range(PACKETS):
            if chance.random() < 0.6:
                sides.send()
            else:
                sides.receive()
            if number % CHECKED == CHECKED - 1:
                sides.compare_counts()
    except AssertionError as error:
        raise AssertionError(f"TOWPATH_SEED={seed}, packet {number}: {error}") from error
    sides.compare_counts()
    assert len(sides.oracle.flows) > PACKETS // 10
