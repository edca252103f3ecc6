# SPDX-License-Identifier: Apache-2.0
"""``towpath bench control``: how long changes take, beside those with one service."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from towpath.cli.command import Manual

if TYPE_CHECKING:
    from towpath.bench.control import ControlReport, LargeReport
    from towpath.bench.forward import Spread


@click.command(
    cls=Manual,
    examples={
        "towpath bench control": "Changes by the API, and the command's start.",
        "towpath bench control --services 4000 --rounds 15": "With more services, more exactly.",
        "towpath bench control --large 0": "Without the agents that begin over many services.",
    },
)
@click.option(
    "--services",
    type=click.IntRange(2, 4000),
    default=1000,
    show_default=True,
    help="How many there are, of ten backends each.",
)
@click.option(
    "--rounds", type=click.IntRange(1), default=7, show_default=True, help="Rounds of all."
)
@click.option(
    "--changes", type=click.IntRange(1), default=30, show_default=True, help="Changes in a round."
)
@click.option(
    "--large",
    type=click.IntRange(0, 16000),
    default=10_000,
    show_default=True,
    help="How many an agent begins with; 0: none does.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def control(services: int, rounds: int, changes: int, large: int, as_json: bool) -> None:
    """Time an agent: a backend's weight is changed, and services are applied, by its API.

    A change has been made when it is on disk, in the kernel and answered. With one service and
    with many in turn: the ratio says what the others cost. The start of the command is timed
    beside that of an interpreter that does nothing.

    Then the CPU time of an agent that is given many services, is killed, and begins again over what
    it has left.

    The agent runs in a network namespace of its own; all is gone afterwards. Needs root.
    """
    from towpath.bench import BenchError
    from towpath.bench.control import measure

    try:
        report = measure(
            services=services, rounds=rounds, changes=changes, large=large, progress=_say
        )
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    finally:
        _say("")
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        _print(report)


def _say(what: str) -> None:
    """Say what is being done, to a person who waits; nothing: that it is done."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{what} ...\r" if what else "\r\x1b[K", nl=False, err=True)


def _print(report: ControlReport) -> None:
    from towpath.cli.output import print_table

    rows = [
        _row("a change, one service there", report.one_ms),
        _row(f"a change, {report.services} services there", report.many_ms, report.ratio),
        _row("  CPU time of the agent", report.cpu_ms),
        _row(f"all {report.services} services, from one", report.all_ms),
        _row("python, which does nothing", report.python_ms),
        _row("towpath --help", report.command_ms, report.command_ratio),
    ]
    columns = ("what", "p50", "min", "max", "ratio")
    print_table(columns, rows, numbers=columns[1:])
    click.echo(
        f"\nMilliseconds, of the rounds, and as a multiple of the line above it in the same round."
        f" The agent has {report.resident_mib:.0f} MiB. Linux {report.kernel}."
    )
    if report.large:
        _print_large(report.large)


def _print_large(report: LargeReport) -> None:
    from towpath.cli.output import print_table

    rows = [
        _row("an agent begins, nothing there", report.begin_bare_s),
        _row(f"it is given {report.services} services", report.apply_s),
        _row("the next one begins over them", report.begin_s),
        _row("  and until it rests", report.settle_s),
    ]
    columns = ("what", "p50", "min", "max")
    click.echo()
    print_table(columns, [row[:4] for row in rows], numbers=columns[1:])
    click.echo(
        f"\nSeconds of CPU time. The first agent has {report.resident_mib:.0f} MiB then, the next"
        f" one {report.resident_again_mib:.0f}."
    )


def _row(what: str, spread: Spread, ratio: Spread | None = None) -> tuple[str, ...]:
    times = (f"{each:.2f}" for each in (spread.p50, spread.min, spread.max))
    return what, *times, f"{ratio.p50:.2f}" if ratio else ""
