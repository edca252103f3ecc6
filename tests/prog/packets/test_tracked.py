# SPDX-License-Identifier: Apache-2.0
"""Pods' flows that the kernel's connection tracking translates: they pass, others are balanced."""

from __future__ import annotations

import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from tests.prog.masquerade.oracle import fresh, header
from tests.prog.packets.harness import (
    BACKENDS,
    BACKENDS6,
    POD,
    POD6,
    SHOT,
    UNSPEC,
    VIP,
    VIP6,
    Rig,
    service,
)
from tests.prog.packets.harness import devices as two_devices
from tests.prog.packets.oracle import answer, ports

from towpath.datapath.snat.tracked import Tracked
from towpath.kernel.net.conntrack_flows import Ends, Rewritten
from towpath.model import Snat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scapy.packet import Packet
    from tests.prog.packets.harness import Run

TRACKED = {"from_pod.pass_tracked": 1}
BALANCED = {"from_pod.balanced": 1}
BEGUN = BALANCED | {"from_pod.begun": 1}
BOTH = pytest.mark.parametrize(
    ("version", "protocol"), [(4, "tcp"), (4, "udp"), (6, "tcp"), (6, "udp")]
)
SEEN = 1
LONG = 10**12  # ns


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """One that tracks, with services of each kind."""
    with two_devices(), Rig(tracks=True) as made:
        made.apply(
            *(service(VIP, BACKENDS, protocol=each) for each in ("tcp", "udp")),
            *(service(VIP6, BACKENDS6, protocol=each) for each in ("tcp", "udp")),
        )
        yield made


@pytest.fixture(autouse=True)
def unkept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has none of these flows: it isn't asked to keep them."""
    monkeypatch.setattr(Tracked, "_keep", lambda *_: None)


@pytest.fixture
def tracked(rig: Rig) -> Iterator[Tracked]:
    """What the kernel has: nothing."""
    made = Tracked(rig.tables, rig.contents, Snat())
    made.begin_pods(fresh=False)
    yield made
    settle(made)
    with rig.program.maps["packet_states"].mmap() as states:
        states.array["giving"] = 0


def sent(version: int, protocol: str, sport: int, flags: str = "A") -> Packet:
    """A packet of the pod's to the service."""
    ip = IP(src=POD, dst=VIP) if version == 4 else IPv6(src=POD6, dst=VIP6)
    ends = {"sport": sport, "dport": 8080}
    return fresh(ip / (TCP(flags=flags, **ends) if protocol == "tcp" else UDP(**ends)))


def listed(packet: Packet, seconds: float = 1000.0) -> Rewritten:
    """Its flow as the kernel lists it."""
    ip, transport = header(packet), ports(packet)
    source, destination = (ip_address(each).packed for each in (ip.src, ip.dst))
    sport, dport = (each.to_bytes(2, "big") for each in (transport.sport, transport.dport))
    family, protocol = (2 if ip.version == 4 else 10), (6 if TCP in packet else 17)
    original = Ends(family, protocol, source, destination, sport, dport)
    back = Ends(family, protocol, bytes(len(source)), source, dport, sport)
    until = time.monotonic_ns() + int(seconds * 10**9)
    return Rewritten(original, back, until if UDP in packet else 0)


def settle(tracked: Tracked, *found: Rewritten) -> int:
    """Have these pass and no others."""
    tracked.settle(found, tracked.known(), tracked.served())
    return tracked.conclude()


def passes(run: Run, packet: Packet) -> None:
    """As it came, to the stack, and nothing else is counted."""
    assert (run.moved, run.action) == (TRACKED, UNSPEC)
    assert bytes(run.packet) == bytes(packet)


def test_without_tracking_nothing_is_asked() -> None:
    """The programs have nothing of it."""
    with two_devices(), Rig() as made:
        made.apply(service(VIP, BACKENDS))
        made.tables.rows("settings")["tracking"][0] = 2
        assert made.out(sent(4, "tcp", 41000)).moved == BEGUN


@BOTH
def test_flows_that_are_listed_pass(
    rig: Rig, tracked: Tracked, version: int, protocol: str
) -> None:
    """As they came; all others are balanced, also while they pass."""
    packet = sent(version, protocol, 41001)
    assert settle(tracked, listed(packet)) == 1
    for _ in range(2):
        passes(rig.out(packet), packet)
    if protocol == "tcp":
        for flags in ("R", "FA", "SA"):
            more = sent(version, protocol, 41001, flags)
            passes(rig.out(more), more)
    assert rig.out(sent(version, protocol, 41002)).moved == BEGUN
    assert rig.out(sent(version, protocol, 41002)).moved == BALANCED
    assert settle(tracked) == 0
    assert not tracked.any
    assert rig.out(packet).moved == BEGUN


