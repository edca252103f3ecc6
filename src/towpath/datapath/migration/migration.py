# SPDX-License-Identifier: Apache-2.0
"""From tables of another version, or of other limits, to this program's, without a lost packet.

Services and backends are made in the new tables as any others are, by a plan, and get
other indexes and handles there; everything else that is worth keeping is copied by
which index became which. What each map holds decides how, and every map is named here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from towpath.datapath.migration.clients import ClientCopy
from towpath.datapath.migration.counters import CounterCopy
from towpath.datapath.migration.flows import FlowCopy, Heir
from towpath.datapath.migration.nat import NatCopy
from towpath.kernel.jiffies import Jiffies

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.datapath.lb.services import Installed
    from towpath.datapath.maps.pinned import PinnedMaps
    from towpath.datapath.program.program import LoadedProgram


PLANNED = frozenset(
    {
        "vips",
        "vip_lengths",
        "port_pages",
        "services",
        "quic_forms",
        "quic_servers",
        "sources",
        "maglev",
        "backends",
        "local_backends",
        "settings",
        "nat_states",
    }
)
"""Written anew from what the old ones say."""
FLOWS = frozenset({"flows", "flow_tags", "nat_heads", "nat_flows"})
CLIENTS = frozenset({"clients"})
COUNTERS = frozenset(
    {
        "verdict_cpus",
        "service_cpus",
        "backend_cpus",
        "backend_flows",
        "backend_drops",
        "reply_cpus",
        "quic_cpus",
        "refusals",
        "unwrap_addresses",
    }
)
MACHINE = frozenset({"vlan_devices", "egress_devices", "ways", "tracked"})
"""Copied as they are, for the moment until devices, routes, rules, tracked flows are looked at."""
PASSING = frozenset(
    {
        "nats",
        "nat_locks",
        "nat_client_hops",
        "contexts",
        "traces",
        "flow_cpus",
        "fragments",
        "health_probes",
        "health_foreign",
        "health_scratch",
        "health_cpus",
    }
)
"""With nothing in them that outlives the agent that made it, or a jiffy, or of fragments the moment
until the last one comes."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of what is in both tables."""

    services: dict[int, int]
    """New indexes by old ones."""
    handles: dict[int, Heir]
    """By old handles."""

    @classmethod
    def between(cls, old: Iterable[Installed], new: Iterable[Installed]) -> Self:
        """Return it by what services are for, and by backends' addresses."""
        made = {service.key: service for service in new}
        common = [(service, made[service.key]) for service in old if service.key in made]
        return cls(
            {was.index: now.index for was, now in common},
            {
                handle: Heir(there[address], now.index, was.key, was.index, address)
                for was, now in common
                for there in (now.handles,)
                for address, handle in was.noted.items()
                if address in there
            },
        )


class Migration:
    """The way from the tables that are left to those that take their place."""

    def __init__(self, old: PinnedMaps, new: LoadedProgram, moved: Moved) -> None:
        self._old, self._new = old, new
        self._clients = ClientCopy(old, new, moved.handles)
        self._flows = FlowCopy(old, new, moved.handles)
        self._translations = NatCopy(old, new, moved.handles)
        self._counters = CounterCopy(old, new, moved.services, moved.handles)

    def before(self) -> int:
        """Copy everything but the services, to tables that no packet reads yet.

        Returns how many flows there were.
        """
        copied = self._copy_flows()
        copy_machine(self._old, self._new)
        self._counters.run()
        # Last, since an answer needs it: what begins from here on is missing for a moment.
        return copied + self.translations()

    def translations(self) -> int:
        """Copy what is translated to what; returns how many entries that were."""
        with Jiffies() as jiffies:
            return self._translations.run(jiffies.now())

    def after(self) -> int:
        """Copy the rest of what came meanwhile, to tables in use; returns how many flows."""
        copied = self._copy_flows()
        self._counters.run()
        return copied

    def follow(self) -> int:
        """The same where what was copied before isn't known: flows and their clients only."""
        return self._copy_flows()

    def _copy_flows(self) -> int:
        self._clients.run(int(time.clock_gettime(time.CLOCK_MONOTONIC)))
        with Jiffies() as jiffies:
            return self._flows.run(jiffies.now())


def copy_machine(old: PinnedMaps, new: LoadedProgram) -> None:
    """Tell the program what the one before knew of VLAN devices, routes and rules."""
    for name in sorted(MACHINE):
        for key, value in old.maps[name].items():
            new.maps[name].update(key, value)
