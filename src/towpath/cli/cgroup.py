# SPDX-License-Identifier: Apache-2.0
"""``towpath cgroup``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towpath.cli.command import ManualGroup
from towpath.cli.output import Format, emit, output_option, print_table, say, socket_option

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXAMPLES = {
    "towpath cgroup show": "Whether programs run for the node's processes, and if not why.",
    "towpath cgroup programs /sys/fs/cgroup/system.slice": "Who else is attached there.",
}
_COLUMNS = ("hook", "cgroup", "how", "program", "id", "link", "pinned at")


@click.group("cgroup", cls=ManualGroup, examples=EXAMPLES)
def command() -> None:
    """Where programs of cgroups are attached so that they take effect, and which run there."""


@command.command("show", examples={"towpath cgroup show": "All of it."})
@socket_option
@output_option
def show(socket_path: Path, form: Format) -> None:
    """Show where the agent's programs of cgroups go, whether they were seen to run, and all others.

    To see it a process in a cgroup below is made to connect, each time that cgroups or mounts have
    changed.
    """
    from towpath.api.client import Client

    with Client(socket_path) as client:
        found = client.get("cgroup")
    emit(found, form, lambda: _print(found))


@command.command("programs", examples={"towpath cgroup programs": "Of the node's cgroup."})
@click.argument("path", required=False, type=click.Path(path_type=Path))
@output_option
def programs(path: Path | None, form: Format) -> None:
    """List all programs that run in a cgroup, by whomever, in the order in which they do.

    Those of the cgroups that it is in are among them. No agent is needed.
    """
    from towpath.datapath.cgroup.level import Level
    from towpath.datapath.cgroup.report import programs as listed

    with Level(path) as level:
        found = [asdict(each) for each in listed(level.path)]
    emit(found, form, lambda: program_table(found))


def _print(found: Mapping[str, Any]) -> None:
    say(f"cgroup: {found['cgroup'] or 'none'} ({found['why']})")
    if found["within"]:
        say(f"only what is in cgroup number {found['within']['id']}")
    say(f"{'proven' if found['proven'] else 'not proven'}: {found['proof']}")
    if found["programs"]:
        say()
        program_table(found["programs"])


def program_table(found: Iterable[Mapping[str, Any]]) -> None:
    """Print programs of `documents.CgroupProgram`, as JSON types."""
    rows = [
        (
            each["hook"],
            each["cgroup"],
            each["how"],
            each["name"],
            each["program_id"],
            each["link_id"],
            ", ".join(each["pins"]),
        )
        for each in found
    ]
    print_table(_COLUMNS, rows, numbers=("id", "link"))
