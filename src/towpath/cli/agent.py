# SPDX-License-Identifier: Apache-2.0
"""``towpath agent``."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

import click

from towpath.cli.command import Manual
from towpath.printable import printable_lines

EXAMPLES = {
    "towpath agent --config /etc/towpath/towpath.yaml": "In the foreground; systemd's way too.",
    "kill -HUP $(pidof -s towpath)": "Read the file again at once.",
    "towpath agent --config lb.yaml --detach-on-exit": "Leave nothing behind: for trying out.",
}

FILES = {
    "FILE": (
        "YAML: devices, source, limits, checks, api, metrics, state, services."
        " Read again when it changes; services change at once, the rest needs a restart."
    ),
    "/run/towpath/agent.sock": "The API (api.socket), for the owner and the group.",
    "/var/lib/towpath/state.db": "Services set through the API (state.directory).",
    "/sys/fs/bpf/towpath": "The datapath (state.pins).",
}


class OneEntry(logging.Formatter):
    """Keeps what is logged from looking like something else, whatever is in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Escape what can't be seen; what isn't its first line is indented."""
        return printable_lines(super().format(record)).replace("\n", "\n    ")


def _level(name: str) -> int:
    return logging.getLevelNamesMapping()[name.upper()]


LEVELS = ("debug", "info", "warning", "error")


@click.command(cls=Manual, examples=EXAMPLES, files=FILES)
@click.option(
    "--config",
    "path",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML configuration file.",
)
@click.option(
    "--detach-on-exit",
    is_flag=True,
    help="Take everything out of the kernel on exit. Otherwise balancing goes on without the"
    " agent, and the next one takes over.",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="info",
    show_default=True,
    help="What is logged to stderr; debug includes the verifier's log of a refused program.",
)
def agent(path: Path, detach_on_exit: bool, log_level: str) -> None:
    """Run the agent: attach to the devices, balance, serve the API, follow FILE.

    Services come from FILE and from the API; each can be changed only where it
    came from. A FILE that is wrong is refused whole, with every problem logged
    and shown by `towpath status`; what was in force stays in force.

    SIGTERM and SIGINT end the agent, SIGHUP makes it read FILE at once.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # FILE is still to be read
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneEntry("%(levelname)s: %(message)s"))
    # Debug is about Towpath: pyroute2 would dump what each device says.
    logging.basicConfig(level=max(logging.INFO, _level(log_level)), handlers=[handler])
    logging.getLogger("towpath").setLevel(_level(log_level))
    from towpath.agent.garbage import paused

    with paused():  # a tenth of a second of collections otherwise
        from towpath.agent.run import run
        from towpath.kernel.errors import VerifierError

    try:
        run(path.absolute(), detach_on_exit=detach_on_exit)
    except VerifierError as error:
        logging.getLogger(__name__).debug("the verifier's log:\n%s", error.log)
        raise
