# SPDX-License-Identifier: Apache-2.0
"""A service's Maglev table: which backends share its new flows.

The table is filled as if all backends with a weight were there, and those that aren't
active have their slots filled by the others: see :mod:`towpath.core.lb.maglev`. Weight 0
is for a backend that goes for good: the table is then made without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.core.lb import maglev
from towpath.model.service import BackendState

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from towpath.model.kinds import Address
    from towpath.model.service import Backend, Service


def table(backends: Sequence[Backend], size: int) -> NDArray[np.uint32]:
    """Return, for each of ``size`` slots, an index into ``backends``; empty if nobody shares.

    ValueError as :func:`towpath.core.lb.maglev.table` says.
    """
    identities = [(backend.address.packed, backend.weight) for backend in backends]
    away = [at for at, each in enumerate(backends) if each.state is not BackendState.ACTIVE]
    return maglev.table(identities, size, away)


def key(service: Service) -> tuple[int, dict[Address, tuple[int, bool]]]:
    """Return all that a service's table depends on: two that are equal make one table."""
    shares = {each.address: (each.weight, each.takes_flows) for each in service.backends}
    return service.table_size, {at: share for at, share in shares.items() if share[0]}
