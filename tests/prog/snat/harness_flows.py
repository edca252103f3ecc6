# SPDX-License-Identifier: Apache-2.0
"""Translated flows as they are listed, in an oracle's terms."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.oracle_parse import Address
    from tests.prog.snat.harness import NatRig

    from towpath.datapath.flows.nat_table import Translations

Listed = tuple["Address", int, "Address", int, "Address", int, "Address", int]
"""Client, VIP, our own end and the backend, each with its port."""


def listed(nat: NatRig, found: Translations) -> Iterator[Listed]:
    """What was listed, one after the other."""
    members = nat.balancer.members()

    def address(raw: Any, handle: int) -> Address:
        return ip_address(raw.tobytes()[12 if members[handle].service.vip.version == 4 else 0 :])

    for i, handle in enumerate(found.handles.tolist()):
        yield (
            address(found.clients[i], handle),
            int(found.client_ports[i]),
            address(found.vips[i], handle),
            int(found.vip_ports[i]),
            nat.balancer.nat_flows.sources[int(found.sources[i])],
            int(found.ports[i]),
            members[handle].backend,
            int(found.backend_ports[i]),
        )
