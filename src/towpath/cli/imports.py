# SPDX-License-Identifier: Apache-2.0
"""``towpath import ipvs|keepalived|katran``: other load balancers' configurations as services."""

from __future__ import annotations

import glob
import platform
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from towpath.cli.command import EXIT_CODES, ManualGroup
from towpath.cli.imported import LEFT_OUT, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.core.imports.imported import Imported

Command = TypeVar("Command", bound="Callable[..., object]")

EXAMPLES = {
    "towpath import ipvs": "This host's own table.",
    "towpath import keepalived /etc/keepalived/keepalived.conf > services.yaml": "Into a file.",
    "towpath import katran setup.sh -o json": "For a program.",
    "towpath service plan services.yaml": "What it would do here.",
}
FILES = {
    "services.yaml": "What is printed: `services` of a configuration file, with comments about what"
    " differs. `towpath service apply` takes it as well, but for checks that run commands."
}
CODES = EXIT_CODES | {
    str(LEFT_OUT): "Printed, but some services are left out: stderr says which and why."
}

form_option = click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["yaml", "json"]),
    default="yaml",
    show_default=True,
    help="YAML for a configuration file, or services and notes as JSON.",
)
config_id_option = click.option(
    "--config-id",
    metavar="ID",
    help="Whose lines that begin with @ are meant.  [default: this host's name up to a dot]",
)
hz_option = click.option(
    "--hz",
    type=click.IntRange(1, 10_000),
    help="Of /proc/net/ip_vs of another kernel: its CONFIG_HZ.  [default: this kernel's]",
)


def file_argument(*, required: bool) -> Callable[[Command], Command]:
    """A file, or - for stdin."""
    path = click.Path(path_type=Path, allow_dash=True, dir_okay=False)
    return click.argument(
        "file", metavar="FILE" if required else "[FILE]", type=path, required=required
    )


@click.group("import", cls=ManualGroup, examples=EXAMPLES, files=FILES, exit_codes=CODES)
def import_() -> None:
    """Print the services that do what another load balancer does.

    Nothing is changed, and no agent is asked. What can't be carried over is told with its line and
    the reason: in comments beside a service what differs there, on stderr what isn't there at all.
    """


@import_.command(
    exit_codes=CODES,
    examples={
        "towpath import ipvs": "This host's own table.",
        "ipvsadm -Sn | towpath import ipvs -": "The same by way of ipvsadm, with lines.",
        "towpath import ipvs ip_vs.txt --from proc --hz 250": "/proc/net/ip_vs of another host.",
    },
)
@file_argument(required=False)
@click.option(
    "--from",
    "source",
    type=click.Choice(["ipvsadm", "proc", "keepalived"]),
    help="What FILE is of.  [default: what it looks like]",
)
@hz_option
@config_id_option
@form_option
def ipvs(
    file: Path | None, source: str | None, hz: int | None, config_id: str | None, form: str
) -> None:
    """IPVS: this host's table, or what FILE has of one.

    FILE is what `ipvsadm -Sn` prints, a copy of /proc/net/ip_vs, or a keepalived.conf; - is stdin.
    Without it the table of this network namespace is read.
    """
    from towpath.core.imports.ipvs import import_ipvsadm, import_proc, import_table, kind_of

    if file is None:
        from towpath.kernel.net.ipvs import read_ipvs

        show(import_table(*read_ipvs()), "towpath import ipvs", form)
        return
    text, name = read(file)
    kind = source or kind_of(text)
    if kind == "keepalived":
        imported = _keepalived(text, name, config_id)
    elif kind == "proc":
        from towpath.kernel.jiffies import per_second

        imported = import_proc(text, name, hz or per_second())
    else:
        imported = import_ipvsadm(text, name)
    show(imported, f"towpath import ipvs {name}", form)


@import_.command(
    exit_codes=CODES,
    examples={
        "towpath import keepalived /etc/keepalived/keepalived.conf": "Its virtual servers.",
        "towpath import keepalived keepalived.conf --config-id lb2": "For the host lb2.",
    },
)
@file_argument(required=True)
@config_id_option
@form_option
def keepalived(file: Path, config_id: str | None, form: str) -> None:
    """Keepalived: the virtual servers of a keepalived.conf.

    Files that it includes are read too.
    """
    text, name = read(file)
    show(_keepalived(text, name, config_id), f"towpath import keepalived {name}", form)


@import_.command(
    exit_codes=CODES,
    examples={
        "towpath import katran setup.sh": "What its commands of katran_goclient come to.",
        "katran_goclient -l 2>&1 | towpath import katran -": "What a running Katran has.",
    },
)
@file_argument(required=True)
@form_option
def katran(file: Path, form: str) -> None:
    """Katran: a script of `katran_goclient` commands, or what `katran_goclient -l` prints."""
    from towpath.core.imports.katran import import_katran

    text, name = read(file)
    show(import_katran(text, name), f"towpath import katran {name}", form)


def _keepalived(text: str, name: str, config_id: str | None) -> Imported:
    from towpath.core.imports.keepalived import import_keepalived

    own = platform.node().partition(".")[0]
    return import_keepalived(text, name, config_id=config_id or own, include=_include)


def _include(pattern: str, including: str) -> list[tuple[str, str]]:
    """Read the files of a pattern, which is relative to the file that includes it."""
    base = Path() if including == "stdin" else Path(including).parent
    # As glob(3): names that begin with a dot aren't meant by a star.
    paths = sorted(glob.glob(str(base / pattern)))  # noqa: PTH207
    return [read(Path(each))[::-1] for each in paths if Path(each).is_file()]


def read(file: Path) -> tuple[str, str]:
    """Return a file's text, and its name for messages."""
    try:
        with click.open_file(str(file), encoding="utf-8") as opened:
            return opened.read(), "stdin" if str(file) == "-" else str(file)
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{file}: not UTF-8 text: {error}") from error
