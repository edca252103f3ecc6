# SPDX-License-Identifier: Apache-2.0
"""``towpath doctor cgroup``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towpath.cli.cgroup import program_table
from towpath.cli.command import Manual
from towpath.cli.output import Format, emit, output_option, print_table, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.doctor.cgroup_report import CgroupDiagnosis, TaggingController

EXAMPLES = {
    "towpath doctor cgroup": "Of the node's cgroup.",
    "towpath doctor cgroup --cgroup /sys/fs/cgroup/kubepods.slice": "Of another one.",
    "towpath doctor cgroup -o json | jq -r '.affected[].cgroup'": (
        "Whose programs tags of version 1 take out of effect."
    ),
}
EXIT_CODES = {
    "0": "Programs run, wherever they are attached.",
    "1": "They don't, or it could not be tried, or the first tag of version 1 would end it.",
    "2": "Wrong usage.",
}


@click.command(cls=Manual, examples=EXAMPLES, exit_codes=EXIT_CODES)
@click.option(
    "--cgroup",
    "path",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="As cgroup.path of the configuration; by default the node's is found.",
)
@output_option
def cgroup(path: Path | None, form: Format) -> None:
    """Find out whether programs of cgroups run for the processes that they are attached for.

    Kernels before 5.15 may have one word in each socket for its cgroup and for the tag of net_cls
    and net_prio, controllers of version 1. The first tag that is written there, by anybody, makes
    all sockets from then on belong to the root, so that programs below it don't run for them.

    A process connects by UDP in a cgroup made for it, and a program is attached meanwhile that
    counts that: nothing is sent. No tag is ever written.
    """
    from towpath.doctor.cgroup_report import diagnose

    found = diagnose(path)
    emit(asdict(found), form, lambda: _print(found))
    if found.state != "well" or not found.proven:
        sys.exit(1)


def _print(found: CgroupDiagnosis) -> None:
    print_table(("cgroups", ""), _lines(found))
    if found.affected:
        say()
        which = "don't run" if found.state == "bypassed" else "would not run"
        rows = [(each.cgroup, ", ".join(each.hooks)) for each in found.affected]
        print_table((f"programs that {which} for new sockets", "hooks"), rows)
    if found.programs:
        say()
        program_table(asdict(each) for each in found.programs)


def _lines(found: CgroupDiagnosis) -> Iterator[tuple[str, str]]:
    yield "version 2", ", ".join(found.mounted) or "not mounted here"
    for each in found.tagging:
        yield each.name, _described(each)
    faults = {True: "one word for cgroup and tag", False: "no", None: "can't be told"}
    yield "fault", faults[found.fault]
    yield found.state, found.seen
    yield "attached to", f"{found.root or 'nothing'} ({found.why})"
    yield "proven" if found.proven else "not proven", found.proof
    for advice in found.advice:
        yield "to do", advice


def _described(each: TaggingController) -> str:
    if not each.hierarchy:
        return "no hierarchy of version 1"
    where = f"at {each.mounted[0]}" if each.mounted else "mounted elsewhere: tags can't be seen"
    tags = ", ".join(f"{cgroup} ({value})" for cgroup, value in each.tags.items())
    told = f"tags: {tags}" if tags else "no tags" if each.mounted else ""
    return "; ".join(filter(None, (f"version 1, {each.cgroups} cgroups, {where}", told)))
