# SPDX-License-Identifier: Apache-2.0
"""``towpath bench bandwidth``: how exactly a limit is kept, and what small requests wait."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from towpath.cli.command import Manual

if TYPE_CHECKING:
    from towpath.bench.bandwidth import BandwidthReport


@click.command(
    cls=Manual,
    examples={
        "towpath bench bandwidth --json": "All of it, for a program.",
        "towpath bench bandwidth --rate 20M --runs 1 --seconds 3": "One limit, quickly.",
    },
)
@click.option("--rate", "rates", multiple=True, help="A limit, such as 20M. Default: 10 to 100M.")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Of each.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.5),
    default=10.0,
    show_default=True,
    help="How long each run is, after two seconds that don't count.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
def bandwidth(rates: tuple[str, ...], runs: int, seconds: float, as_json: bool) -> None:
    """Limit a pod, and measure what arrives and how long small requests take.

    The pod, its node and a remote are network namespaces; all is gone afterwards. Errors are of
    what arrives, as on the wire, in percent of the limit; of UDP below the limit, of what is
    offered. Requests of 64 bytes are sent while two TCP connections fill the limit. tbf is tbf on
    an ifb, as the CNI bandwidth plugin has it.

    Needs root, fq and the programs ip and tc; tbf, ifb and CAKE of the kernel for the other ways.
    """
    from towpath.bench import BenchError
    from towpath.bench.bandwidth import RATES, measure_bandwidth
    from towpath.model.bandwidth import RATE
    from towpath.model.kinds import FieldError

    try:
        wanted = [RATE.parse(each) for each in rates] or RATES
        report = measure_bandwidth(rates=wanted, runs=runs, seconds=seconds, progress=_say)
    except FieldError as error:
        raise click.UsageError(str(error)) from error
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


def _print(report: BandwidthReport) -> None:
    from towpath.cli.output import print_table
    from towpath.model.kinds.rates import written

    rows = [
        (
            written(each.rate),
            each.traffic,
            f"{each.median:+.2f} %",
            f"{each.worst:+.2f} %",
            str(each.dropped),
        )
        for each in report.accuracy
    ]
    columns = ("limit", "traffic", "error", "worst", "dropped")
    print_table(columns, rows, numbers=columns[2:])
    waits = [
        (each.way, written(each.rate), f"{each.p50:.2f} ms", f"{each.p99:.2f} ms")
        for each in report.latency
    ]
    print_table(("way", "limit", "p50", "p99"), waits, numbers=("p50", "p99"))
