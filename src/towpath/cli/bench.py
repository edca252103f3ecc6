# SPDX-License-Identifier: Apache-2.0
"""``towpath bench``: times the datapath inside the kernel."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towpath.bench.scenarios import SCENARIOS
from towpath.cli.bench_bandwidth import bandwidth
from towpath.cli.bench_control import control
from towpath.cli.bench_forward import forward
from towpath.cli.bench_masquerade import masquerade
from towpath.cli.bench_neigh import neigh
from towpath.cli.bench_socket import socket
from towpath.cli.command import ManualGroup

if TYPE_CHECKING:
    from towpath.bench.recorder import RecorderReport
    from towpath.bench.report import Report
    from towpath.bench.scenarios import Scenario
    from towpath.bench.wildcard import SetReport, WildcardReport

_NAMES = [scenario.name for scenario in SCENARIOS]
_FLAVOURS = ("acl", "fw", "ipc")
_SIZES = (1_000, 10_000, 100_000)


@click.group(cls=ManualGroup)
def bench() -> None:
    """Time the datapath inside the kernel, what gets through a node, and changes.

    For all but bandwidth, forward, masquerade, control, neigh and socket a wrapper program calls
    the program under test again and again, and undoes what it did to the packet in between. The
    wrapper's own time, measured around a program that does nothing, is the floor: it is in every
    figure, so subtract it before comparing.
    """


bench.add_command(control)
bench.add_command(forward)
bench.add_command(bandwidth)
bench.add_command(masquerade)
bench.add_command(neigh)
bench.add_command(socket)


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


@bench.command(
    examples={
        "towpath bench wildcard": "All sets of IPv4 rules, beside the two other ways.",
        "towpath bench wildcard --set fw --rules 10000 --runs 31": "One of them, more exactly.",
        "towpath bench wildcard --ipv6 --json > results.json": "IPv6, for a program.",
    }
)
@click.option(
    "--set",
    "flavours",
    type=click.Choice(_FLAVOURS),
    multiple=True,
    help="Kind of rules: access lists, firewalls, IP chains; may be given again.",
)
@click.option(
    "--rules",
    "sizes",
    type=click.IntRange(1, 100_000),
    multiple=True,
    help="How many rules; may be given again. By default 1000, 10000 and 100000.",
)
@click.option("--ipv6", is_flag=True, help="IPv6 rules and packets; without the other ways.")
@click.option(
    "--runs", type=click.IntRange(1), default=9, show_default=True, help="Runs of each look-up."
)
@click.option("--alone", is_flag=True, help="Without the other ways, which take the most time.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
def wildcard(
    flavours: tuple[str, ...],
    sizes: tuple[int, ...],
    ipv6: bool,
    runs: int,
    alone: bool,
    as_json: bool,
) -> None:
    """Time the wildcard table: nanoseconds per look-up, changes per second.

    Rules are generated, in the manner of ClassBench, and looked up inside the kernel: by packets
    that match one (another one each time, and with the locality of flows) and by packets of
    anything. Beside the table the same rules are looked up by a list of masks over a hash map, and
    by a scan from the first to the last. All ways have to find the same rules. Needs root.
    """
    from towpath.bench import BenchError
    from towpath.bench.wildcard import measure

    try:
        report = measure(
            flavours or _FLAVOURS,
            sizes or _SIZES,
            version=6 if ipv6 else 4,
            runs=runs,
            others=not alone,
            progress=_say,
        )
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        _print_wildcard(report)


@bench.command(
    examples={
        "towpath bench recorder": "What a capture costs, and what gets to a file.",
        "towpath bench recorder --file /var/tmp/x.pcapng": "On the disk that matters.",
    }
)
@click.option(
    "--runs", type=click.IntRange(1), default=15, show_default=True, help="Runs of each case."
)
@click.option(
    "--rate-64", type=int, default=500_000, show_default=True, help="64-byte frames a second."
)
@click.option(
    "--rate-1494", type=int, default=200_000, show_default=True, help="1494-byte frames a second."
)
@click.option(
    "--seconds", type=float, default=5.0, show_default=True, help="How long to offer them."
)
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("towpath-bench.pcapng"),
    show_default=True,
    help="File to write, which is removed.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
def recorder(
    runs: int, rate_64: int, rate_1494: int, seconds: float, path: Path, as_json: bool
) -> None:
    """Time captures: nanoseconds per packet, packets a second to a file.

    A packet of a known flow is balanced without a capture and with several kinds of it. Then
    packets come at a given rate, both sides of each are captured, and a thread writes the file.
    Needs root.
    """
    from towpath.bench.recorder import measure

    report = measure(runs=runs, rates={64: rate_64, 1494: rate_1494}, seconds=seconds, path=path)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        _print_recorder(report)


def _print_recorder(report: RecorderReport) -> None:
    from towpath.cli.output import print_table

    for size, costs in report.costs.items():
        rows = [
            (
                each.name,
                *(f"{ns:.1f}" for ns in (each.off.p50_ns, each.on.p50_ns, each.on.min_ns)),
                f"{each.more_ns:+.1f}",
            )
            for each in costs
        ]
        columns = (f"{size} bytes", "off p50", "on p50", "on min", "more")
        print_table(columns, rows, numbers=columns[1:])
        click.echo()
    rows = [
        (
            f"{each.size}",
            f"{each.direction}, the last {each.keep >> 20} MiB" if each.keep else each.direction,
            f"{each.offered / each.seconds:,.0f}",
            f"{each.packets / each.seconds:,.0f}",
            f"{each.frames:,}",
            f"{each.lost:,}",
            f"{each.file_bytes / each.seconds / 1e6:,.0f}",
            f"{1e9 * each.reader_cpu / max(each.matched if each.keep else each.frames, 1):.0f}",
        )
        for each in report.throughput
    ]
    titles = (
        "bytes",
        "sides",
        "offered/s",
        "packets/s",
        "frames",
        "lost",
        "MB/s",
        "reader ns/frame",
    )
    print_table(titles, rows, numbers=titles)
    click.echo(f"\nLinux {report.kernel}.")


def _say(what: str) -> None:
    """Say what is being done, to a person who waits."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{what} ...\r", nl=False, err=True)


