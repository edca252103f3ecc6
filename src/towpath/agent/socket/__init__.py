# SPDX-License-Identifier: Apache-2.0
"""Services at the socket in an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.agent.socket.part import Sockets
from towpath.datapath.socket.balancer import detach

if TYPE_CHECKING:
    from towpath.agent.parts import Given, Part


def start(given: Given) -> Part:
    """Balance at sockets, going on where an earlier agent left off."""
    return Sockets(given)


def forget(given: Given) -> None:
    """Remove what an earlier agent left that had the section."""
    detach(given.pins)
