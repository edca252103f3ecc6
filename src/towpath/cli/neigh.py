# SPDX-License-Identifier: Apache-2.0
"""``towpath neigh``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from towpath.cli.command import ManualGroup
from towpath.cli.output import Format, emit, output_option, print_table, say, socket_option

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.documents import NextHop, NextHops

EXAMPLES = {
    "towpath neigh list": "Which hosts on the links packets go to, and whether they answer.",
    "towpath neigh list -o json": "For a program.",
}
_COLUMNS = ("next hop", "device", "state", "mac", "owner", "age", "probes", "for")
_SHOWN = 3
"""Destinations behind a next hop that are named; the others are counted."""


@click.group("neigh", cls=ManualGroup, examples=EXAMPLES)
def command() -> None:
    """Next hops that are kept resolved: backends on a link, and gateways."""


@command.command("list", examples={"towpath neigh list": "All of them."})
@socket_option
@output_option
def list_(socket_path: Path, form: Format) -> None:
    """List next hops, what the kernel knows of them, and who is reached by each.

    owner says whose entry it is: towpath's is kept resolved whether packets are sent or not;
    the kernel's soon will be; other is the user's or another program's, and is left alone.
    age is since something said that the host is there.

    What can't be reached is listed below, with the reason, and what two routes are equally good
    for.
    """
    from towpath.api.client import Client
    from towpath.api.codec import plain

    with Client(socket_path) as client:
        found = client.next_hops()
    emit(plain(found), form, lambda: _print(found))


def _print(found: NextHops) -> None:
    rows = [_row(each) for each in found.next_hops]
    print_table(_COLUMNS, rows, numbers=("age", "probes"))
    for each in found.unreached:
        say(f"{each.address}: {each.trouble}")
    for doubtful in found.doubtful:
        say(f"{doubtful.address}: {doubtful.trouble}")


def _row(each: NextHop) -> tuple[str, ...]:
    behind = [str(address) for address in each.destinations]
    more = f" and {len(behind) - _SHOWN} more" if len(behind) > _SHOWN else ""
    return (
        str(each.address),
        each.device,
        each.refused or each.state,
        each.mac or "-",
        each.owner,
        "-" if each.age is None else f"{each.age:.0f} s",
        str(each.probes),
        ", ".join(behind[:_SHOWN]) + more,
    )
