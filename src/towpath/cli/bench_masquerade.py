# SPDX-License-Identifier: Apache-2.0
"""``towpath bench masquerade``: packets of pods a second, beside nftables."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from towpath.cli.command import Manual

if TYPE_CHECKING:
    from towpath.bench.forward import Pace
    from towpath.bench.masquerade import MasqueradeReport


@click.command(
    cls=Manual,
    examples={
        "towpath bench masquerade": "All ways in turn, and nanoseconds for each packet.",
        "chrt -f 1 towpath bench masquerade --json": "For a program, on a machine others use.",
    },
)
@click.option(
    "--flows",
    type=click.IntRange(1, 40_000),
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
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def masquerade(flows: int, runs: int, seconds: float, as_json: bool) -> None:
    """Count packets of pods that get out of a node, translated by Towpath and by nftables.

    Pods, the node and who they talk to are network namespaces, with a veth from one to the next;
    all is gone afterwards. UDP packets of 64 bytes are sent from inside the kernel, more than
    any way can forward, from one CPU; the node has another for itself. Each that arrives is
    looked at. The ways take turns, run by run.

    redirect-skb translates nothing: a program at tc gives packets another frame and sends them on.
    No way by tc can do more than that.

    Nanoseconds are those of the program alone, inside the kernel, for a flow that is known; floor
    is what a program takes that does nothing, and is in the others. new is for the first packet of
    a flow, which has to get a port. 500,000 flows are begun at once in a table of the size that is
    the default, and a packet of each is sent again.

    New flows a second: each packet is the first of a flow. What an agent's configuration allows a
    CPU, 200,000 a second if it says nothing else, is not what limits them here.

    Needs root, two CPUs, Linux 5.18 and the program nft.
    """
    from towpath.bench import BenchError
    from towpath.bench.masquerade import measure_masquerade

    try:
        report = measure_masquerade(flows=flows, runs=runs, seconds=seconds, progress=_say)
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


def _print(report: MasqueradeReport) -> None:
    from towpath.cli.output import print_table

    for what, ways in (("packets", report.ways.ways), ("new flows", report.new)):
        columns = ("way", f"M {what}/s", "ratio", "least", "busy")
        print_table(columns, list(map(_row, ways)), numbers=columns[1:])
        click.echo()
    timed = [(name, f"{each.p50:.0f}", f"{each.min:.0f}") for name, each in report.ns.items()]
    print_table(("program", "ns", "least"), timed, numbers=("ns", "least"))
    held = report.held
    click.echo(
        f"\n{held.flows} of {held.asked} flows held, {held.bytes / 2**20:.0f} MiB;"
        f" began in {held.seconds} s; {held.ns:.0f} ns a packet then"
    )


def _row(way: Pace) -> tuple[str, ...]:
    return (
        way.name,
        f"{way.packets_per_second.p50 / 1e6:.3f}",
        "" if way.ratio is None else f"{way.ratio.p50:.2f}",
        "" if way.ratio is None else f"{way.ratio.min:.2f}",
        "" if way.busy is None else f"{way.busy:.2f}",
    )
