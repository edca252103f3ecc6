# SPDX-License-Identifier: Apache-2.0
"""``towpath bench``: times the datapath inside the kernel."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from towpath.bench.scenarios import SCENARIOS
from towpath.cli.command import ManualGroup

if TYPE_CHECKING:
    from towpath.bench.report import Report
    from towpath.bench.scenarios import Scenario

_NAMES = [scenario.name for scenario in SCENARIOS]


@click.group(cls=ManualGroup)
def bench() -> None:
    """Time the datapath inside the kernel.

    A wrapper program calls the program under test again and again, and undoes what it did to the
    packet in between. The wrapper's own time, measured around a program that does nothing, is the
    floor: it is in every figure, so subtract it before comparing.
    """


@bench.command(
    examples={
        "towpath bench lb": "All scenarios.",
        "towpath bench lb --json > results.json": "The same, for a program.",
        "towpath bench lb --scenario tcp-v4-ch --runs 101": "One of them, more exactly.",
    }
)
@click.option(
    "--scenario",
    "names",
    type=click.Choice(_NAMES),
    metavar="NAME",
    multiple=True,
    help=f"Time only this one; may be given again. One of: {', '.join(_NAMES)}.",
)
@click.option(
    "--runs",
    type=click.IntRange(1),
    default=21,
    show_default=True,
    help="Runs of each, of some ten thousand packets.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def lb(names: tuple[str, ...], runs: int, as_json: bool) -> None:
    """Time the load balancer: nanoseconds per packet.

    The packaged program is loaded with the default limits, in a network namespace of its own that
    is removed afterwards. Each scenario's packet is checked before it is timed. Needs root, and
    Linux 5.15, the first that runs a program as if its packet had come in on a device.

    Names are those of the Linux kernel's xdp-lb benchmark: lru is the flow table, ch consistent
    hashing without it, diverse 4096 flows in turn. miss is a new flow with every packet: they come
    much faster than the flow table accepts new ones, as in a flood, so most are only hashed.
    """
    from towpath.bench import BenchError, measure

    chosen = [scenario for scenario in SCENARIOS if not names or scenario.name in names]
    try:
        report = measure(chosen, runs=runs, progress=lambda turn: _show(turn, runs))
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        _print(report, chosen)


def _show(turn: int, runs: int) -> None:
    """Say how far it is, to a person who waits."""
    if sys.stderr.isatty():
        end = "" if turn + 1 < runs else "\r\x1b[K"
        click.echo(f"\r\x1b[Krun {turn + 1} of {runs}{end}", nl=False, err=True)


def _print(report: Report, chosen: list[Scenario]) -> None:
    from towpath.cli.output import print_table

    about = {scenario.name: scenario.about for scenario in chosen}
    rows = [
        (
            timing.name,
            *(f"{ns:.1f}" for ns in (timing.p50_ns, timing.min_ns, timing.max_ns)),
            f"{timing.p50_ns - report.floor_ns:.1f}",
            about[timing.name],
        )
        for timing in report.scenarios
    ]
    columns = ("scenario", "p50", "min", "max", "above floor", "packets")
    print_table(columns, rows, numbers=columns[1:5])
    click.echo(
        f"\nNanoseconds per packet over {report.scenarios[0].runs} runs on Linux {report.kernel}. "
        f"Floor: {report.floor_ns:.1f}."
    )
