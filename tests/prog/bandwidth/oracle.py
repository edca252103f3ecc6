# SPDX-License-Identifier: Apache-2.0
"""When packets of an aggregate leave, in seconds and fractions, by the words of the design page.

Shares nothing with the program: times are rational numbers, flows have names, a flow's time is
kept for as long as it is ahead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

_TICK = Fraction(1 << 20, 10**9)


@dataclass
class Aggregate:
    """One, at so many bits a second."""

    rate: int
    horizon: Fraction
    burst: Fraction
    drained: Fraction = Fraction(0)
    """When all that was charged will have left."""
    flows: dict[int, Fraction] = field(default_factory=dict)
    counted: tuple[int, int] = (0, 0)
    """In which millisecond, more or less, and how many flows were ahead then."""

    def sharing(self, now: Fraction, flow: int) -> int:
        """How many flows share the rate, this one included. Nobody shares where nothing waits."""
        if self.drained <= now:
            return 1
        tick = now // _TICK
        if self.counted[0] != tick:
            self.counted = (tick, sum(each > now for each in self.flows.values()))
        ahead = self.counted[1]
        return max(ahead, 1) if self.flows.get(flow, Fraction(0)) > now else ahead + 1

    def refuses(self, now: Fraction, flow: int) -> str:
        """Why a packet isn't taken; "": it is."""
        own = max(self.flows.get(flow, Fraction(0)), now)
        if self.drained - now > 2 * self.horizon:
            return "drop_full"
        if self.drained - now > self.horizon and own - now > self.horizon:
            return "drop_excess"
        return ""

    def offer(self, now: Fraction, flow: int, size: int) -> tuple[str, Fraction | None]:
        """What becomes of a packet of so many bytes, and when it leaves."""
        number = Fraction(self.sharing(now, flow))
        refused = self.refuses(now, flow)
        if refused:
            return refused, None
        own = max(self.flows.get(flow, Fraction(0)), now)
        leaves = min(max(self.drained, now), own)
        takes = Fraction(8 * size, self.rate)
        if self.drained - now > self.horizon / 2:
            number += Fraction(number, 8)
        self.drained = max(self.drained, now - self.burst) + takes
        self.flows[flow] = min(own + number * takes, now + 2 * self.horizon)
        return ("delayed" if leaves > now else "sent"), leaves
