# SPDX-License-Identifier: Apache-2.0
"""``towpath doctor``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towpath.cli.command import LazyGroup, Verb
from towpath.cli.output import Format, emit, output_option, print_table, say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.doctor import Capability

EXAMPLES = {
    "towpath doctor": "What this kernel can do, on any device.",
    "towpath doctor --config /etc/towpath/towpath.yaml": (
        "And whether this configuration can work here."
    ),
    "towpath doctor --config FILE -o json | jq '.[].attached[]'": (
        "Who is attached to the devices: Towpath and others."
    ),
    "towpath doctor cgroup": "More of cgroups: tags of version 1, and who else is attached.",
    "towpath doctor -o json | jq -r '.[] | select(.state != \"available\") | .name'": (
        "What is not as it should be."
    ),
}

EXIT_CODES = {
    "0": "Nothing that is needed is missing.",
    "1": "Something that is needed is missing: one line on stderr names it.",
    "2": "Wrong usage.",
}


VERBS = {
    "cgroup": Verb(
        "towpath.cli.doctor_cgroup:cgroup",
        "Whether programs of cgroups run, and who is in the way.",
    )
}


@click.group(
    cls=LazyGroup,
    verbs=VERBS,
    examples=EXAMPLES,
    exit_codes=EXIT_CODES,
    invoke_without_command=True,
)
@click.option(
    "--config",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The agent's configuration: also probe its devices, and what it needs is needed.",
)
@output_option
@click.pass_context
def doctor(ctx: click.Context, path: Path | None, form: Format) -> None:
    """Probe what this kernel can do, and say what is lost where it can't.

    Each capability is available, has a fallback in its place, is missing, or is
    unknown where it could not be probed; without root much is. JSON and YAML are a
    list of {name, state, found, needed_by, loses, required, attached}.

    Of each device of the configuration it is told which programs are attached to it,
    whoever has attached them: at XDP and at both sides of tc.

    Probing tries the thing itself, never asks for the kernel's version, and disturbs
    nobody: on a device that is up nothing is attached to find out.
    """
    if ctx.invoked_subcommand is not None:
        return
    from towpath.doctor import doctor as diagnose
    from towpath.model import parse_config

    config = None if path is None else parse_config(path.read_text(), str(path))
    found = diagnose(config)
    emit([asdict(each) for each in found], form, lambda: _table(found))
    fatal = [each for each in found if each.fatal]
    if fatal:
        what = "this configuration" if path else "a load balancer"
        reasons = "; ".join(f"{each.name}: {each.found}" for each in fatal)
        say(f"Error: {what} can't work here: {reasons}", error=True)
        sys.exit(1)


def _table(found: Iterable[Capability]) -> None:
    print_table(
        ("capability", "state", "found", "loses", "for"),
        [(each.name, each.state, each.found, each.loses, each.needed_by) for each in found],
    )
