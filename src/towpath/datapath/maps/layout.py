# SPDX-License-Identifier: Apache-2.0
"""How large the kernel's tables are for given limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from towpath.model.settings import Limits

# A service has a key of its own, and its VIP one more: one slot in eight is used when the index
# is full, and a probe sequence of 16 is then longer than any that occurs.
_VIP_SLOTS_PER_SERVICE = 16
# At a quarter a probe sequence of 32 is.
QUIC_SLOTS_PER_ID = 4
_CONTEXTS_PER_CPU = 2
NAT_WAYS = 8
NAT_CLIENTS = 256
"""Of ``enum nat_limits``."""


def _power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


@dataclass(frozen=True, slots=True)
class Layout:
    """Entries of each map, by its name in ``bpf/lb/maps.h``."""

    entries: dict[str, int]
    cpus: int

    @classmethod
    def of(
        cls,
        limits: Limits,
        cpus: int,
        *,
        flow_ways: int,
        maglev_line: int,
        client_ways: int,
        fragment_ways: int,
    ) -> Layout:
        """Return the sizes for ``limits`` on a machine with ``cpus`` possible CPUs.

        ``flow_ways``, ``maglev_line``, ``client_ways`` and ``fragment_ways``: flows, Maglev
        slots, clients and fragmented packets to one element.
        """
        flow_sets = _power_of_two(-(-limits.flows // flow_ways))
        nat_sets = _power_of_two(-(-limits.nat_flows // NAT_WAYS))
        services, backends = limits.services + 1, limits.backends + 1  # index 0 is no one's
        return cls(
            {
                "vips": _power_of_two(limits.services * _VIP_SLOTS_PER_SERVICE),
                "vip_lengths": 1,
                "port_pages": limits.port_pages + 1,
                "services": services,
                "quic_forms": services,
                "quic_servers": _power_of_two(limits.server_ids * QUIC_SLOTS_PER_ID),
                "table_marks": services,
                "ways": 1,
                "maglev": -(-limits.table_slots // maglev_line),
                "backends": backends,
                "local_backends": backends,
                "flow_tags": flow_sets,
                "flows": flow_sets,
                "fragments": _power_of_two(-(-limits.fragments // fragment_ways)),
                "clients": _power_of_two(-(-limits.clients // client_ways)),
                "sources": limits.sources,
                "backend_cpus": backends * cpus,
                "backend_flows": backends * cpus,
                "service_cpus": services * cpus,
                "quic_cpus": services * cpus,
                "verdict_cpus": cpus,
                "flow_cpus": cpus,
                "health_cpus": cpus,
                "contexts": _CONTEXTS_PER_CPU * cpus,
                "nats": _CONTEXTS_PER_CPU * cpus,
                "nat_heads": nat_sets,
                "nat_flows": nat_sets,
                "nat_locks": nat_sets,
                "nat_states": 1,
                "nat_client_hops": NAT_CLIENTS * cpus,
                "reply_cpus": services * cpus,
            },
            cpus,
        )

    def constants(self) -> dict[str, int]:
        """Return what ``bpf/lb/maps.h`` wants to know of the sizes."""
        return {
            "vip_mask": self.entries["vips"] - 1,
            "quic_mask": self.entries["quic_servers"] - 1,
            "flow_mask": self.entries["flows"] - 1,
            "nat_mask": self.entries["nat_flows"] - 1,
            "fragment_mask": self.entries["fragments"] - 1,
            "client_mask": self.entries["clients"] - 1,
            "services_max": self.entries["services"],
            "backends_max": self.entries["backends"],
        }
