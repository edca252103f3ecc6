# SPDX-License-Identifier: Apache-2.0
"""Virtual servers of IPVS, whoever describes them, as services.

ipvsadm, keepalived and the kernel's own table say the same in three ways; what becomes of it is
decided here, once.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from towpath.core.imports.imported import NOWHERE, NoteKind, Place, Remark
from towpath.model.kinds import ANY_PORT, Address, Prefix
from towpath.model.kinds.durations import written
from towpath.model.service import (
    GUE_PORT,
    MAX_AFFINITY,
    MAX_FLOW_TIMEOUT,
    MAX_WEIGHT,
    Affinity,
    Backend,
    Protocol,
    Service,
    Tunnel,
    endpoint,
    tunnel_port,
)

if TYPE_CHECKING:
    from towpath.core.imports.imported import Collected
    from towpath.model.health import Health
    from towpath.model.service import Encap, Forwarding

UDP_TIMEOUT = 300
"""Seconds after which IPVS forgets a flow of UDP, unless it is told otherwise."""
DEFAULT_SCHEDULER = "wlc"


class Method(enum.StrEnum):
    """How packets get to a real server."""

    ROUTE = "direct routing"
    TUNNEL = "tunnel"
    NAT = "NAT"
    LOCAL = "this host"


_FORWARDING: dict[Method, Forwarding] = {
    Method.ROUTE: "l2",
    Method.TUNNEL: "dsr",
    Method.NAT: "snat",
}


class ServerTunnel(NamedTuple):
    """Type of a tunnel as IPVS calls it; of gue its port, and whether checksums are left to it."""

    type: str
    port: int = 0
    remote_checksum: bool = False

    @property
    def tunnel(self) -> Tunnel:
        """The same here: gue of IPVS is of variant 0."""
        encap = TUNNELS[self.type]
        return Tunnel(encap, tunnel_port(encap, self.port or None))


TUNNELS: dict[str, Encap] = {"ipip": "ipip", "gue": "gue0", "gre": "gre"}
"""Types of tunnels, and what does the same here."""
IPIP = ServerTunnel("ipip")


@dataclass(frozen=True, slots=True)
class RealServer:
    """A server that packets of a virtual server go to."""

    address: Address
    port: int
    """0: the one that the packet has."""
    method: Method = Method.ROUTE
    weight: int = 1
    tunnel: ServerTunnel = IPIP
    upper: int = 0
    """Connections above which it gets no new ones; 0: no limit."""
    lower: int = 0
    place: Place = NOWHERE


@dataclass(frozen=True, slots=True)
class VirtualServer:
    """What IPVS balances: packets for an address and a port, or with a firewall mark."""

    place: Place = NOWHERE
    protocol: str = "tcp"
    """tcp, udp or sctp."""
    vip: Address | Prefix | None = None
    """None: a firewall mark says which packets."""
    port: int = 0
    """0: any."""
    mark: int = 0
    scheduler: str = DEFAULT_SCHEDULER
    flags: frozenset[int] | None = frozenset()
    """The scheduler's, 1 to 3; None: unknown."""
    persistence: int | None = None
    """Seconds that a client's server is remembered."""
    granularity: str = ""
    """The netmask by which clients are one; empty: each address is a client."""
    engine: str = ""
    one_packet: bool = False
    reals: tuple[RealServer, ...] = ()
    name: str = ""
    """Empty: made of protocol, address and port."""
    health: Health | None = None
    remarks: tuple[Remark, ...] = ()
    """What else differs."""

    def __str__(self) -> str:
        if self.vip is None:
            return f"firewall mark {self.mark}"
        return f"{endpoint(self.vip, self.port or ANY_PORT)}/{self.protocol}"


PORT_FLAG, FALLBACK_FLAG = 2, 1
FLAGS = {
    **{f"flag-{number}": number for number in (1, 2, 3)},
    "sh-fallback": FALLBACK_FLAG,
    "mh-fallback": FALLBACK_FLAG,
    "sh-port": PORT_FLAG,
    "mh-port": PORT_FLAG,
}
"""Flags of schedulers: names of the same three bits."""

