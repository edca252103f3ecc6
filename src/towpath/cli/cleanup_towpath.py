# SPDX-License-Identifier: Apache-2.0
"""``towpath cleanup towpath``."""

from __future__ import annotations

from pathlib import Path

import click

from towpath.cli.command import Manual
from towpath.cli.output import Format, emit, output_option, print_table, say

EXAMPLES = {
    "towpath cleanup towpath": "What agents have left on this node.",
    "towpath cleanup towpath --remove": "Take it out of the kernel and off the disk.",
}


@click.command(cls=Manual, examples=EXAMPLES)
@click.option("--remove", "removes", is_flag=True, help="Take it out. Services end.")
@click.option(
    "--state",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/towpath"),
    show_default=True,
    help="state.directory of the agents.",
)
@click.option(
    "--pins",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/sys/fs/bpf/towpath"),
    show_default=True,
    help="state.pins of the agents.",
)
@output_option
def towpath(removes: bool, directory: Path, pins: Path, form: Format) -> None:
    """Take out what Towpath's own agents have left on this node: programs, tables, files.

    They leave it on purpose, so that services go on without them. Without an option nothing is
    changed: what there is is listed. --remove is refused while an agent runs. Connections of
    clients outside end with it; an agent that ends with --detach-on-exit hands them to the kernel.
    """
    from towpath.cleanup import agents
    from towpath.model.settings import State

    state = State(directory, pins)
    if removes:
        agents.remove(state)
        say("nothing of Towpath is left on this node")
        return
    found = [str(each) for each in agents.left(state)]

    def table() -> None:
        if found:
            print_table(("what",), [(each,) for each in found])
        else:
            say("agents have left nothing")

    emit({"left": found}, form, table)
