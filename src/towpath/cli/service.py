# SPDX-License-Identifier: Apache-2.0
"""``towpath service list|get|add|set|apply|plan|delete``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towpath.cli.command import ManualGroup
from towpath.cli.health import STANDING, standing
from towpath.cli.output import Format, emit, output_option, print_table, say, socket_option
from towpath.cli.plans import done, show_plan
from towpath.cli.service_add import add, set_

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.api.documents import ServiceEntry
    from towpath.model import Service

EXAMPLES = {
    "towpath service list": "What is balanced, and who owns it.",
    "towpath service plan services.yaml": "What an apply would change.",
    "towpath service apply services.yaml": "Add and replace services, all or none.",
    "towpath service get web -o yaml": "One service.",
    "towpath service counters web": "What it was sent, and what it dropped.",
    "towpath service set web --affinity 3h": "Change it, without a file.",
    "towpath service delete web": "Balance it no more.",
}

FILES = {
    "FILE": (
        "YAML with a list `services`, each with name, vip, port, protocol (tcp), table_size"
        " (16381), flow_table (true), flow_timeout (of UDP; 5m), forwarding (dsr, l2 or snat),"
        " encap (of tunnels: ipip, gre, fou, gue or gue0), encap_port (6080),"
        " hash_by (flow, client or port), quic (none),"
        " affinity (none, or a time such as 3h), allow_from (everyone, or a list of prefixes),"
        " route_from (none, or a list of sources and backends),"
        " health (none), and backends (address, weight, state, port, server_id); - is stdin."
    )
}

file_argument = click.argument(
    "file", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False)
)
prune_option = click.option(
    "--prune", is_flag=True, help="Also delete services of the API that FILE does not list."
)


@click.group(cls=ManualGroup, examples=EXAMPLES, files=FILES)
def service() -> None:
    """List, add, change, apply, plan and delete services.

    A service is a VIP, port and protocol whose flows are shared by backends.
    Services of the agent's own configuration file are listed here and changed
    there.
    """


service.add_command(add)
service.add_command(set_)


@service.command("list", examples={"towpath service list -o json": "For a program."})
@socket_option
@output_option
def list_(socket_path: Path, form: Format) -> None:
    """List every service."""
    from towpath.api.client import Client
    from towpath.api.codec import plain

    with Client(socket_path) as client:
        entries = client.entries()
        checks = client.checks()
    up = Counter(check.service.name for check in checks if check.serves)
    checked = {check.service.name for check in checks}

    def table() -> None:
        numbers = ("port", "backends", "up", "table")
        names = [_namespace(each) for each in entries]
        columns = (
            *(("namespace",) if any(names) else ()),
            "service",
            "vip",
            "port",
            "protocol",
            "backends",
            "up",
            "table",
            "flows",
            "owner",
        )
        rows: list[tuple[object, ...]] = []
        for each, name in zip(entries, names, strict=True):
            row = _row(each, up if each.service.name in checked else None)
            short = each.service.name.removeprefix(f"{name}:")
            rows.append((name, short, *row[1:]) if any(names) else row)
        print_table(columns, rows, numbers=numbers)

    emit(plain(entries), form, table)


@service.command(examples={"towpath service get web": "Its fields and backends."})
@click.argument("name")
@socket_option
@output_option
def get(name: str, socket_path: Path, form: Format) -> None:
    """Show one service."""
    from towpath.api.client import Client
    from towpath.api.codec import plain

    with Client(socket_path) as client:
        found = client.service(name)
        checks = {check.backend: check for check in client.checks(name)}
        troubles = {each.backend: each.trouble for each in client.unreached(name)}

    def table() -> None:
        data: dict[str, Any] = plain(found)
        backends = data.pop("backends")
        parts = {name: data.pop(name) or {} for name in ("health", "quic")}
        fields = [
            *data.items(),
            *((f"{name}.{key}", value) for name, of in parts.items() for key, value in of.items()),
        ]
        print_table(("service", found.name), fields[1:])
        say()
        names = ["address", "weight", "state", "port", "local"]
        names += ["server_id"] if found.quic else []
        rows = [
            (
                *(_listed(each[name]) for name in names),
                *standing(checks.get(backend.address)),
                troubles.get(backend.address),
            )
            for backend, each in zip(found.backends, backends, strict=True)
        ]
        columns = ("backend", *names[1:], *STANDING, "unreached")
        print_table(columns, rows, numbers=("weight", "port", "server_id"))

    emit(plain(found), form, table)


@service.command(
    examples={
        "towpath service counters web": "Packets, bytes, flows and drops, by backend.",
        "towpath service counters web --per-cpu": "Is one CPU doing all the work?",
    }
)
@click.argument("name")
@click.option("--per-cpu", is_flag=True, help="Also by CPU.")
@socket_option
@output_option
def counters(name: str, per_cpu: bool, socket_path: Path, form: Format) -> None:
    """Show what was counted of one service, and why packets were dropped."""
    from towpath.api.client import Client
    from towpath.api.codec import plain
    from towpath.cli.counters import show_cpus, show_drops, show_quic, show_services

    with Client(socket_path) as client:
        found = client.service_counters(name, per_cpu=per_cpu)

    def table() -> None:
        show_services([found])
        if found.drops:
            say()
            show_drops(found)
        if found.quic:
            say()
            show_quic(found)
        if per_cpu:
            say()
            show_cpus(found)

    emit(plain(found), form, table)


@service.command(
    files=FILES,
    examples={
        "towpath service apply services.yaml": "Add and replace, leave the others.",
        "towpath service apply --prune services.yaml": "FILE is all there is to be.",
    },
)
@file_argument
@prune_option
@click.option(
    "--force",
    is_flag=True,
    help="Backends that are removed don't let their flows end: they go at once.",
)
@socket_option
def apply(file: Path, prune: bool, force: bool, socket_path: Path) -> None:
    """Add or replace the services in FILE, all or none.

    When this returns, they are on the agent's disk and in the kernel. Backends that are
    removed get no new flows, and go when those that they have have ended.
    """
    from towpath.api.client import Client

    services = _read(file)
    with Client(socket_path) as client:
        done(client.apply(services, prune=prune, force=force))


@service.command(
    files=FILES,
    examples={
        "towpath service plan services.yaml": "What `service apply` would do.",
        "towpath service plan --config towpath.yaml": "What a new configuration file would do.",
    },
)
@file_argument
@prune_option
@click.option(
    "--config",
    "whole",
    is_flag=True,
    help="FILE is a configuration file, to be the agent's own.",
)
@socket_option
@output_option
def plan(file: Path, prune: bool, whole: bool, socket_path: Path, form: Format) -> None:
    """Show what an apply of FILE would change, and change nothing.

    For each service: what is added, removed and changed, and the share of its
    new flows that would go to another backend than now. Flows that the flow
    table knows keep their backend as long as it is there.
    """
    from towpath.api.client import Client

    services = _read_config(file) if whole else _read(file)
    with Client(socket_path) as client:
        show_plan(client.plan(services, prune=prune, owner="file" if whole else "api"), form)


@service.command(examples={"towpath service delete web mail": "Two of them."})
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@socket_option
def delete(names: tuple[str, ...], socket_path: Path) -> None:
    """Delete services of the API; their packets pass to the kernel from then on."""
    from towpath.api.client import Client

    with Client(socket_path) as client:
        for name in names:
            done(client.remove_service(name))


def _listed(value: object) -> object:
    """A list as options take it; an empty one is as nothing."""
    if not isinstance(value, list):
        return value
    return ",".join(map(str, value)) or None


def _namespace(entry: ServiceEntry) -> str | None:
    """Of Kubernetes, whose services are called NAMESPACE:NAME:PORT:KIND:ADDRESS."""
    return entry.service.name.partition(":")[0] if entry.owner == "kubernetes" else None


def _row(entry: ServiceEntry, up: Mapping[str, int] | None) -> tuple[object, ...]:
    """A service's line; ``up``: backends that are up by service, None where they aren't checked."""
    service = entry.service
    return (
        service.name,
        service.vip,
        service.port,
        service.protocol,
        len(service.backends),
        None if up is None else f"{up[service.name]}/{len(service.backends)}",
        service.table_size,
        service.flow_table,
        entry.owner,
    )


def _read(file: Path) -> tuple[Service, ...]:
    from towpath.model import parse_services

    return parse_services(*_text(file))


def _read_config(file: Path) -> tuple[Service, ...]:
    from towpath.model import parse_config

    return parse_config(*_text(file)).services


def _text(file: Path) -> tuple[str, str]:
    """A file's text, and its name for messages."""
    try:
        with click.open_file(str(file), encoding="utf-8") as opened:
            return opened.read(), "stdin" if str(file) == "-" else str(file)
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{file}: not UTF-8 text: {error}") from error
