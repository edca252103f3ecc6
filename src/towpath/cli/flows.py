# SPDX-License-Identifier: Apache-2.0
"""``towpath flows``."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import click

from towpath.cli.command import Manual
from towpath.cli.output import Format, count, emit, output_option, print_table, say, socket_option

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from towpath.api.documents import Flow, FlowCounts
    from towpath.model.fields import FlowFields

EXAMPLES = {
    "towpath flows --service web": "The first hundred of a service.",
    "towpath flows --client 198.51.100.7": "Which backends a client is on.",
    "towpath flows --backend 192.0.2.11 --max-idle 60 --count": "Is a backend idle yet?",
    "towpath flows --translated 192.0.2.1:10533": "Who is behind what a backend's log says.",
    "towpath flows --limit 0 -o json | jq length": "Every flow, for a program.",
}


@click.command(cls=Manual, examples=EXAMPLES)
@click.option("--service", help="Flows of this service.")
@click.option("--vip", help="Flows to this VIP, address or prefix as the service has it.")
@click.option("--backend", help="Flows that go to this backend.")
@click.option("--client", help="Flows from this address or prefix.")
@click.option("--max-idle", type=click.FloatRange(0), help="Seen in the last so many seconds.")
@click.option(
    "--translated",
    metavar="ADDRESS[:PORT]",
    help="Flows of which the backend sees this address and port.",
)
@click.option("--expired", is_flag=True, help="Also translated flows whose time is over.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="List no more than that; 0: all.",
)
@click.option("--count", "counted", is_flag=True, help="Only how many, by backend.")
@socket_option
@output_option
def flows(
    service: str | None,
    vip: str | None,
    backend: str | None,
    client: str | None,
    max_idle: float | None,
    translated: str | None,
    expired: bool,
    limit: int,
    counted: bool,
    socket_path: Path,
    form: Format,
) -> None:
    """List the flows that the datapath remembers, and the backend that each has.

    They are what keeps a connection on its backend while tables change. A flow is
    here from its first packet until its room is needed: how long ago it was last
    seen is all that tells whether it is still going on.

    Flows of services with forwarding snat also tell what they are translated to,
    and have a state: new, until both sides have agreed; established; closing. When
    their time is over (left: how long that is if no packet comes) they are no longer
    listed, but with --expired, until another flow takes their port.
    """
    from towpath.api.client import Client

    question: FlowFields = {
        "service": service,
        "vip": vip,
        "backend": backend,
        "client": client,
        "max_idle": max_idle,
        "translated": translated,
        "expired": expired or None,
    }
    with Client(socket_path) as agent:
        if counted:
            _show_counts(agent.count_flows(**question), form)
            return
        # One more tells whether there are more.
        asked = limit + 1 if limit else None
        _show(list(agent.flows(limit=asked, **question)), limit, form)


def _show(found: Sequence[Flow], limit: int, form: Format) -> None:
    from towpath.api.codec import plain
    from towpath.model.service import endpoint

    shown = list(islice(found, limit or None))

    def table() -> None:
        columns = {
            "service": [each.service for each in shown],
            "client": [endpoint(each.client, each.client_port) for each in shown],
            "backend": [str(each.backend) for each in shown],
            "idle": [duration(each.idle_seconds) for each in shown],
        }
        if any(each.translation for each in shown):
            columns |= _translations(shown)
        print_table(list(columns), zip(*columns.values(), strict=True), numbers=("idle", "left"))
        if len(found) > len(shown):
            say(f"There are more than {limit}; --limit shows more, --count counts.", error=True)

    emit(plain(shown), form, table)


def _translations(flows: Sequence[Flow]) -> dict[str, list[str]]:
    """More columns; empty for a flow that isn't translated."""
    from towpath.model.service import endpoint

    made = [each.translation for each in flows]
    return {
        "translated to": [endpoint(each.address, each.port) if each else "" for each in made],
        "state": [each.state if each else "" for each in made],
        "left": [duration(each.remaining_seconds) if each else "" for each in made],
    }


def duration(seconds: float) -> str:
    """Seconds as 12.3 s, or from a minute on as 1:02:03."""
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _show_counts(counts: FlowCounts, form: Format) -> None:
    from towpath.api.codec import plain

    def table() -> None:
        rows = [(each.service, str(each.backend), count(each.flows)) for each in counts.backends]
        room = f"room for {count(counts.limit)}"
        if counts.nat_limit:
            room += f", and {count(counts.nat_limit)} translated"
        total = ("total", room, count(counts.total))
        print_table(("service", "backend", "flows"), [*rows, total], numbers=("flows",))

    emit(plain(counts), form, table)
