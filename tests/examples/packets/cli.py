# SPDX-License-Identifier: Apache-2.0
"""``towpath packets``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from towpath.cli.command import Manual
from towpath.cli.output import Format, emit, output_option, socket_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command("packets", cls=Manual, examples={"towpath packets": "How many there were."})
@socket_option
@output_option
def command(socket_path: Path, form: Format) -> None:
    """UDP packets that came in for the ports of the configuration."""
    from towpath.api.client import Client  # noqa: PLC0415 - `--help` stays fast

    with Client(socket_path) as client:
        found = client.get("packets")
    emit(found, form, lambda: click.echo(f"{found['packets']} packets"))
