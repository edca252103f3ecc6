# SPDX-License-Identifier: Apache-2.0
"""``towpath trace "SRC:PORT -> DST:PORT PROTO"``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from towpath.cli.command import Manual
from towpath.cli.output import Format, emit, output_option, print_table, socket_option

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from towpath.api.documents import Trace

EXAMPLES = {
    'towpath trace "198.51.100.7:40000 -> 203.0.113.10:80 tcp"': "Which backend, and why.",
    'towpath trace "[2001:db8::7]:40000 -> [2001:db8:ff::10]:53 udp"': "IPv6 in brackets.",
    'towpath trace "198.51.100.7:40000 -> 203.0.113.10:80 tcp size 1500"': (
        "Whether packets of that size fit."
    ),
    'towpath trace "198.51.100.7:40000 -> 203.0.113.10:80 tcp syn"': (
        "Where a new connection from that port goes."
    ),
    'towpath trace "198.51.100.7:40000 -> 203.0.113.10:80 tcp error"': (
        "Who is told of an ICMP error about the flow."
    ),
    'towpath trace "198.51.100.7:40000 -> 203.0.113.10:443 udp quic 0a00110f3c5e2b77"': (
        "Where a QUIC packet with that connection id goes."
    ),
    'towpath trace "198.51.100.7:40000 -> 203.0.113.10:80" -o json | jq -r .backend': (
        "Just the backend."
    ),
}

# What each verdict of the program means, for people.
VERDICTS = {
    "tx": "sent out of the device it came in on",
    "redirect": "sent out of another device",
    "handoff": "handed to the kernel, which sends it",
    "pass_not_ip": "passed to the kernel untouched: not IP",
    "pass_no_vip": "passed to the kernel untouched: no service has that address and port",
    "pass_protocol": "passed to the kernel untouched: neither TCP nor UDP, nor ICMP about a flow",
    "pass_fragment": "passed to the kernel untouched: a fragment, not of a service's packet",
    "pass_malformed": "passed to the kernel untouched: its headers make no sense",
    "pass_qinq": "passed to the kernel untouched: behind an 802.1ad tag, or two tags",
    "local": "passed to the kernel, which delivers it: the backend is on this node",
    "pass_tracked": "passed to the kernel untouched: it translates this flow, by another's rules",
    "drop_no_backend": "dropped: the service has no backend that takes new flows",
    "drop_mtu": "dropped: larger than the egress MTU, outer header included; nobody is told",
    "drop_no_route": "dropped: no route there, or it is an address of this node",
    "drop_blackhole": "dropped: the route there is blackhole",
    "drop_unreachable": "dropped: the route there is unreachable",
    "drop_prohibited": "dropped: the route there is prohibit",
    "drop_no_forwarding": "dropped: forwarding is off on the device it came in on",
    "drop_lwt": "dropped: the route there encapsulates, which only the kernel's stack can do",
    "drop_no_address": "dropped: no address to send from on the device that leads there",
    "drop_fib": "dropped: the kernel could not look up the route at all",
    "drop_headroom": "dropped: the driver leaves no room for the outer header",
    "drop_source": "dropped: the service is not for this source (allow_from)",
    "drop_martian": "dropped: from an address that is no host's, which nothing can be answered to",
    "drop_not_on_link": "dropped: the backend is behind a gateway, where forwarding l2 can't go",
    "drop_nat_ports": "dropped: no port of snat.ports is left for a new flow",
    "drop_nat_rate": "dropped: more new flows in a moment than are translated",
    "drop_nat_moving": "dropped: its flow is just being moved, to other tables or to the kernel",
    "drop_ttl": "dropped: its TTL or hop limit doesn't allow another hop",
    "drop_fragment": "dropped: a fragment whose first one isn't known, or its translation is gone",
    "drop_mtu_quiet": "dropped: larger than the egress MTU, and enough senders have been told",
    "drop_no_flow": "dropped: a reset of a connection that isn't translated",
    "drop_unwrap_malformed": "dropped: in a tunnel to this node, and its headers make no sense",
    "drop_unwrap_ecn": "dropped: its tunnel met congestion, and what is within can't be told (ECN)",
    "tx_too_big": "answered: larger than the egress MTU, the sender is told what fits",
    "tx_echo": "answered: an echo request to a VIP",
}


LOCAL = "local"
# What a connection id has said.
QUIC = {
    "named": "it names the backend",
    "initial": "none that the server has chosen: the client's first packets",
    "unknown": "it names nobody: no backend has the server id, or it is of another form",
    "down": "it names a backend that is down, or has just left",
}


@click.command(cls=Manual, examples=EXAMPLES)
@click.argument("flow", metavar="'SRC:PORT -> DST:PORT PROTO'")
@click.option("--device", help="Device the packet comes in on; the agent's first unless given.")
@socket_option
@output_option
def trace(flow: str, device: str | None, socket_path: Path, form: Format) -> None:
    """Ask the loaded program where a flow's next packet goes, and why.

    The program that balances runs on a packet built from the flow; it changes no
    state and sends nothing. PROTO is tcp unless given. Behind it may stand "size
    BYTES", of the IP packet; "syn" for a segment that asks for a connection, "rst"
    for one that resets it; "error" for an ICMP error about the flow; "fragment" for
    the first fragment of a packet; or "quic ID" for a packet of QUIC with a short header
    and that connection id.
    """
    from towpath.api.client import Client
    from towpath.api.codec import plain
    from towpath.model import TracedPacket

    try:
        parsed = TracedPacket.parse(flow)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="flow") from error
    with Client(socket_path) as client:
        found = client.trace(parsed, device=device)
    emit(plain(found), form, lambda: print_table(("step", "decision"), steps(found)))


def steps(trace: Trace) -> Iterator[tuple[str, str]]:
    """The decisions in the order they were taken, in words."""
    yield "packet", f"{trace.flow}, comes in on {trace.device}"
    if trace.service is None:
        yield "service", "none: the destination is no VIP"
    else:
        service = trace.service
        yield "service", f"{service.name}: {service.vip} port {service.port}/{service.protocol}"
    if trace.quic is not None:
        yield "connection id", QUIC[trace.quic]
    if trace.flow_hit is not None and trace.quic != "named":
        yield "flow table", _flow_table(trace)
    if trace.client_hit is not None:
        yield "affinity", _affinity(trace)
    if trace.route is not None:
        yield "route", f"from {_listed(trace.route.sources)} to {_listed(trace.route.backends)}"
    if trace.slot is not None:
        yield "Maglev", f"hash {trace.hash:#010x}, slot {trace.slot} of {trace.table_size}"
    if trace.backend is not None:
        yield "backend", str(trace.backend)
        yield _forwarding(trace)
        if trace.verdict != LOCAL:
            yield "next hop", _next_hop(trace)
    if trace.egress:
        yield "leaves by", _egress(trace)
    why = f": {trace.handoff}" if trace.handoff else ""
    yield "verdict", f"{trace.verdict}: {VERDICTS.get(trace.verdict, 'see bpf/abi/lb.h')}{why}"


def _listed(of: Iterable[object]) -> str:
    return ", ".join(map(str, of))


def _flow_table(trace: Trace) -> str:
    if trace.flow_hit:
        return "hit: the flow keeps the backend it has"
    return "no hit: a new flow, or one that has ended or been forgotten"


def _affinity(trace: Trace) -> str:
    if trace.client_hit:
        return "hit: the client keeps the backend it has"
    return "no hit: the client's address alone is hashed"


def _forwarding(trace: Trace) -> tuple[str, str]:
    if trace.verdict == LOCAL:
        return "forwarding", _delivery(trace)
    if trace.forwarding == "snat":
        return "translation", _translation(trace)
    if trace.encapsulation is None:
        return "forwarding", "l2: the packet as it came, to the backend's MAC address"
    return "encapsulation", f"{trace.encapsulation}, {trace.outer_source} -> {trace.backend}"


def _delivery(trace: Trace) -> str:
    if trace.forwarding != "snat":
        return "on this node: the packet as it came"
    end = f"{trace.backend} port {trace.destination_port}"
    return f"on this node: -> {end}, from the client's own address"


def _translation(trace: Trace) -> str:
    port = f"port {trace.source_port}" if trace.source_port else "a port that is yet to be chosen"
    end = f"{trace.backend} port {trace.destination_port}"
    return f"snat, {trace.outer_source} {port} -> {end}"


def _next_hop(trace: Trace) -> str:
    mac = f", {trace.next_hop_mac}" if trace.next_hop_mac else ""
    return f"{trace.fib_result or 'not looked up'}{mac}"


def _egress(trace: Trace) -> str:
    parts = [trace.egress or "?"]
    if trace.vlan:
        parts.append(f"VLAN {trace.vlan}")
    if trace.source_mac:
        parts.append(f"from {trace.source_mac}")
    if trace.mtu:
        parts.append(f"MTU {trace.mtu}")
    return ", ".join(parts)
