# SPDX-License-Identifier: Apache-2.0
"""``towpath bench neigh``: what is lost while next hops change."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from towpath.bench.neigh_ways import HOPS, LIMIT_SECONDS, SCENARIOS, SECONDS, WAYS
from towpath.cli.command import Manual

if TYPE_CHECKING:
    from towpath.bench.neigh import NeighReport, Outcome


@click.command(
    cls=Manual,
    examples={
        "towpath bench neigh": "All scenarios; some take a minute and a half.",
        "towpath bench neigh --scenario route-change --json": "One of them, for a program.",
        "towpath bench neigh --load": "What it costs to keep 1,000 of them resolved.",
    },
)
@click.option(
    "--scenario",
    "names",
    type=click.Choice(SCENARIOS),
    metavar="NAME",
    multiple=True,
    help=f"Only this one; may be given again. One of: {', '.join(SCENARIOS)}.",
)
@click.option(
    "--limit",
    type=click.FloatRange(1),
    default=LIMIT_SECONDS,
    show_default=True,
    help="Seconds after which it is taken not to heal.",
)
@click.option(
    "--load",
    "load",
    is_flag=True,
    help="Instead: ARP requests of many next hops, and how long planning takes.",
)
@click.option("--hops", type=click.IntRange(1, 60_000), default=HOPS, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=SECONDS, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def neigh(
    names: tuple[str, ...], limit: float, load: bool, hops: int, seconds: float, as_json: bool
) -> None:
    """Change MAC addresses, carriers and routes under traffic, and count what is lost.

    Next hops are kept resolved by the kernel as Towpath asks it (managed); by entries that somebody
    has written for good (permanent); by the kernel alone, as packets are handed to it (kernel). A
    packet is sent each millisecond; lost are those that were sent once the network could carry
    packets again, and didn't reach the host that they are for.

    A MAC address that changes is announced by nobody. In backend-mac-change-checked a health check
    fails then, and says so.

    With --load so many next hops (--hops) are kept resolved for so long (--seconds), and requests
    counted at the other end of their link; beside it those of the kernel's own, whose entries are
    asked for all at once and then left to it. Then 10,000 are planned, and read anew.

    Each is done in network namespaces of its own, which are gone afterwards. Needs root.
    """
    from towpath.bench import BenchError

    if load:
        _load(hops, seconds, as_json)
        return
    from towpath.bench.neigh import measure

    try:
        report = measure(names or SCENARIOS, limit=limit, progress=_say)
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    finally:
        _say("")
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        _print(report)


def _load(hops: int, seconds: float, as_json: bool) -> None:
    from towpath.bench.neigh_load import measure

    try:
        found = measure(hops=hops, seconds=seconds, progress=_say)
    finally:
        _say("")
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
        return
    from towpath.cli.output import count, print_table

    columns = ("next hops", "requests", "most in a second", "resolved")
    rows = [
        (name, count(each.requests), count(each.most_in_a_second), count(each.resolved))
        for name, each in (("kept by Towpath", found.managed), ("the kernel's own", found.floor))
    ]
    print_table(columns, rows, numbers=columns[1:])
    click.echo(
        f"\n{count(found.hops)} next hops, {found.seconds:.0f} s. {count(found.many)} are planned"
        f" in {found.planned_seconds:.2f} s; to read all anew takes {found.resync_ms:.0f} ms"
        f" ({found.resync_cpu_ms:.0f} ms of CPU time)."
        f" Linux {found.kernel}."
    )


def _say(what: str) -> None:
    """Say what is being done, to a person who waits; nothing: that it is done."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{what} ...\r" if what else "\r\x1b[K", nl=False, err=True)


def _print(report: NeighReport) -> None:
    from towpath.cli.output import print_table

    rows = [
        (name, *(text for way in WAYS for text in _cells(ways[way])))
        for name, ways in report.scenarios.items()
    ]
    columns = ("scenario", *(text for way in WAYS for text in (f"{way}: lost", "heals")))
    print_table(columns, rows, numbers=columns[1:])
    click.echo(
        f"\nlost: packets, one a millisecond. heals: milliseconds to the last that was lost;"
        f" -: not in time. Linux {report.kernel}."
    )


def _cells(found: Outcome) -> tuple[str, str]:
    return str(found.lost), "-" if found.heal_ms is None else f"{found.heal_ms:.0f}"
