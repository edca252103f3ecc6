# SPDX-License-Identifier: Apache-2.0
"""How many translated flows backends have: what a drain of services with forwarding snat waits for.

An entry isn't searched for when it is old, it is there until another flow wants its place. So
what counts is when it was last seen, and whether both sides have ended it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from towpath.kernel.jiffies import per_second

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from towpath.datapath.program import LoadedProgram
    from towpath.kernel.jiffies import Jiffies

    Array = np.ndarray[Any, Any]

_SEEN_MASK = 0xFFFF


class NatFlows:
    """``nat_heads`` and ``nat_flows`` of ``bpf/nat_maps.h``, read when asked, never written.

    ``shift``: how many low bits of jiffies `seen` lacks; ``fin`` and ``rst``: NAT_FIN and NAT_RST;
    ``jiffies`` tells the time, ``hz`` how fast it goes. For any thread.
    """

    def __init__(
        self,
        heads: Array,
        flows: Array,
        *,
        shift: int,
        fin: int,
        rst: int,
        jiffies: Callable[[], int],
        hz: int,
    ) -> None:
        self._life = heads["life"]
        self._ways = flows["way"]
        self._shift = shift
        self._fin, self._rst = fin, rst
        self._jiffies = jiffies
        self._step = (1 << shift) / hz

    @classmethod
    def of(cls, program: LoadedProgram, jiffies: Jiffies) -> Self:
        """Return the table of a program, for as long as that is open."""
        return cls(
            program.rows("nat_heads"),
            program.rows("nat_flows"),
            shift=program.constant("nat_limits", "NAT_SEEN_SHIFT"),
            fin=program.constant("nat_marks", "NAT_FIN"),
            rst=program.constant("nat_marks", "NAT_RST"),
            jiffies=jiffies.now,
            hz=per_second(),
        )

    def counts(self, handles: Collection[int], idle: float, ended: float) -> Counter[int]:
        """Return how many flows each handle has that were seen in the last ``idle`` seconds.

        Of those that both sides or a reset have ended, that were seen in ``ended`` seconds.
        KernelError.
        """
        sets, ways = np.nonzero(np.isin(self._ways["handle"], list(handles)))
        rows, life = self._ways[sets, ways], self._life[sets, ways]
        now = self._jiffies() >> self._shift
        age = ((now - life["seen"].astype(np.int64)) & _SEEN_MASK) * self._step
        over = (life["client"] & life["backend"] & self._fin) != 0
        over |= ((life["client"] | life["backend"]) & self._rst) != 0
        limit = np.where(over, min(idle, ended), idle) + self._step
        counted = rows["handle"][(rows["ref"] != 0) & (age <= limit)]
        return Counter(counted.tolist())