def _print_wildcard(report: WildcardReport) -> None:
    from towpath.cli.output import print_table

    rows = [row for each in report.sets for row in _lookup_rows(each)]
    columns = ("set", "rules", "packets", "way", "p50", "min", "max", "tuples", "compared", "worst")
    print_table(columns, rows, numbers=columns[1:2] + columns[4:])
    click.echo(
        "\nNanoseconds per look-up, the floor included; hash tables looked into and rules compared "
        f"per packet, and both for the worst packet.\nLinux {report.kernel}.\n"
    )
    about = ("set", "rules", "floor", "load s", "bytes/rule", "tuples", "masks")
    changes = ("changes/s", "p50 us", "p99 us", "max us")
    print_table(
        about + changes, [_set_row(each) for each in report.sets], numbers=about[1:] + changes
    )


def _lookup_rows(each: SetReport) -> list[tuple[str, ...]]:
    return [
        (
            each.flavour,
            f"{each.rules}",
            lookups.trace,
            lookups.way,
            *(
                f"{ns:.1f}"
                for ns in (lookups.timing.p50_ns, lookups.timing.min_ns, lookups.timing.max_ns)
            ),
            *(
                (
                    f"{lookups.cost.mean_tuples:.2f}",
                    f"{lookups.cost.mean_rules:.2f}",
                    f"{lookups.cost.most}",
                )
                if lookups.cost
                else ("", "", "")
            ),
        )
        for lookups in each.lookups
    ]


def _set_row(each: SetReport) -> tuple[str, ...]:
    changes = each.changes
    return (
        each.flavour,
        f"{each.rules}",
        f"{each.floor_ns:.1f}",
        f"{each.load_seconds:.2f}",
        f"{each.bytes_per_rule:.0f}",
        f"{each.tuples}",
        f"{each.masks or ''}",
        f"{changes.per_second:.0f}",
        f"{changes.p50_us:.1f}",
        f"{changes.p99_us:.1f}",
        f"{changes.most_us:.1f}",
    )


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
