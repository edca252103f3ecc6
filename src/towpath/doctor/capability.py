# SPDX-License-Identifier: Apache-2.0
"""What a probe answers, and what is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from towpath.kernel.bpf.attached import AttachedProgram

State = Literal["available", "fallback", "missing", "unknown"]


@dataclass(frozen=True, slots=True)
class Capability:
    """One line of the diagnosis. Its fields are those of the JSON output."""

    name: str
    """The same on every kernel; ``XDP on eth0`` for what is a device's."""
    state: State
    """available. fallback: not so, but something takes its place. missing: neither. unknown: it
    could not be probed."""
    found: str
    """What there is, which fallback is in use, or why nothing could be probed."""
    needed_by: str
    """Which part of Towpath needs it; ``..., not yet used`` if no part does so far."""
    loses: str
    """What the user goes without; empty when it is available, a guess when it is unknown."""
    required: bool
    """Without it, or what takes its place, nothing works that the configuration asks for."""
    attached: tuple[AttachedProgram, ...] = ()
    """The programs that ``found`` is about, whoever's."""

    @property
    def fatal(self) -> bool:
        """It is required and missing."""
        return self.required and self.state == "missing"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one probe found."""

    works: bool | None
    """None: it could not be probed."""
    found: str = ""
    """In words: what is there, what is not, or why it could not be probed."""
    attached: tuple[AttachedProgram, ...] = ()
    """Programs that are there."""


def yes(found: str = "") -> Answer:
    """It works."""
    return Answer(works=True, found=found)


def no(found: str = "") -> Answer:
    """It doesn't."""
    return Answer(works=False, found=found)


def unprobed(why: str) -> Answer:
    """Nobody knows."""
    return Answer(works=None, found=why)


def either(works: bool, if_yes: str, if_no: str) -> Answer:  # noqa: FBT001 -- the answer itself
    """Whichever it is, with its words."""
    return yes(if_yes) if works else no(if_no)
