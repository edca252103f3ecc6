# SPDX-License-Identifier: Apache-2.0
"""Click commands whose ``--help`` reads like a manual page, and that are imported late."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

EXIT_CODES = {
    "0": "Done.",
    "1": "Refused or failed: one line on stderr says what, where and what to do.",
    "2": "Wrong usage.",
}


class Manual(click.Command):
    """A command with sections below its options.

    Args:
        examples: Command lines, and what each of them does.
        files: What each of the files it deals with is.
        exit_codes: What each exit code means, when there are others than EXIT_CODES.
    """

    def __init__(
        self,
        *args: Any,
        examples: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
        exit_codes: Mapping[str, str] = EXIT_CODES,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("context_settings", SETTINGS)
        super().__init__(*args, **kwargs)
        self.examples = examples or {}
        self.sections = {"Files": files, "Exit codes": exit_codes}

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections that are not empty."""
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for line, meaning in self.examples.items():
                    formatter.write(f"{'':{formatter.current_indent}}# {meaning}\n")
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        for title, entries in self.sections.items():
            if entries:
                with formatter.section(title):
                    formatter.write_dl(list(entries.items()))


class Verb(NamedTuple):
    """Where a command is, as ``module:attribute``, and its line in the listing."""

    where: str
    summary: str

    def load(self) -> click.Command:
        """Import the module and return the command."""
        module, _, attribute = self.where.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


class ManualGroup(Manual, click.Group):
    """A group of commands that were imported with it."""

    command_class = Manual


class LazyGroup(ManualGroup):
    """Knows its verbs by name and lists them without importing any."""

    def __init__(self, *args: Any, verbs: Mapping[str, Verb], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order they were given, which is the order of use."""
        del ctx
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        del ctx
        verb = self.verbs.get(cmd_name)
        return verb.load() if verb else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The listing, from the summaries; click's own would import every verb."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in self.verbs.items()])