@BOTH
def test_what_is_not_known_is_noted_while_services_come(
    rig: Rig, tracked: Tracked, version: int, protocol: str
) -> None:
    """So what began before the list was made, and isn't in it, passes until the next one."""
    tracked.take()
    before, packet = tracked.known(), sent(version, protocol, 41003)
    passes(rig.out(packet), packet)
    syn = sent(version, "tcp", 41020 + (protocol == "udp"), "S")
    assert rig.out(syn).moved == BEGUN
    tracked.settle((), before, tracked.served())
    assert tracked.conclude() == 1
    passes(rig.out(packet), packet)
    assert rig.out(sent(version, protocol, 41005)).moved == BEGUN


@pytest.mark.parametrize("version", [4, 6])
def test_a_syn_begins_a_connection_here(rig: Rig, tracked: Tracked, version: int) -> None:
    """Whatever had its ports before; what belongs to it doesn't pass any more."""
    packet = sent(version, "tcp", 41006)
    settle(tracked, listed(packet))
    passes(rig.out(packet), packet)
    assert rig.out(sent(version, "tcp", 41006, "S")).moved == BEGUN
    assert tracked.count == 0
    assert rig.out(packet).moved == BALANCED


def test_an_error_about_an_answer_passes(rig: Rig, tracked: Tracked) -> None:
    """The kernel knows what it is about."""
    packet = sent(4, "udp", 41007)
    settle(tracked, listed(packet))
    about = answer(packet, UDP())
    error = fresh(IP(src=POD, dst=VIP) / ICMP(type=3, code=3) / about)
    assert rig.out(error).moved == {"from_pod.pass_no_flow": 1}


def test_datagrams_have_it_last(rig: Rig, tracked: Tracked) -> None:
    """What nothing was seen of here ends by the kernel's own time, and isn't kept beyond it."""
    packet = sent(4, "udp", 41008)
    flow = listed(packet, 10)
    assert settle(tracked, flow) == 1
    (until,) = tracked.known().values()
    assert not until & SEEN
    passes(rig.out(packet), packet)
    (longer,) = tracked.known().values()
    assert longer & SEEN
    assert until + 10 * 10**9 < longer
    assert settle(tracked, flow) == 1
    assert list(tracked.known().values()) == [longer]
    (key,) = tracked.known()
    tracked._enter({key: time.monotonic_ns() - 1 & ~SEEN})
    assert rig.out(packet).moved == BEGUN
    assert settle(tracked, flow._replace(until=0)) == 0


def test_those_whose_packets_others_see_are_left_to_the_kernel(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a process of the node's own: neither kept, nor ended when no packet has come here."""
    kept: list[Rewritten] = []
    monkeypatch.setattr(Tracked, "_keep", lambda _, flows: kept.extend(flows))
    monkeypatch.setattr(Tracked, "_end", lambda _, flows: kept.extend(flows))
    flow = listed(sent(4, "udp", 41009))
    assert settle(tracked, flow) == 1
    assert settle(tracked, flow) == 1
    settle(tracked, flow._replace(until=0))
    assert kept == []


@BOTH
def test_what_is_handed_back(rig: Rig, tracked: Tracked, version: int, protocol: str) -> None:
    """Nothing begins; what is known goes on until it is the kernel's, and is held meanwhile."""
    packet = sent(version, protocol, 41010)
    gone = rig.out(packet)
    assert gone.moved == BEGUN
    rig.program.give()
    assert rig.out(packet).moved == BALANCED
    other = sent(version, protocol, 41011, "S")
    passes(rig.out(other), other)
    (key,) = tracked._keys(listed(packet), tracked.served())
    tracked._enter({key: tracked._held})
    run = rig.out(packet)
    assert (run.moved, run.action) == ({"from_pod.drop_moving": 1}, SHOT)
    tracked._enter({key: 0})
    passes(rig.out(packet), packet)
    # What was answered before is the service's all the same.
    back = answer(gone.packet, TCP(flags="A") if protocol == "tcp" else UDP())
    assert rig.to_pod(back).moved == {"to_pod.restored": 1}
