# SPDX-License-Identifier: Apache-2.0
"""``towpath route``."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import click

from towpath.cli.backend import AddressType
from towpath.cli.command import ManualGroup
from towpath.cli.output import Format, emit, output_option, say, socket_option

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from towpath.documents import Route

EXAMPLES = {
    "towpath route get 192.0.2.11": "Where a tunnel to a backend goes, beside ip's answer.",
    "towpath route get 2001:db8::11 --device eth1": "For packets that come in on another device.",
}


@click.group(cls=ManualGroup, examples=EXAMPLES)
def route() -> None:
    """What becomes of a packet for an address."""


@route.command("get", examples=EXAMPLES)
@click.argument("address", type=AddressType())
@click.option("--device", help="It came in there; else on the first that is balanced on.")
@click.option("--from", "source", type=AddressType(), help="It is sent from this address.")
@socket_option
@output_option
def get(
    address: IPv4Address | IPv6Address,
    device: str | None,
    source: IPv4Address | IPv6Address | None,
    socket_path: Path,
    form: Format,
) -> None:
    """Ask the kernel's FIB as the datapath does, for a packet in a tunnel to ADDRESS.

    Below it stands what `ip route get` says: the way of packets that the node sends by itself. The
    two differ where rules look at the device that a packet comes in on, at its mark or at its
    protocol, and in that the datapath asks nobody for a MAC address.
    """
    from towpath.api.client import Client
    from towpath.api.codec import plain

    with Client(socket_path) as client:
        found = client.route(address, device, source)
    kernel = _kernel(str(address))
    emit({"datapath": plain(found), "ip": kernel}, form, lambda: _print(found, kernel))


def _kernel(address: str) -> dict[str, Any] | str:
    """Return what ip says, or why it says nothing."""
    command = ["ip", "-json", "route", "get", address]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "ip is not installed"
    if ran.returncode:
        return ran.stderr.strip()
    (found,) = json.loads(ran.stdout)
    return {str(key): value for key, value in found.items()}


def _print(found: Route, kernel: dict[str, Any] | str) -> None:
    say(f"datapath: {found.verdict}: {found.why}")
    facts = {
        "out of": found.device,
        "next hop": found.next_hop,
        "MAC": found.mac,
        "from": found.source,
        "MTU": found.mtu,
    }
    for name, value in facts.items():
        if value is not None:
            say(f"  {name}: {value}")
    if isinstance(kernel, str):
        say(f"ip: {kernel}")
        return
    say("ip:")
    for name in ("type", "dev", "gateway", "via", "prefsrc"):
        if name in kernel:
            say(f"  {name}: {kernel[name]}")
