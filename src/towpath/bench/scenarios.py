# SPDX-License-Identifier: Apache-2.0
"""What the load balancer is timed with.

Names and packets are those of the Linux kernel's own ``xdp-lb`` benchmark, so that figures can
be compared: "lru" is the flow table, "ch" consistent hashing without it, "diverse" 4096 flows in
turn, "v4v6" IPv4 in an IPv6 tunnel; "l2", "affinity", "allow-from" and "quic" are our own.
Addresses are documentation prefixes but for the clients', of whom there are millions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import Any

from towpath.bench.frames import GATEWAY, PAYLOAD, SOURCE_WORD, TCP_ACK, TCP_SYN, frame
from towpath.bench.wrapper import Stimulus
from towpath.model.flow import FlowTuple
from towpath.model.quic import Quic
from towpath.model.service import Affinity, Backend, Service

BACKENDS = 100
ALLOWED = 100
"""Prefixes of the service that isn't for everyone."""
_DIVERSE = 1 << 12
_ENDLESS = 1 << 24  # flows that come again after so many: no flow table is that large

_V4 = tuple(Backend(ip_address(f"198.51.100.{n}")) for n in range(1, BACKENDS + 1))
_V6 = tuple(Backend(ip_address(f"2001:db8:2::{n:x}")) for n in range(1, BACKENDS + 1))


class Outcome(Enum):
    """What becomes of a scenario's packets."""

    KNOWN = "the flow table has their flow"
    HASHED = "their backend is found by consistent hashing"
    PASSED = "they go to the kernel as they came"


@dataclass(frozen=True, slots=True)
class Scenario:
    """Packets of one kind. ``flows``, a power of two, differ in their source addresses."""

    name: str
    about: str
    flow: FlowTuple
    outcome: Outcome = Outcome.KNOWN
    flows: int = 1
    tcp_flags: int = TCP_ACK
    snat: bool = False
    """Whether the service is forwarded by source NAT."""
    reply: bool = False
    """Whether it is the backend's answers that are timed."""
    anew: bool = False
    """Whether every run begins with no translations."""
    full: bool = False
    """Whether the table of translations is full of such flows before the first run."""
    data: bytes = PAYLOAD

    def stimulus(self, ifindex: int) -> Stimulus:
        """The packets, as they come in on a device."""
        return Stimulus(
            frame(self.flow, self.tcp_flags, data=self.data),
            SOURCE_WORD[self.flow.source.version],
            self.flows - 1,
            ifindex,
            self.snat,
        )


_TCP4 = FlowTuple.parse("10.10.2.1:12345 -> 203.0.113.10:80 tcp")
_CH4 = FlowTuple.parse("10.10.2.2:54321 -> 203.0.113.11:80 tcp")
_UDP4 = FlowTuple.parse("10.10.3.1:11111 -> 203.0.113.10:443 udp")
_4IN6 = FlowTuple.parse("10.10.2.4:12347 -> 203.0.113.12:80 tcp")
_SYN4 = FlowTuple.parse("10.10.8.2:60001 -> 203.0.113.10:80 tcp")
_NONE4 = FlowTuple.parse("10.10.4.1:33333 -> 203.0.113.99:80 tcp")
_TCP6 = FlowTuple.parse("[2001:db8:4::1]:12345 -> [2001:db8:3::10]:80 tcp")
_CH6 = FlowTuple.parse("[2001:db8:4::2]:54321 -> [2001:db8:3::11]:80 tcp")
_UDP6 = FlowTuple.parse("[2001:db8:4::3]:22222 -> [2001:db8:3::10]:443 udp")
_SNAT4 = FlowTuple.parse("10.10.9.1:12345 -> 203.0.113.20:80 tcp")
_NONE6 = FlowTuple.parse("[2001:db8:4::4]:33333 -> [2001:db8:3::99]:80 tcp")


_L2 = FlowTuple.parse("10.10.2.5:12345 -> 203.0.113.13:80 tcp")
_STICKY = FlowTuple.parse("10.10.2.6:12345 -> 203.0.113.14:80 tcp")
_FOR_SOME = FlowTuple.parse("10.10.2.7:12345 -> 203.0.113.15:80 tcp")

_GUE = FlowTuple.parse("10.10.2.8:12345 -> 203.0.113.16:80 tcp")
_GUE6 = FlowTuple.parse("[2001:db8:4::8]:12345 -> [2001:db8:3::16]:80 tcp")
_GRE = FlowTuple.parse("10.10.2.9:12345 -> 203.0.113.17:80 tcp")

_QUIC4 = FlowTuple.parse("10.10.3.3:11111 -> 203.0.113.18:443 udp")
_QUIC6 = FlowTuple.parse("[2001:db8:4::9]:22222 -> [2001:db8:3::18]:443 udp")
# A short header and a connection id that names the backend of server id 7.
_BY_ID = b"\x40\x00\x00\x07nonce678...."

_ALLOWED = (
    ip_network("10.10.0.0/16"),
    *(ip_network(f"172.{16 + n // 10}.{n}.0/24") for n in range(ALLOWED - 1)),
)


def _named(backends: tuple[Backend, ...]) -> tuple[Backend, ...]:
    return tuple(replace(each, server_id=(number,)) for number, each in enumerate(backends))


def _service(name: str, flow: FlowTuple, backends: tuple[Backend, ...], **options: Any) -> Service:
    return Service(name, *flow.key[:3], backends, **options)


