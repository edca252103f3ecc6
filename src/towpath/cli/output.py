# SPDX-License-Identifier: Apache-2.0
"""How commands print: ``-o table|json|yaml``, the same for every verb that reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from towpath.printable import printable_lines

Format = Literal["table", "json", "yaml"]
Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_SOCKET = Path("/run/towpath/agent.sock")

# Columns of output that does not go to a terminal: more than any line needs.
PIPE_WIDTH = 10_000

output_option = click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="Table for people, JSON or YAML for programs.",
)

socket_option = click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="TOWPATH_SOCKET",
    default=DEFAULT_SOCKET,
    show_default=True,
    show_envvar=True,
    help="The agent's API socket.",
)


def emit(data: object, form: Format, table: Callable[[], None]) -> None:
    """Print data (JSON types only) as form asks, or let table print it."""
    if form == "json":
        click.echo(json.dumps(data, indent=2))
    elif form == "yaml":
        import yaml

        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=False), nl=False)
    else:
        table()


def say(text: str = "", *, error: bool = False) -> None:
    """Print lines as a terminal may have them; ``error``: to stderr."""
    click.echo(printable_lines(text), err=error)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Iterable[str] = ()
) -> None:
    """Print a table; the columns named in numbers are aligned right.

    In a terminal rich fits it to the width. In a pipe or a file lines are as long
    as their content, so that nothing is cut off for the program that reads them.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    right = set(numbers)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=False
        )
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    render(table)


def render(renderable: object) -> None:
    """Print something rich can draw."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else PIPE_WIDTH, highlight=False)
    console.print(renderable)


def cell(value: object) -> str:
    """One value as a person reads it, and a terminal may have it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable_lines(str(value))


def count(number: int) -> str:
    """A number of things, grouped by thousands."""
    return f"{number:,}"


def percent(share: float) -> str:
    """A share of 0..1 as a percentage; small ones keep their digits."""
    value = 100 * share
    return f"{value:.0f} %" if value in {0, 100} else f"{value:.2f} %"
