# SPDX-License-Identifier: Apache-2.0
"""What is known of a remembered flow besides its backend, said a second time in plain Python."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
IDLE_SECONDS = 300
"""A flow that was not seen for longer may give its ports to another."""


class Phase(Enum):
    """How far a client has come with a connection."""

    BEGUN = auto()
    """It has sent nothing but SYNs."""
    GOING_ON = auto()
    ENDED = auto()
    """It has sent FIN or RST, and no SYN since."""


def asks_for_a_connection(flags: int) -> bool:
    """Whether a segment is the first one of a handshake: SYN alone of the four."""
    return flags & (SYN | ACK | RST | FIN) == SYN


@dataclass
class Life:
    """A flow since it was given its backend."""

    phase: Phase = Phase.GOING_ON
    seconds_ago: float = 0.0
    """When its last packet came."""

    @classmethod
    def begins_with(cls, flags: int) -> Life:
        """Of a flow that nobody knew before this segment; 0 for a datagram."""
        made = cls(Phase.BEGUN)
        made.goes_on_with(flags)
        return made

    def goes_on_with(self, flags: int) -> None:
        """A packet came."""
        self.seconds_ago = 0.0
        if asks_for_a_connection(flags):
            if self.phase is Phase.ENDED:
                self.phase = Phase.BEGUN
        elif flags & (FIN | RST):
            self.phase = Phase.ENDED
        elif self.phase is Phase.BEGUN:
            self.phase = Phase.GOING_ON

    def gives_way_to(self, flags: int) -> bool:
        """Whether a segment may begin another flow with these addresses and ports."""
        over = self.phase is not Phase.GOING_ON or self.seconds_ago > IDLE_SECONDS
        return asks_for_a_connection(flags) and over
