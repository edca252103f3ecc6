# SPDX-License-Identifier: Apache-2.0
"""``towpath socket``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from towpath.cli.backend import AddressType
from towpath.cli.command import ManualGroup
from towpath.cli.output import Format, emit, output_option, print_table, say, socket_option

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from towpath.documents import (
        PacketFlow,
        Socket,
        SocketFlow,
        SocketFlows,
        SocketPackets,
        SocketTrace,
    )

EXAMPLES = {
    "towpath socket list": "For whom services are balanced, and what became of calls.",
    "towpath socket flows --service dns": "Which sockets talk to a service, and to which backends.",
    "towpath socket trace 192.0.2.10:80": "Where a connect() would go, and why.",
    "towpath socket trace 192.0.2.10:53/udp --cgroup /sys/fs/cgroup/app --live": (
        "Where it does go, for a process there."
    ),
}
_TARGET = re.compile(
    r"(?:\[(?P<v6>[^]]+)]|(?P<v4>[^:]+)):(?P<port>0|[1-9][0-9]*)(?:/(?P<protocol>tcp|udp))?"
)
_COLUMNS = ("protocol", "service", "address", "backend", "local", "netns", "sk")
_PACKET_COLUMNS = (
    *("protocol", "service", "address", "backend", "pod", "device", "state", "idle"),
)


@click.group("socket", cls=ManualGroup, examples=EXAMPLES)
def command() -> None:
    """Services at the sockets of processes on this node: connect() goes straight to a backend."""


@command.command("list", examples={"towpath socket list": "All of it."})
@socket_option
@output_option
def list_(socket_path: Path, form: Format) -> None:
    """Show the cgroup, who is at its hooks, and calls by hook and verdict.

    Verdicts: balanced went to a backend; restored was told the service's address instead of the
    backend's; those that begin with pass left the address as it was; refuse ended the call.

    Where packets of pods are translated (socket.packets) also their devices, and packets by program
    and verdict: from_pod sees what pods send, to_pod what they are sent.
    """
    from towpath.api.client import Client
    from towpath.api.codec import plain

    with Client(socket_path) as client:
        found = client.socket()
    emit(plain(found), form, lambda: _print(found))


def _print(found: Socket) -> None:
    whom = f"processes in {found.cgroup}" if found.cgroup else "no process: there is no cgroup"
    say(f"for {whom}")
    say(f"{'proven' if found.proven else 'not proven'}: {found.proof}")
    for each in found.excluded:
        say(f"but not in {each}")
    say(f"without a backend: {found.refuse}")
    stale = found.stale
    say(f"stale sockets: {stale.ended} ended, {stale.failed} could not be")
    rows = [
        (hook.name, each.name, str(each.id), each.cgroup, "towpath" if each.ours else "")
        for hook in found.hooks
        for each in hook.programs
    ]
    print_table(("hook", "program", "id", "cgroup", ""), rows, numbers=("id",))
    calls = [
        (hook, verdict, str(number))
        for hook, verdicts in found.counters.verdicts.items()
        for verdict, number in verdicts.items()
        if number
    ]
    print_table(("call", "verdict", "number"), calls, numbers=("number",))
    print_table(
        ("service", "backend", "connects", "datagrams"),
        list(_of_services(found)),
        numbers=("connects", "datagrams"),
    )
    if found.packets is not None:
        _print_packets(found.packets)
    for trouble in found.troubles:
        say(trouble)


def _print_packets(found: SocketPackets) -> None:
    devices = ", ".join(found.devices) or "no device: there is none of these names"
    say(f"packets of {devices}: {found.flows} of {found.capacity} flows, {found.begun} begun")
    rows = [
        (program, verdict, str(number))
        for program, verdicts in found.verdicts.items()
        for verdict, number in verdicts.items()
        if number
    ]
    print_table(("program", "verdict", "packets"), rows, numbers=("packets",))


def _of_services(found: Socket) -> Iterator[tuple[str, str, str, str]]:
    for service in found.counters.services:
        for each in service.backends:
            yield service.service, str(each.address), str(each.connects), str(each.datagrams)
        for verdict in service.verdicts["connect"]:
            calls = [service.verdicts[hook][verdict] for hook in ("connect", "sendmsg")]
            if verdict != "balanced" and any(calls):
                yield service.service, verdict, str(calls[0]), str(calls[1])


@command.command("flows", examples=EXAMPLES)
@click.option("--service", help="Only those that talk to this service.")
@click.option("--backend", type=AddressType(), help="Only those that talk to this backend.")
@click.option("--protocol", type=click.Choice(["tcp", "udp"]), help="Only these.")
@click.option(
    "--connected/--unconnected", default=None, help="Only those that have connected, or haven't."
)
@click.option("--netns", type=int, help="Only those of the network namespace with this inode.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, help="At most so many.")
@socket_option
@output_option
def flows(
    service: str | None,
    backend: IPv4Address | IPv6Address | None,
    protocol: str | None,
    connected: bool | None,
    netns: int | None,
    limit: int,
    socket_path: Path,
    form: Format,
) -> None:
    """List sockets that talk to services, those of all network namespaces.

    Also the flows of pods whose packets are translated: unless --connected, --unconnected or
    --netns are given, which are for sockets.
    """
    from towpath.api.client import Client
    from towpath.api.codec import plain

    with Client(socket_path) as client:
        found = client.socket_flows(
            service=service,
            backend=backend,
            protocol=protocol,
            connected=connected,
            netns=netns,
            limit=limit,
        )
    emit(plain(found), form, lambda: _print_flows(found))


def _print_flows(found: SocketFlows) -> None:
    print_table(_COLUMNS, [_row(each) for each in found.flows])
    if found.packets:
        print_table(_PACKET_COLUMNS, [_packet_row(each) for each in found.packets])
    if found.more:
        say("there are more: --limit shows them, other options choose among them")


def _row(each: SocketFlow) -> tuple[str, ...]:
    return (
        each.protocol if each.connected else f"{each.protocol}, unconnected",
        each.service or "-",
        _endpoint(each.vip, each.port),
        _endpoint(each.backend, each.backend_port),
        _endpoint(each.local, each.local_port),
        str(each.netns),
        f"{each.cookie:x}",
    )


def _packet_row(each: PacketFlow) -> tuple[str, ...]:
    return (
        each.protocol,
        each.service or "-",
        _endpoint(each.vip, each.port),
        _endpoint(each.backend, each.backend_port),
        _endpoint(each.client, each.client_port),
        each.device,
        each.state,
        f"{each.idle_seconds:g}",
    )


def _endpoint(address: IPv4Address | IPv6Address, port: int) -> str:
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


@command.command("trace", examples=EXAMPLES)
@click.argument("target", metavar="ADDRESS:PORT[/PROTOCOL]")
@click.option("--cgroup", help="That the process is in.")
@click.option("--netns", help="Its network namespace, as `ip netns` has it, or by a path.")
@click.option("--client", type=int, help="The cookie of its network namespace.")
@click.option("--socket", "cookie", default="0", help="The socket's cookie, as `ss -e` has it.")
@click.option(
    "--live", is_flag=True, help="Have a process there connect. Of TCP, a connection is reset."
)
@socket_option
@output_option
def trace(
    target: str,
    cgroup: str | None,
    netns: str | None,
    client: int | None,
    cookie: str,
    live: bool,
    socket_path: Path,
    form: Format,
) -> None:
    """Show where a connect(), or a datagram, would go, and why. Counts and remembers nothing.

    Which backend it is follows from the socket's cookie, or if the service has affinity from the
    network namespace's. Another socket may go elsewhere.
    """
    from towpath.api.client import Client
    from towpath.api.codec import plain

    address, port, protocol = _target(target)
    with Client(socket_path) as asked:
        found = asked.socket_trace(
            address,
            port,
            protocol,
            cgroup=cgroup,
            netns=netns,
            client=client,
            socket=_number(cookie),
            live=live,
        )
    emit(plain(found), form, lambda: _print_trace(found))


def _target(text: str) -> tuple[str, int, str]:
    found = _TARGET.fullmatch(text)
    if found is None:
        allowed = "ADDRESS:PORT, [ADDRESS]:PORT for IPv6, with /tcp or /udp behind it"
        raise click.BadParameter(f"{text!r} is no address with a port; allowed: {allowed}")
    return found["v6"] or found["v4"], int(found["port"]), found["protocol"] or "tcp"


def _number(cookie: str) -> int:
    try:
        return int(cookie, 16)
    except ValueError as error:
        what = f"{cookie!r} is no cookie; allowed: a hexadecimal number, as `ss -e` shows it (sk)"
        raise click.BadParameter(what) from error


def _print_trace(found: SocketTrace) -> None:
    lines = [("verdict", found.verdict)]
    if found.service is not None:
        lines.append(("service", found.service))
    if found.backend is not None and found.port is not None:
        lines.append(("backend", _endpoint(found.backend, found.port)))
    if found.by is not None:
        lines.append(("by", found.by))
    if found.slot is not None:
        lines.append(("slot", f"{found.slot} of {found.table_size}, hash {found.hash:#010x}"))
    if found.live is not None:
        lines.append(("live", found.live))
    print_table(("trace", ""), lines)
