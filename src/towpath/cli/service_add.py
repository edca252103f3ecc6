# SPDX-License-Identifier: Apache-2.0
"""``towpath service add|set``: one service without a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from towpath.cli.backend import numbers
from towpath.cli.command import Manual
from towpath.cli.output import socket_option
from towpath.cli.plans import done

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Command = TypeVar("Command", bound="Callable[..., Any]")

ADDING = {
    "towpath service add web --vip 203.0.113.10 --port 80 --backend 192.0.2.11 "
    "--backend 192.0.2.12=3": "The second backend gets three times as many flows.",
    "towpath service add dns --vip 203.0.113.53 --port 53/udp --backend 192.0.2.11 "
    "--forwarding l2 --flow-timeout 30s": "Backends on the same link; flows end after 30 s.",
    "towpath service add web --vip 203.0.113.10 --port 80 --backend 192.0.2.11 --encap gue": (
        "Tunnels are of UDP, so that the fabric spreads flows."
    ),
    "towpath service add quic --vip 203.0.113.10 --port 443/udp --backend 192.0.2.11 "
    "--health tcp --on-down keep": "Flows stay at a backend that is found down.",
    "towpath service add quic --vip 203.0.113.10 --port 443/udp --quic quic-lb:2 "
    "--backend 192.0.2.11#17 --backend 192.0.2.12#18": "By connection id, wherever clients move.",
}
SETTING = {
    "towpath service set web --affinity 3h": "Clients keep their backend.",
    "towpath service set web --affinity none": "Flows of a client are spread again.",
    "towpath service set web --allow-from 198.51.100.0/24,2001:db8::/32": "For nobody else.",
    "towpath service set web --allow-from any": "For everyone.",
    "towpath service set quic --quic quic-lb:2": "Packets go where their connection id says.",
    "towpath service set web --route-from 10.1.0.0/16=192.0.2.11,192.0.2.12": (
        "New flows of these clients go to two of the backends."
    ),
    "towpath service set web --health http": "Backends are checked, new flows go to what is up.",
}
NOTHING = {
    "affinity": "none",
    "allow_from": "any",
    "encap_port": "default",
    "flow_timeout": "default",
    "health": "none",
    "quic": "none",
    "on_down": "default",
}
"""What stands for a field that isn't there."""

_OPTIONS = (
    click.option(
        "--forwarding",
        type=click.Choice(["dsr", "l2"]),
        help="dsr: in a tunnel. l2: in a new frame, to backends on the same link.",
    ),
    click.option(
        "--hash-by",
        type=click.Choice(["flow", "client", "port"]),
        help="What gives a new flow its backend: addresses and ports, source address or port.",
    ),
    click.option(
        "--encap",
        type=click.Choice(["ipip", "gre", "fou", "gue", "gue0"]),
        help="What tunnels have between the outer IP header and the packet.",
    ),
    click.option(
        "--encap-port",
        metavar="PORT|default",
        help="UDP port that tunnels of fou, gue and gue0 go to. Default: 6080.",
    ),
    click.option(
        "--affinity",
        metavar="TIME|none",
        help="Flows of a client go to one backend, for so long after the last began: 10m, 3h.",
    ),
    click.option(
        "--allow-from",
        metavar="PREFIX,...|any",
        help="Drop packets of other sources; prefixes with commas between, or given again.",
        multiple=True,
    ),
    click.option(
        "--route-from",
        metavar="PREFIX,...=ADDRESS,...|none",
        help="New flows from these prefixes go to these backends alone; may be given again. All"
        " routes that the service had are replaced.",
        multiple=True,
    ),
    click.option(
        "--health",
        type=click.Choice(["tcp", "http", "https", "dns", "none"]),
        help="How backends are checked; what else a check has is set in a file.",
    ),
    click.option(
        "--on-down",
        type=click.Choice(["keep", "move", "default"]),
        help="Flows of a backend that a check finds down: they stay, or go to others at once."
        " By default those of UDP go.",
    ),
    click.option(
        "--flow-timeout",
        metavar="TIME|default",
        help="UDP: a flow without packets for so long has ended: 30s, 10m.",
    ),
    click.option(
        "--quic",
        metavar="FORM|none",
        help="Packets go where their connection id says: quic-lb:LENGTH[:ROTATION], bytes of a"
        " server id and configuration; or katran.",
    ),
    click.option("--table-size", type=int, help="Slots of the Maglev table, a prime."),
    click.option(
        "--flow-table/--no-flow-table", default=None, help="Whether flows are remembered."
    ),
)


