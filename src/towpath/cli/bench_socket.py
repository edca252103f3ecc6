# SPDX-License-Identifier: Apache-2.0
"""``towpath bench socket``: connect() by programs at the socket, beside kube-proxy's ways."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from towpath.cli.command import Manual

if TYPE_CHECKING:
    from towpath.bench.socket import SocketReport


@click.command(
    "socket",
    cls=Manual,
    examples={
        "towpath bench socket": "All ways in turn.",
        "towpath bench socket --services 10 --json": "With few services, for a program.",
        "towpath bench socket --part stale": "Only what becomes of sockets whose backend goes.",
    },
)
@click.option(
    "--services",
    multiple=True,
    type=click.IntRange(1, 10_000),
    default=(10, 1000, 10_000),
    show_default=True,
    help="How many there are; may be given several times.",
)
@click.option(
    "--runs", type=click.IntRange(1), default=9, show_default=True, help="Runs of each way."
)
@click.option(
    "--connections",
    type=click.IntRange(10, 10_000),
    default=300,
    show_default=True,
    help="Connections in each run.",
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(("connect", "programs", "stale")),
    default=("connect", "programs", "stale"),
    show_default=True,
    help="What is measured; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def socket(
    services: tuple[int, ...], runs: int, connections: int, parts: tuple[str, ...], as_json: bool
) -> None:
    """Measure what connect() to a service takes until it is established.

    A pod, its node and backends are network namespaces, with a veth from one to the next; all is
    gone afterwards. none connects to a backend's own address, towpath to a service by programs at
    the pod's cgroup, nftables to a service by kube-proxy's rules on the node, ipvs to one by IPVS
    there. They take turns, run by run. added is what Towpath adds to none, as a part of what
    nftables or ipvs adds, of medians in the same run.

    Also: connections a second, requests a second over one connection (part connect), the decision
    alone and what the kernel counts of programs (programs), and 10,000 connected sockets of UDP in
    50 namespaces whose backend is removed (stale).

    Needs root, cgroups of version 2 and the program nft. ipvs is left out, and the reason told,
    where the kernel has no IPVS or the program ipvsadm is missing.
    """
    from towpath.bench import BenchError
    from towpath.bench.socket import measure_socket

    try:
        report = measure_socket(
            services=services, runs=runs, connections=connections, parts=parts, progress=_say
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


def _print(report: SocketReport) -> None:
    from towpath.cli.output import print_table

    rows = [
        (
            each.way,
            str(each.services or ""),
            each.family,
            f"{each.p50_ns / 1e3:.1f}",
            f"{each.spread.min / 1e3:.1f} to {each.spread.max / 1e3:.1f}",
            f"{each.connections_per_second:.0f}",
            f"{each.requests_per_second:.0f}",
        )
        for each in report.connect
    ]
    columns = ("way", "services", "family", "us", "from to", "connections/s", "requests/s")
    if rows:
        print_table(columns, rows, numbers=("services", "us", "connections/s", "requests/s"))
    added = [
        (way, family, number, f"{each.p50:.3f}", f"{each.min:.3f} to {each.max:.3f}")
        for way, families in report.added.items()
        for family, found in families.items()
        for number, each in found.items()
    ]
    beside = ("beside", "family", "services", "added", "from to")
    if added:
        print_table(beside, added, numbers=("services", "added"))
    for way, reason in report.left_out.items():
        click.echo(f"{way} was left out: {reason}")
    for what, ratios in (("connections/s", report.connections), ("requests/s", report.requests)):
        for family, ratio in ratios.items():
            click.echo(f"{what}, {family}: {ratio.p50:.3f} of none ({ratio.min} to {ratio.max})")
    for family, ns in report.decision_ns.items():
        click.echo(f"decision, {family}: {ns:.0f} ns")
    for name, runs in report.hooks.items():
        click.echo(f"{name}: {runs.ns_each} ns, of {runs.number} runs")
    moved = report.udp
    if moved is None:
        return
    click.echo(
        f"{moved.sockets} connected sockets of UDP in {moved.namespaces} namespaces: ended in"
        f" {moved.moved_ms} ms; of {moved.others} others {moved.touched_wrongly} touched"
    )
