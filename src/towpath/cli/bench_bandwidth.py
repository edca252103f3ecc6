# SPDX-License-Identifier: Apache-2.0
"""``towpath bench bandwidth``: what limits of pods cost, how they are kept and shared."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towpath.cli.command import Manual

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from towpath.bench.bandwidth import BandwidthReport


@click.command(
    cls=Manual,
    examples={
        "towpath bench bandwidth --json": "All of it, for a program.",
        "towpath bench bandwidth --rate 20M --runs 1 --seconds 3": "One limit, quickly.",
        "towpath bench bandwidth --part latency --cni plugin=/opt/cni/bin/bandwidth": (
            "Requests, also beside the CNI plugin of bandwidth."
        ),
    },
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(("cost", "accuracy", "latency", "fairness", "stamps")),
    help="Only this. Default: all.",
)
@click.option("--rate", "rates", multiple=True, help="A limit, such as 20M. Default: 10 to 100M.")
@click.option(
    "--traffic",
    multiple=True,
    metavar="NAME",
    help="For accuracy only this, such as tcp-cubic-8 or udp-1.2. Default: all.",
)
@click.option(
    "--way",
    "ways",
    multiple=True,
    type=click.Choice(("towpath", "towpath-routed", "tbf", "cake")),
    help="For latency only this. Default: all.",
)
@click.option(
    "--cni",
    multiple=True,
    metavar="NAME=FILE",
    help="A binary of the CNI bandwidth plugin, one more way of that name.",
)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Of each.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.5),
    default=10.0,
    show_default=True,
    help="How long each run is, after some seconds that don't count.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
def bandwidth(
    parts: tuple[str, ...],
    rates: tuple[str, ...],
    traffic: tuple[str, ...],
    ways: tuple[str, ...],
    cni: tuple[str, ...],
    runs: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Limit a pod, and measure what arrives and how long small requests take.

    Pods, their node and a remote are network namespaces; all is gone afterwards.

    cost: nanoseconds of the programs in the kernel, and what 10,000 limits take. accuracy: errors
    of what arrives, as on the wire, in percent of the limit; of UDP below the limit, of what is
    offered. latency: requests of 64 bytes are sent while two TCP connections fill the limit; tbf
    has a queue of 25 ms and a burst of an eighth of a second, and so have plugins. fairness: two
    pods with limits of their own, and with a common one at the highest rate. stamps: a socket that
    paces itself (SO_TXTIME), over time.

    Needs root and the programs ip and tc; all but cost need fq, and the other ways tbf, ifb, CAKE,
    HTB of the kernel.
    """
    from towpath.bench import BenchError
    from towpath.bench.bandwidth import BULKS, OVERLOAD, PARTS, RATES, measure_bandwidth
    from towpath.bench.bandwidth_ways import WAYS
    from towpath.model.bandwidth import RATE
    from towpath.model.kinds import FieldError

    bulks = {each.name: each for each in (*BULKS, OVERLOAD)}
    for name in traffic:
        if name not in bulks:
            raise click.UsageError(f"no traffic {name}; there is: {', '.join(bulks)}")
    try:
        report = measure_bandwidth(
            parts=parts or PARTS,
            rates=[RATE.parse(each) for each in rates] or RATES,
            bulks=[bulks[each] for each in traffic],
            ways=ways or WAYS,
            plugins=dict(map(_plugin, cni)),
            runs=runs,
            seconds=seconds,
            progress=_say,
        )
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


def _plugin(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise click.UsageError(f"--cni {text}: is no NAME=FILE")
    return name, Path(path)


def _say(what: str) -> None:
    """Say what is being done, to a person who waits; nothing: that it is done."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{what} ...\r" if what else "\r\x1b[K", nl=False, err=True)


def _print(report: BandwidthReport) -> None:
    from towpath.cli.output import print_table
    from towpath.model.kinds.rates import written

    for columns, rows in _tables(report, written):
        if rows:
            print_table(columns, rows, numbers=columns[_NAMES.get(columns[0], 1) :])
    if report.set:
        megabytes = report.set.bytes / 1e6
        click.echo(
            f"{report.set.aggregates} limits: {report.set.seconds} s ({report.set.cpu} s of CPU),"
            f" again {report.set.again} s of CPU, {megabytes:.1f} MB"
        )
    if report.stamps:
        told = report.stamps
        rates = sorted(told.rates)
        click.echo(
            f"a socket's own pace of {written(told.pace)}: {rates[0] / 1e6:.1f} to"
            f" {rates[-1] / 1e6:.1f} Mbit/s (stamps {'kept' if told.kept else 'reset'})"
        )


_NAMES = {"limit": 2, "way": 1, "program": 1, "pod": 2, "flows": 0}


def _tables(
    report: BandwidthReport, written: Callable[[int], str]
) -> Iterator[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Columns and rows."""
    cost = (report.cost.floor, *report.cost.scenarios) if report.cost else ()
    yield (
        ("program", "ns", "min", "max"),
        [
            (each.name, f"{each.p50_ns:.1f}", f"{each.min_ns:.1f}", f"{each.max_ns:.1f}")
            for each in cost
        ],
    )
    yield (
        ("limit", "traffic", "error", "worst", "dropped at first", "after"),
        [
            (
                written(each.rate),
                each.traffic,
                f"{each.median:+.2f} %",
                f"{each.worst:+.2f} %",
                str(each.began),
                str(each.dropped),
            )
            for each in report.accuracy
        ],
    )
    yield (
        ("way", "limit", "p50", "p99"),
        [
            (each.way, written(each.rate), f"{each.p50:.2f} ms", f"{each.p99:.2f} ms")
            for each in report.latency
        ],
    )
    yield (
        ("pod", "traffic", "limit", "error"),
        [
            (each.pod, each.traffic, written(each.rate), f"{each.error:+.2f} %")
            for each in report.separate
        ],
    )
    yield (
        ("flows", "small", "Jain", "least", "error"),
        [
            (
                str(each.flows),
                str(each.small),
                f"{each.jain:.3f}",
                f"{each.least:.2f}",
                f"{each.error:+.2f} %",
            )
            for each in report.fairness
        ],
    )