_EQUAL = ("rr", "lc")
_HASHES = ("sh", "mh")
_IN_TURN = (
    "flows are shared out by a hash of their addresses and ports, in proportion to weights, and "
    "not in turn"
)
_BY_LOAD = (
    "flows are shared out by a hash of their addresses and ports, in proportion to weights; how "
    "many connections a server has isn't looked at"
)
_CARRIED = {
    "rr": _IN_TURN,
    "wrr": _IN_TURN,
    **dict.fromkeys(("lc", "wlc", "sed", "nq", "twos"), _BY_LOAD),
}
_BY_DESTINATION = (
    "chooses by the address that a packet is for: all packets of a VIP go to one server, which "
    "suits caches and is no balancing"
)
_LEFT = {
    "dh": _BY_DESTINATION,
    "lblc": _BY_DESTINATION,
    "lblcr": _BY_DESTINATION,
    "fo": "sends everything to the server of the highest weight and the rest stand by; here all "
    "backends with a weight get flows",
    "ovf": "fills the server of the highest weight first, by its connections, which aren't counted "
    "here; all backends with a weight get flows",
}
SCHEDULERS = (*_CARRIED, *_HASHES, *_LEFT)


def carry(virtual: VirtualServer, into: Collected, udp_timeout: int = UDP_TIMEOUT) -> bool:
    """Make a service of a virtual server, or say why not. Returns whether it is one.

    ``udp_timeout``: seconds after which IPVS forgets a flow of UDP there.
    """
    if why := _why_not(virtual):
        into.leave_out(str(virtual), why, virtual.place)
        return False
    remarks = list(virtual.remarks)
    service = _service(virtual, udp_timeout, remarks)
    if not into.add(service, virtual.place, remarks):
        return False
    _tell(virtual, service, into)
    return True


def _why_not(virtual: VirtualServer) -> str:
    if virtual.vip is None:
        return (
            "packets are chosen by a firewall mark; here by address, port and protocol: write a "
            "service for each VIP and port that gets the mark"
        )
    if virtual.protocol not in set(Protocol):
        return f"protocol {virtual.protocol} is not balanced; tcp and udp are"
    if virtual.scheduler in _LEFT:
        return f"scheduler {virtual.scheduler} {_LEFT[virtual.scheduler]}"
    if virtual.scheduler not in SCHEDULERS:
        known = ", ".join(SCHEDULERS)
        return f"scheduler {virtual.scheduler!r} is not known; known: {known}"
    return _why_not_forwarded(virtual)


def _why_not_forwarded(virtual: VirtualServer) -> str:
    methods = list(dict.fromkeys(each.method for each in virtual.reals))
    if Method.LOCAL in methods:
        return "a real server is this host itself; here backends are other hosts"
    if len(methods) > 1:
        return f"servers are reached by {' and '.join(methods)}; a service has one forwarding"
    if methods == [Method.TUNNEL]:
        return _why_not_wrapped({each.tunnel for each in virtual.reals})
    if methods == [Method.NAT]:
        return _why_not_translated(virtual)
    return ""


def _why_not_wrapped(tunnels: set[ServerTunnel]) -> str:
    if len(tunnels) > 1:
        types = sorted({each.type for each in tunnels})
        return f"tunnels of {' and '.join(types)} or to several ports; a service has one kind"
    if unknown := {each.type for each in tunnels} - TUNNELS.keys():
        return f"tunnels {', '.join(unknown)}; there are: {', '.join(TUNNELS)}"
    if any(each.remote_checksum for each in tunnels):
        return "tunnels leave checksums to the other end (remcsum); here packets keep theirs"
    return ""