SERVICES = (
    _service("tcp4", _TCP4, _V4),
    _service("ch4", _CH4, _V4, flow_table=False),
    _service("udp4", _UDP4, _V4),
    _service("tcp4in6", _4IN6, _V6),
    _service("tcp6", _TCP6, _V6),
    _service("ch6", _CH6, _V6, flow_table=False),
    _service("udp6", _UDP6, _V6),
    _service("l2", _L2, (Backend(GATEWAY),), forwarding="l2"),
    _service("sticky", _STICKY, _V4, flow_table=False, affinity=Affinity()),
    _service("some", _FOR_SOME, _V4, allow_from=_ALLOWED),
    _service("gue", _GUE, _V4, encap="gue"),
    _service("gue6", _GUE6, _V6, encap="gue"),
    _service("gre", _GRE, _V4, encap="gre"),
    _service("quic4", _QUIC4, _named(_V4), quic=Quic(length=2)),
    _service("quic6", _QUIC6, _named(_V6), quic=Quic(length=2)),
    replace(_service("snat4", _SNAT4, _V4), forwarding="snat"),
)
"""Every scenario's service, all of them in place at once."""

_LRU4 = Scenario("tcp-v4-lru-hit", "IPv4 TCP in IPv4, flow known", _TCP4)
_HASH4 = Scenario("tcp-v4-ch", "IPv4 TCP in IPv4, hashed", _CH4, Outcome.HASHED)
_LRU6 = Scenario("tcp-v6-lru-hit", "IPv6 TCP in IPv6, flow known", _TCP6)
_HASH6 = Scenario("tcp-v6-ch", "IPv6 TCP in IPv6, hashed", _CH6, Outcome.HASHED)
_LRU_UDP4 = Scenario("udp-v4-lru-hit", "IPv4 UDP in IPv4, flow known", _UDP4)
_LRU_UDP6 = Scenario("udp-v6-lru-hit", "IPv6 UDP in IPv6, flow known", _UDP6)


def _diverse(base: Scenario, name: str) -> Scenario:
    return replace(base, name=name, about=f"{base.about}, 4096 flows", flows=_DIVERSE)


SCENARIOS = (
    _LRU4,
    _HASH4,
    _LRU6,
    _HASH6,
    _LRU_UDP4,
    _LRU_UDP6,
    Scenario("tcp-v4v6-lru-hit", "IPv4 TCP in IPv6, flow known", _4IN6),
    _diverse(_LRU4, "tcp-v4-lru-diverse"),
    _diverse(_HASH4, "tcp-v4-ch-diverse"),
    _diverse(_LRU6, "tcp-v6-lru-diverse"),
    _diverse(_HASH6, "tcp-v6-ch-diverse"),
    _diverse(_LRU_UDP4, "udp-v4-lru-diverse"),
    Scenario(
        "tcp-v4-lru-miss", "IPv4 TCP in IPv4, each of a new flow", _TCP4, Outcome.HASHED, _ENDLESS
    ),
    Scenario("tcp-v4-syn", "IPv4 TCP in IPv4, the same SYN again", _SYN4, tcp_flags=TCP_SYN),
    Scenario("snat-v4-hit", "IPv4 TCP, translated, flow known", _SNAT4, snat=True),
    Scenario(
        "snat-v4-reply",
        "IPv4 TCP, a backend's answer, translated back",
        _SNAT4,
        snat=True,
        reply=True,
    ),
    Scenario(
        "snat-v4-new",
        "IPv4 TCP, translated, each of a new flow",
        _SNAT4,
        Outcome.HASHED,
        _ENDLESS,
        TCP_SYN,
        snat=True,
        anew=True,
    ),
    Scenario(
        "snat-v4-flood",
        "the same, each in the place of an unconfirmed one",
        _SNAT4,
        Outcome.HASHED,
        _ENDLESS,
        TCP_SYN,
        snat=True,
        full=True,
    ),
    Scenario("tcp-v4-l2-lru-hit", "IPv4 TCP in a new frame, flow known", _L2),
    Scenario("tcp-v4-gue-lru-hit", "IPv4 TCP in UDP (GUE, FOU) in IPv4, flow known", _GUE),
    Scenario("tcp-v6-gue-lru-hit", "IPv6 TCP in UDP (GUE, FOU) in IPv6, flow known", _GUE6),
    Scenario("tcp-v4-gre-lru-hit", "IPv4 TCP in GRE in IPv4, flow known", _GRE),
    Scenario("udp-v4-quic-id", "QUIC over IPv4 in IPv4, by its connection id", _QUIC4, data=_BY_ID),
    Scenario("udp-v6-quic-id", "QUIC over IPv6 in IPv6, by its connection id", _QUIC6, data=_BY_ID),
    Scenario(
        "tcp-v4-affinity", "IPv4 TCP in IPv4, by its client, who is known", _STICKY, Outcome.HASHED
    ),
    Scenario(
        "tcp-v4-allow-from", f"IPv4 TCP in IPv4, flow known, {ALLOWED} prefixes allowed", _FOR_SOME
    ),
    Scenario("pass-v4-no-vip", "IPv4 TCP to no VIP, passed", _NONE4, Outcome.PASSED),
    Scenario("pass-v6-no-vip", "IPv6 TCP to no VIP, passed", _NONE6, Outcome.PASSED),
)
