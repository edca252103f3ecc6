# SPDX-License-Identifier: Apache-2.0
"""``towpath bench forward``: packets a second through a node, beside the kernel's own ways."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from towpath.bench.forward_network import MAX_BACKENDS
from towpath.bench.forward_ways import BASELINE, WAYS
from towpath.cli.command import Manual

if TYPE_CHECKING:
    from towpath.bench.forward import ForwardReport, Pace, Spread

_NAMES = [way.name for way in WAYS]
_BUSY = 0.9
_MILLION = 1e6


@click.command(
    cls=Manual,
    examples={
        "towpath bench forward": "All ways, in turn.",
        "chrt -f 1 towpath bench forward --json > results.json": "On a machine that others use.",
        "towpath bench forward --way towpath-snat --way nftables --runs 31": "Two, more exactly.",
        "towpath bench forward --apart": "The node's own work, without the backends'.",
    },
)
@click.option(
    "--way",
    "names",
    type=click.Choice(_NAMES),
    metavar="NAME",
    multiple=True,
    help=f"Forward only in this way; may be given again. One of: {', '.join(_NAMES)}.",
)
@click.option(
    "--backends",
    type=click.IntRange(1, MAX_BACKENDS),
    default=10,
    show_default=True,
    help="Backends of the service.",
)
@click.option(
    "--flows",
    type=click.IntRange(1, 100_000),
    default=10_000,
    show_default=True,
    help="Flows whose packets come in turn.",
)
@click.option(
    "--runs", type=click.IntRange(1), default=9, show_default=True, help="Runs of each way."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 20),
    default=0.5,
    show_default=True,
    help="About how long each run is.",
)
@click.option(
    "--apart",
    is_flag=True,
    help="Backends take their packets on the clients' CPU, with real-time priority, instead of the"
    " node's.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def forward(
    names: tuple[str, ...],
    backends: int,
    flows: int,
    runs: int,
    seconds: float,
    apart: bool,
    as_json: bool,
) -> None:
    """Count packets that get through a node: Towpath beside nftables and plain routing.

    Clients, a node and backends are network namespaces, with a veth from one to the next; all is
    gone afterwards. Clients send UDP packets of 64 bytes, from inside the kernel and more than any
    way can forward, from one CPU; the node has another for itself. Each packet that arrives is
    looked at: whether its addresses are as they should be. All flows are known before they count.

    Ways take turns, run by run. They are the same to the node: a frame from a device's ring, which
    for the kernel's own ways becomes an skb, as in a network card's driver.

    Needs root, two CPUs, Linux 5.18, and for nftables the program nft. With a real-time priority
    (chrt) the node's threads have it too, and others on the machine disturb less.
    """
    from towpath.bench import BenchError
    from towpath.bench.forward import measure

    chosen = [way for way in WAYS if not names or way.name in names]
    try:
        report = measure(
            chosen,
            backends=backends,
            flows=flows,
            runs=runs,
            seconds=seconds,
            apart=apart,
            progress=_say,
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


def _print(report: ForwardReport) -> None:
    from towpath.cli.output import print_table

    about = {way.name: way.about for way in WAYS}
    columns = (
        *("way", "p50", "min", "max", "ratio", "least"),
        *("CPU ns", "min", "max", "busy", "about"),
    )
    print_table(
        columns, [(*_row(each), about[each.name]) for each in report.ways], numbers=columns[1:-1]
    )
    click.echo(
        f"\nMillions of packets a second that arrived, of {report.flows} flows over"
        f" {report.backends} backends, and as a multiple of {BASELINE}'s in the same turn; CPU time"
        f" of the node for each, and its share of the time. Linux {report.kernel}."
    )
    if any(each.busy is not None and each.busy < _BUSY for each in report.ways):
        click.echo(
            "The node wasn't busy all the time: either others had its CPU (chrt -f 1 helps), or the"
            " clients couldn't offer more. CPU ns then tell more than packets a second do."
        )


def _row(pace: Pace) -> tuple[str, ...]:
    return (
        pace.name,
        *_millions(pace.packets_per_second),
        *(_ratio(pace.ratio) if pace.ratio else ("", "")),
        *(_whole(pace.cpu_ns) if pace.cpu_ns else ("", "", "")),
        "" if pace.busy is None else f"{pace.busy:.2f}",
    )


def _millions(spread: Spread) -> tuple[str, ...]:
    return tuple(f"{each / _MILLION:.3f}" for each in (spread.p50, spread.min, spread.max))


def _ratio(spread: Spread) -> tuple[str, ...]:
    return f"{spread.p50:.2f}", f"{spread.min:.2f}"


def _whole(spread: Spread) -> tuple[str, ...]:
    return tuple(f"{each:.0f}" for each in (spread.p50, spread.min, spread.max))
