# SPDX-License-Identifier: Apache-2.0
"""Which next hops don't answer.

The kernel tells when it gives one up, and goes on asking for those that it manages; so a state is
"failed" in one moment and "incomplete" in the next. A next hop counts as silent from the first
time that it was given up until it has answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.datapath.neigh.next_hops import REASONS, Trouble
from towpath.kernel.net.neighbours import FAILED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from towpath.datapath.neigh.keeper import Kept
    from towpath.kernel.net.neighbours import Key


class Silence:
    """Next hops that were given up and have not answered since."""

    def __init__(self) -> None:
        self._silent: set[Key] = set()

    def look_at(self, kept: Kept) -> None:
        """Follow an entry that is there, made or changed."""
        key = kept.entry.key
        if kept.entry.state & FAILED or kept.unanswered:
            self._silent.add(key)
        elif self._silent and kept.valid:
            self._silent.discard(key)

    def keep(self, wanted: Collection[Key]) -> None:
        """Forget all others."""
        self._silent = {key for key in self._silent if key in wanted}

    def __iter__(self) -> Iterator[Key]:
        return iter(self._silent)

    def trouble(self, hops: Sequence[Key], name: Callable[[int], str]) -> Trouble:
        """What it means for who is reached by these hops, some of which are silent.

        ``name``: that of a device's index.
        """
        silent = [hop for hop in hops if hop in self._silent]
        which = ", ".join(f"{hop.address} on {name(hop.device)}" for hop in silent)
        some = f"{len(silent)} of its {len(hops)} next hops" if len(silent) < len(hops) else ""
        if some:
            return Trouble("no_answer", f"{some} don't answer: {which}")
        return Trouble("no_answer", f"{REASONS['no_answer']}: {which}")
