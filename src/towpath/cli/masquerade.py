# SPDX-License-Identifier: Apache-2.0
"""``towpath masquerade``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from towpath.cli.backend import AddressType
from towpath.cli.command import ManualGroup
from towpath.cli.output import Format, emit, output_option, print_table, say, socket_option

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from towpath.documents import Masquerade, MasqueradedFlow, MasqueradedFlows

EXAMPLES = {
    "towpath masquerade show": "Whose packets are masqueraded, and what became of them.",
    "towpath masquerade flows --client 10.244.0.7": "What one pod talks to.",
    "towpath masquerade flows --port 61234": "Who is behind a port that a remote complains of.",
}
_COLUMNS = ("protocol", "pod", "leaves as", "remote", "state", "idle")


@click.group("masquerade", cls=ManualGroup, examples=EXAMPLES)
def command() -> None:
    """Dynamic source NAT of pods that talk to what is outside of the node."""


@command.command("show", examples={"towpath masquerade show": "All of it."})
@socket_option
@output_option
def show(socket_path: Path, form: Format) -> None:
    """Show rules, devices, the node's addresses, and packets by program and verdict.

    from_pod sees what pods send, to_net what leaves by the kernel's stack, from_net what comes in
    from outside, to_pod what the stack sends to pods. Verdicts that begin with pass leave a packet
    as it is, those with drop end it; the others translate it.
    """
    from towpath.api.client import Client
    from towpath.api.codec import plain

    with Client(socket_path) as client:
        found = client.masquerade()
    emit(plain(found), form, lambda: _print(found))


def _print(found: Masquerade) -> None:
    for number, rule in enumerate(found.rules):
        left = f", but not to {', '.join(map(str, rule.exclude))}" if rule.exclude else ""
        prefixes = ", ".join(map(str, rule.prefixes))
        say(f"rule {number}: {prefixes} by {', '.join(rule.devices)}{left}")
    stack = ", through the stack" if found.through_stack else ""
    say(f"ports {found.ports}, {found.mapping}{stack}")
    say(f"leaves from {', '.join(map(str, found.sources)) or 'nowhere'}")
    say(f"{found.flows} flows of at most {found.capacity}, {found.counters.bound} begun")
    if found.ports_in_use:
        say(f"ports in use by sockets: {', '.join(map(str, found.ports_in_use))}")
    devices = [
        (each.name, each.role, ", ".join(map(str, each.rules)) or "-", _way(each.direct))
        for each in found.devices
    ]
    print_table(("device", "role", "rules", "answers"), devices)
    rows = [
        (program, verdict, str(number))
        for program, verdicts in found.counters.verdicts.items()
        for verdict, number in verdicts.items()
        if number
    ]
    print_table(("program", "verdict", "packets"), rows, numbers=("packets",))
    for trouble in found.troubles:
        say(trouble)


def _way(direct: bool) -> str:
    return "into the pod" if direct else "by the device"


@command.command("flows", examples=EXAMPLES)
@click.option("--client", "pod", type=AddressType(), help="Only those of this pod.")
@click.option("--remote", type=AddressType(), help="Only those to this address.")
@click.option("--protocol", type=click.Choice(["tcp", "udp", "icmp", "sctp"]), help="Only these.")
@click.option("--port", type=click.IntRange(1, 65535), help="Only those that leave from this port.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, help="At most so many.")
@socket_option
@output_option
def flows(
    pod: IPv4Address | IPv6Address | None,
    remote: IPv4Address | IPv6Address | None,
    protocol: str | None,
    port: int | None,
    limit: int,
    socket_path: Path,
    form: Format,
) -> None:
    """List flows of pods, and the address and port by which each leaves."""
    from towpath.api.client import Client
    from towpath.api.codec import plain

    with Client(socket_path) as client:
        found = client.masqueraded_flows(
            client=pod, remote=remote, protocol=protocol, port=port, limit=limit
        )
    emit(plain(found), form, lambda: _print_flows(found))


def _print_flows(found: MasqueradedFlows) -> None:
    print_table(_COLUMNS, [_row(each) for each in found.flows], numbers=("idle",))
    if found.more:
        say("there are more: --limit shows them, other options choose among them")


def _row(each: MasqueradedFlow) -> tuple[str, ...]:
    return (
        each.protocol,
        _endpoint(each.client, each.client_port),
        _endpoint(each.source, each.port),
        _endpoint(each.remote, each.remote_port),
        each.state,
        f"{each.idle_seconds:.0f} s",
    )


def _endpoint(address: IPv4Address | IPv6Address, port: int) -> str:
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
