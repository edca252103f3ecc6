# SPDX-License-Identifier: Apache-2.0
"""Bandwidth of pods in an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.agent.bandwidth.part import Bandwidth
from towpath.agent.bandwidth.sourced import SourcedLimits
from towpath.agent.bandwidth.store import Changes
from towpath.datapath.bandwidth.node import detach

if TYPE_CHECKING:
    from towpath.agent.parts import Given, Part


def start(given: Given) -> Part:
    """Limit, going on where an earlier agent left off."""
    return Bandwidth(given)


def forget(given: Given) -> None:
    """Remove what an earlier agent left that had the section."""
    detach(given.pins)
    Changes(given.state).forget()
    SourcedLimits(given.state, wanted=False)
