# SPDX-License-Identifier: Apache-2.0
"""What the agent refuses, and how it says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.datapath.errors import DatapathError
from towpath.errors import Error
from towpath.kernel.errors import KernelError
from towpath.model import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable


class AgentError(Error):
    """The agent could not start or do what was asked; the message is for its operator."""


class RequestError(AgentError):
    """A request refused whole, nothing changed.

    Attributes:
        problems: Everything that is wrong with it, never empty.
    """

    def __init__(self, problems: Iterable[Problem] | str) -> None:
        self.problems = (Problem(problems),) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class InvalidError(RequestError):
    """The request makes no sense whatever the state is."""


class ConflictError(RequestError):
    """The request contradicts what is there: another owner, name or VIP."""


class NotFoundError(RequestError):
    """The request names something that is not there."""


# What a change may be refused with; anything else is a fault of ours.
REFUSALS = (ConfigError, AgentError, DatapathError, KernelError)