def _why_not_translated(virtual: VirtualServer) -> str:
    ((address, times),) = Counter(each.address for each in virtual.reals).most_common(1)
    if times > 1:
        return f"{address} is there with {times} ports; a backend is an address and has one port"
    other = next((each for each in virtual.reals if each.port not in {0, virtual.port}), None)
    if virtual.port == 0 and other:
        return f"all ports go to port {other.port} of a server; a service for any port keeps them"
    return ""


def _service(virtual: VirtualServer, udp_timeout: int, remarks: list[Remark]) -> Service:
    forwarding = _forwarding(virtual)
    tunnel = virtual.reals[0].tunnel.tunnel if forwarding == "dsr" and virtual.reals else Tunnel()
    udp = virtual.protocol == Protocol.UDP
    vip = virtual.vip
    if vip is None:  # `_why_not` has seen to that
        raise ValueError(virtual)
    return Service(
        name=virtual.name or f"{virtual.protocol}-{vip}-{virtual.port or 'any'}",
        vip=vip,
        port=virtual.port or ANY_PORT,
        protocol=Protocol(virtual.protocol),
        backends=_backends(virtual, forwarding, remarks),
        forwarding=forwarding,
        encap=tunnel.encap,
        encap_port=None if tunnel.port == GUE_PORT else tunnel.port,
        flow_table=not (virtual.one_packet and udp),
        flow_timeout=_flow_timeout(forwarding, udp_timeout, remarks) if udp else None,
        affinity=_affinity(virtual, remarks),
        health=virtual.health,
    )


def _forwarding(virtual: VirtualServer) -> Forwarding:
    return _FORWARDING[virtual.reals[0].method] if virtual.reals else "dsr"


def _flow_timeout(forwarding: Forwarding, seconds: int, remarks: list[Remark]) -> int | None:
    """None where that is what flows of UDP have anyway."""
    if seconds == UDP_TIMEOUT and forwarding != "snat":
        return None
    if seconds > MAX_FLOW_TIMEOUT:
        why = f"a flow is remembered for {written(MAX_FLOW_TIMEOUT)} at most"
        remarks.append(Remark(f"UDP timeout of {seconds} s", why))
    return min(seconds, MAX_FLOW_TIMEOUT)


def _backends(
    virtual: VirtualServer, forwarding: Forwarding, remarks: list[Remark]
) -> tuple[Backend, ...]:
    weights = weights_of(
        [each.weight for each in virtual.reals],
        equal=virtual.scheduler if virtual.scheduler in _EQUAL else "",
        remarks=remarks,
        place=virtual.place,
    )
    backends = []
    for real, weight in zip(virtual.reals, weights, strict=True):
        own = None if real.port in {0, virtual.port} else real.port
        if own is not None and forwarding != "snat":
            why = f"{real.method} doesn't change ports: packets keep that of the service"
            remarks.append(Remark(f"port {own} of {real.address}", why, real.place))
            own = None
        if real.upper or real.lower:
            remarks.append(_threshold(real))
        backends.append(Backend(real.address, weight=weight, port=own))
    return tuple(backends)


def _threshold(real: RealServer) -> Remark:
    limits = [f"upper {real.upper}"] * bool(real.upper) + [f"lower {real.lower}"] * bool(real.lower)
    what = f"thresholds of {real.address} ({', '.join(limits)})"
    why = "connections aren't limited; let the server refuse them, or lower its weight"
    return Remark(what, why, real.place)


