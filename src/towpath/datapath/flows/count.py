# SPDX-License-Identifier: Apache-2.0
"""How many flows backends have that go on: what a drain waits for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.flows.flow_table import Filter
from towpath.kernel.bpf.rcu import wait_for_readers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.core.lb.states import BackendKey
    from towpath.datapath.flows.flow_table import FlowTable
    from towpath.datapath.flows.nat_table import NatFlows

    Array = np.ndarray[Any, Any]

ENDED_SECONDS = 10.0
"""A flow whose client has sent FIN or RST has ended when no packet came for so long.

So has one of which nothing but SYNs came: another SYN is given a backend anew.
"""


@dataclass(frozen=True, slots=True)
class FlowCounter:
    """Who is to be counted, as of one moment. Any thread may count."""

    table: FlowTable
    handles: Mapping[BackendKey, int]
    translated: NatFlows
    timeouts: Mapping[int, int]
    """Seconds after which a flow of UDP has ended, by its backend's handle."""

    def count(self, idle: float) -> dict[BackendKey, int]:
        """Return the flows of each that were seen in the last ``idle`` seconds.

        Of those that their client has ended or only begun, in ENDED_SECONDS; of UDP before their
        time is over. Waits for
        the packets now in flight: one that is given a backend by a table that was replaced
        before this is counted, too. KernelError.
        """
        wait_for_readers()
        step = self.table.resolution_seconds
        totals: Counter[int] = Counter()
        wanted = Filter(handles=frozenset(self.handles.values()), max_idle_seconds=idle + step)
        for chunk in self.table.chunks(wanted):
            established = ~(chunk.ending | chunk.opening)
            on = established | (chunk.idle_seconds <= min(idle, ENDED_SECONDS) + step)
            on &= chunk.idle_seconds <= self._longest(chunk.handles) + step
            handles, numbers = np.unique(chunk.handles[on], return_counts=True)
            totals.update(dict(zip(handles.tolist(), numbers.tolist(), strict=True)))
        totals += self.translated.going_on(set(self.handles.values()), idle, ENDED_SECONDS)
        return {key: totals[handle] for key, handle in self.handles.items()}

    def _longest(self, handles: Array) -> Array:
        """Seconds after which the flow of each handle has ended whatever came before."""
        each, at = np.unique(handles, return_inverse=True)
        seconds = [self.timeouts.get(handle, np.inf) for handle in each.tolist()]
        return np.asarray(np.array(seconds, float)[at])