def field_options(command: Command) -> Command:
    """Give a command the options that are fields of a service."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command(cls=Manual, examples=ADDING)
@click.argument("name")
@click.option("--vip", required=True, help="Address that clients connect to, or a prefix.")
@click.option(
    "--port", required=True, help="Port, range, list or any; the protocol may follow: 53/udp."
)
@click.option("--backend", "backends", multiple=True, metavar="ADDRESS[=WEIGHT][#SERVER-ID,...]")
@field_options
@socket_option
def add(
    name: str, vip: str, port: str, backends: tuple[str, ...], socket_path: Path, **options: Any
) -> None:
    """Add a service; refused when there is one of that name."""
    from towpath.api.client import Client
    from towpath.model import parse_service

    service = parse_service(
        {"name": name, "vip": vip, "port": port, "backends": [*map(_backend, backends)]}
        | _given(options, {})
    )
    with Client(socket_path) as client:
        if name in {each.name for each in client.services()}:
            raise click.ClickException(
                f"there is a service {name!r} already; change it with towpath service set {name}"
                " or towpath backend"
            )
        done(client.put_service(service))


@click.command("set", cls=Manual, examples=SETTING)
@click.argument("name")
@field_options
@socket_option
def set_(name: str, socket_path: Path, **options: Any) -> None:
    """Change how a service works; what isn't named stays. Flows go on."""
    from towpath.api.client import Client
    from towpath.api.codec import plain
    from towpath.model import parse_service

    if not _given(options, {}):
        raise click.UsageError("nothing to change; see --help for the options")
    with Client(socket_path) as client:
        before = plain(client.service(name))
        done(client.put_service(parse_service(before | _given(options, before))))


def _given(options: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The fields that were named, as a file would have them; ``before``: what the service has."""
    given = {name: value for name, value in options.items() if value not in {None, ()}}
    if "allow_from" in given:
        given["allow_from"] = ",".join(given["allow_from"])
    if "route_from" in given:
        routes = given["route_from"]
        given["route_from"] = [] if routes == ("none",) else [*map(_route, routes)]
    if str(given.get("encap_port", "")).isdecimal():
        given["encap_port"] = int(given["encap_port"])
    if given.get("quic") not in {None, NOTHING["quic"]}:
        given["quic"] = _quic(given["quic"])
    given = {name: None if NOTHING.get(name) == value else value for name, value in given.items()}
    return given if given.keys().isdisjoint({"health", "on_down"}) else _health(given, before)


def _quic(text: str) -> dict[str, object]:
    """``quic-lb:LENGTH[:ROTATION]`` or ``katran``; what is wrong is for the model to refuse."""
    server_ids, *numbers = text.split(":", 2)
    names = ("length", "rotation")
    given = zip(names, (int(n) if n.isdecimal() else n for n in numbers), strict=False)
    return {"server_ids": server_ids, **dict(given)}


def _health(given: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The same with a health check, of which a part may have been named, in one field."""
    names = {"health": "type", "on_down": "on_down"}
    named = {names[each]: given.pop(each) for each in names if each in given}
    if named.get("type", "") is None:
        return given | {"health": None}
    return given | {"health": (before.get("health") or {}) | named}


def _route(text: str) -> dict[str, object]:
    """``PREFIX,...=ADDRESS,...``; what isn't there is for the model to refuse."""
    sources, _, backends = text.partition("=")
    return {"sources": sources, "backends": [each for each in backends.split(",") if each]}


def _backend(text: str) -> dict[str, object]:
    """``ADDRESS[=WEIGHT][#SERVER-ID,...]``; what is no number is for the model to refuse."""
    rest, _, ids = text.partition("#")
    address, _, weight = rest.partition("=")
    given: dict[str, object] = {"address": address}
    if weight:
        given["weight"] = int(weight) if weight.isdecimal() else weight
    return given | ({"server_id": numbers(ids)} if ids else {})