def weights_of(
    weights: list[int], *, equal: str = "", remarks: list[Remark], place: Place
) -> list[int]:
    """Return weights that a backend can have, in the same proportion as nearly as can be.

    ``equal``: the name of a scheduler to which a weight is nothing but 0 or not.
    """
    if equal and len({each for each in weights if each}) > 1:
        why = f"don't count with scheduler {equal}: they are 1 here, or 0"
        remarks.append(Remark(f"weights {', '.join(map(str, weights))}", why, place))
    if equal:
        return [min(each, 1) for each in weights]
    most = max(weights, default=0)
    if most <= MAX_WEIGHT:
        return weights
    common = math.gcd(*weights)
    if most // common <= MAX_WEIGHT:
        return [each // common for each in weights]
    why = f"{MAX_WEIGHT} is the most: all are smaller in proportion, and none becomes 0"
    remarks.append(Remark(f"weight {most}", why, place))
    return [max(each * MAX_WEIGHT // most, 1) if each else 0 for each in weights]


def _affinity(virtual: VirtualServer, remarks: list[Remark]) -> Affinity | None:
    if virtual.engine:
        why = "a server is chosen by the client's address and not by what its packets hold"
        remarks.append(Remark(f"persistence engine {virtual.engine}", why, virtual.place))
    if virtual.persistence is None:
        return Affinity() if _by_client(virtual) else None
    if virtual.granularity:
        what = f"persistence by network ({virtual.granularity})"
        why = "each address is a client of its own, so those of one network may get other servers"
        remarks.append(Remark(what, why, virtual.place))
    if virtual.persistence > MAX_AFFINITY:
        what = f"persistence of {virtual.persistence} s"
        why = f"a client is remembered for {written(MAX_AFFINITY)} at most"
        remarks.append(Remark(what, why, virtual.place))
    return Affinity(min(max(virtual.persistence, 1), MAX_AFFINITY))


def _by_client(virtual: VirtualServer) -> bool:
    """Whether the scheduler hashes the client's address without its port."""
    return virtual.scheduler in _HASHES and PORT_FLAG not in (virtual.flags or ())


# ---- What holds for many services, told once -----------------------------------------------------


def _tell(virtual: VirtualServer, service: Service, into: Collected) -> None:
    if virtual.scheduler in _CARRIED:
        why = _CARRIED[virtual.scheduler]
        into.once(NoteKind.DIFFERS, f"scheduler {virtual.scheduler}", why, virtual.place)
    else:
        _tell_hash(virtual, into)
    if virtual.persistence is not None:
        why = (
            "a new client's server is the one that its address hashes to, and the time counts from "
            "the beginning of its last connection, not from the end"
        )
        into.once(NoteKind.DIFFERS, "persistence", why, virtual.place)
    if virtual.one_packet:
        why = "flows aren't remembered, and their packets still go to one backend, by their hash"
        into.once(NoteKind.DIFFERS, "one-packet scheduling", why, virtual.place)
    if service.forwarding == "snat":
        _tell_nat(service, virtual.place, into)


def _tell_hash(virtual: VirtualServer, into: Collected) -> None:
    name, place = virtual.scheduler, virtual.place
    if _by_client(virtual) and virtual.persistence is None:
        unknown = "" if virtual.flags is not None else f" (if {name}-port isn't set)"
        why = (
            f"hashes the client's address{unknown}: affinity, which also remembers a client's "
            f"backend for {written(Affinity().timeout)} when backends come and go"
        )
        into.once(NoteKind.DIFFERS, f"scheduler {name}", why, place)
    if FALLBACK_FLAG not in (virtual.flags or ()):
        why = "a client whose server is down or of weight 0 isn't refused, but gets another"
        into.once(NoteKind.DIFFERS, f"scheduler {name} without {name}-fallback", why, place)


def _tell_nat(service: Service, place: Place, into: Collected) -> None:
    why = (
        "backends see an address of the load balancer's instead of the client's, and answer that: "
        "they needn't have their route back through it"
    )
    into.once(NoteKind.DIFFERS, "NAT", why, place)
    family = f"ipv{service.vip.version}"
    example = "192.0.2.1" if service.vip.version == 4 else '"2001:db8::1"'  # noqa: PLR2004 - IPv4
    why = (
        "services with forwarding snat need addresses of this load balancer's own, such as "
        f"snat: {{{family}: [{example}]}}"
    )
    into.once(NoteKind.NEEDS, f"snat.{family}", why, place)
