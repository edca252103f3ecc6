# SPDX-License-Identifier: Apache-2.0
"""Routes of sources: which of a service's backends share the new flows of some clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from towpath.core.lb import service_table
from towpath.model.rules import route_slots
from towpath.model.service import SourceRoute

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from towpath.model.kinds import Address, Prefix
    from towpath.model.service import Backend


def canonical(routes: Iterable[SourceRoute]) -> tuple[SourceRoute, ...]:
    """Return the same routes in one order, so that those that do the same are equal."""
    made = (
        SourceRoute(
            prefixes_in_order(each.sources), tuple(sorted(set(each.backends), key=_address_order))
        )
        for each in routes
    )
    return tuple(sorted(made, key=lambda each: _prefix_order(each.sources[0])))


def prefixes_in_order(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """Return prefixes in one order, each once."""
    return tuple(sorted(set(prefixes), key=_prefix_order))


def table(
    backends: Sequence[Backend], chosen: Collection[Address], size: int
) -> tuple[list[Backend], NDArray[np.uint32]]:
    """Return who of these is a route's, and for each slot an index into them; empty: nobody shares.

    ``size``: slots that the service's own table has.
    """
    members = [each for each in backends if each.address in chosen]
    if not any(each.takes_flows for each in members):
        return members, np.zeros(0, np.uint32)
    slots = route_slots(len(chosen), size)
    if len(members) == 1:
        return members, np.zeros(slots, np.uint32)
    return members, service_table.table(members, slots)


def _address_order(address: Address) -> tuple[int, int]:
    return address.version, int(address)


def _prefix_order(prefix: Prefix) -> tuple[int, int, int]:
    return prefix.version, int(prefix.network_address), prefix.prefixlen
