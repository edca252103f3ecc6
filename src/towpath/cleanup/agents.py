# SPDX-License-Identifier: Apache-2.0
"""What agents have left on this node, and its end: for who wants Towpath gone."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from towpath.agent.files import own_names
from towpath.agent.parts import Given
from towpath.agent.run import sole
from towpath.agent.writer import Writer
from towpath.capabilities import CAPABILITIES
from towpath.cleanup import record
from towpath.datapath.neigh.wanted import Wanted
from towpath.model.settings import Config, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def left(state: State) -> list[Path]:
    """Return what is there, of which a reboot leaves only the files. OSError."""
    return [*_pins(state), *_files(state)]


def remove(state: State) -> None:
    """Take all of it out of the kernel and off the disk; services end.

    AgentError: an agent runs. KernelError, OSError: what is left can be removed later.
    """
    config = replace(Config(), state=state)
    with ExitStack() as undo:
        if state.directory.is_dir():
            undo.enter_context(sole(state.directory))
        # Services that were set through the API are to go as well.
        for each in _files(state):
            shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)
        writer = undo.enter_context(Writer())
        for capability in CAPABILITIES:
            if capability.left(config):
                given = Given(config, writer, capability.pins(config), Wanted())
                capability.load("agent", "forget")(given)
    for each in (state.pins, state.directory):
        with suppress(OSError):  # somebody else's are in it, or it is mounted there
            each.rmdir()


def _pins(state: State) -> Iterator[Path]:
    if state.pins.is_dir():
        yield from sorted(state.pins.iterdir())


def _files(state: State) -> Iterator[Path]:
    """Of the state directory what is ours; not what a clean-up that has begun still needs."""
    if state.directory.is_dir():
        for each in sorted(state.directory.iterdir()):
            begun = each.name == record.DIRECTORY.name and record.read(each) is not None
            if each.name.startswith(own_names()) and not begun:
                yield each
