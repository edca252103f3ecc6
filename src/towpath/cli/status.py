# SPDX-License-Identifier: Apache-2.0
"""``towpath status``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from towpath.cli.command import Manual
from towpath.cli.counters import (
    show_local,
    show_refused,
    show_services,
    show_unwrapped,
    show_verdicts,
)
from towpath.cli.output import Format, count, emit, output_option, print_table, say, socket_option

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from towpath.api.documents import Check, DeviceStatus, Status, UnreachedBackend

EXAMPLES = {
    "towpath status": "At a glance.",
    "towpath status -o json | jq .status.file.problems": "Why the file was refused.",
    "towpath status --counters": "And every packet: by verdict, service and backend.",
}

MEBIBYTE = 1 << 20


@click.command(cls=Manual, examples=EXAMPLES)
@click.option("--counters", "counted", is_flag=True, help="Also packets, bytes, flows and drops.")
@click.option("--per-cpu", is_flag=True, help="With --counters: also each CPU's verdicts.")
@socket_option
@output_option
def status(counted: bool, per_cpu: bool, socket_path: Path, form: Format) -> None:
    """What the agent runs, what it refused, and what it has counted."""
    from towpath.api.client import Client
    from towpath.api.codec import plain

    with Client(socket_path) as client:
        found = client.status()
        checks = client.checks() if found.devices or "socket" in found.capabilities else ()
        unreached = client.unreached() if found.unreached else ()
        balances = bool(found.devices) or "socket" in found.capabilities
        counters = client.counters(per_cpu=per_cpu) if counted and balances else None
    data = {"status": plain(found), "checks": plain(checks), "unreached": plain(unreached)}
    if counters is not None:
        data["counters"] = plain(counters)

    def table() -> None:
        print_table(("agent", ""), _lines(found))
        _unwell(checks)
        _unreached(unreached)
        if counters is not None:
            say()
            show_verdicts(counters)
            if counters.refused:
                say()
                show_refused(counters)
            if counters.unwrapped:
                say()
                show_unwrapped(counters)
            if counters.local:
                say()
                show_local(counters)
            say()
            show_services(counters.services)

    emit(data, form, table)


def _lines(status: Status) -> Iterator[tuple[str, str]]:
    yield "version", status.version
    yield "process", f"{status.pid}, {status.resident_bytes / MEBIBYTE:.0f} MiB"
    yield "started", status.started
    if status.device_status:
        yield "devices", ", ".join(map(_device, status.device_status))
    for device in status.device_status:
        if device.why_generic:
            yield f"{device.name} is generic", device.why_generic
    yield from status.capabilities.items() or (("capabilities", "none is configured"),)
    yield "file", f"{status.file.path}, in force since {status.file.accepted}"
    if status.file.refused:
        yield "refused", f"its content of {status.file.refused}:"
        for problem in status.file.problems:
            yield "", str(problem)
    yield from _sources(status)
    owners = ", ".join(f"{number} by {owner}" for owner, number in status.services.items())
    for name, use in status.limits.items():
        by = f" ({owners})" if name == "services" else ""
        yield name.replace("_", " "), f"{count(use.used)} of {count(use.limit)}{by}"
    if status.checks:
        yield "checks", ", ".join(f"{number} {state}" for state, number in status.checks.items())
    if status.unreached:
        reasons = ", ".join(f"{number} {reason}" for reason, number in status.unreached.items())
        yield "unreached", f"backends: {reasons}"
    yield "state", str(status.state)
    yield "pins", str(status.pins)
    yield "metrics", status.metrics or "on the API's socket only"
    if status.trouble:
        yield "trouble", status.trouble


def _device(device: DeviceStatus) -> str:
    called = f", called {device.called}" if device.called else ""
    shared = ", by a dispatcher" if device.attach == "dispatcher" else ""
    return f"{device.name} ({device.mode or 'not attached'}{shared}{called})"


def _sources(status: Status) -> Iterator[tuple[str, str]]:
    for name, source in status.sources.items():
        since = f"in force since {source.accepted}" if source.accepted else "as it was before"
        yield f"source {name}", source.trouble or since
        for kind in source.kinds:
            age = "never heard" if kind.age is None else f"{kind.age:.0f} s old"
            yield "", f"{kind.objects} {kind.name}, {age}{'' if kind.synced else ', not all known'}"
        for pool in source.pools:
            yield "", f"pool {pool.name}: {count(pool.used)} of {count(pool.addresses)} are taken"
        if source.withheld:
            yield "withheld", f"{source.withheld} services that a list lacks"
        if source.unserved:
            yield "not served", f"{len(source.unserved)} things, see towpath source list"
        if source.refused:
            yield "refused", f"what it had at {source.refused}:"
            yield from (("", str(problem)) for problem in source.problems)


def _unwell(checks: Iterable[Check]) -> None:
    """Backends that aren't known to be up, and why."""
    rows = [
        (check.service.name, check.backend, check.state, check.since, check.error)
        for check in checks
        if check.state != "up"
    ]
    if rows:
        say()
        print_table(("service", "backend", "state", "since", "last error"), rows)


def _unreached(backends: Iterable[UnreachedBackend]) -> None:
    """Backends that packets don't get to, and why."""
    rows = [(each.service.name, each.backend, each.trouble) for each in backends]
    if rows:
        say()
        print_table(("service", "backend", "unreached"), rows)
