# SPDX-License-Identifier: Apache-2.0
"""A service's Maglev table: which backends share its new flows.

The table is filled as if all backends with a weight were there, and those that aren't
active have their slots filled by the others: see :mod:`towpath.core.lb.maglev`. Weight 0
is for a backend that goes for good: the table is then made without it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from towpath.core.lb import maglev
from towpath.itself import remembered
from towpath.model.service import BackendState

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from towpath.model.service import Backend

_KEPT = 8
"""Tables: of 65,521 slots, which a service of 250 backends has, each takes 256 KiB."""


def table(backends: Sequence[Backend], size: int) -> NDArray[np.uint32]:
    """Return, for each of ``size`` slots, an index into ``backends``; empty if nobody shares.

    It can't be written to: some are kept. A change has that of before compared with the new one,
    which it writes, and several services often have the same backends.

    ValueError as :func:`towpath.core.lb.maglev.table` says.
    """
    return _of(tuple(backends), size)


@remembered(_KEPT)
def _of(backends: tuple[Backend, ...], size: int) -> NDArray[np.uint32]:
    identities = tuple([(backend.address.packed, backend.weight) for backend in backends])
    away = tuple([at for at, each in enumerate(backends) if each.state is not BackendState.ACTIVE])
    return _table(identities, size, away)


@lru_cache(maxsize=_KEPT)
def _table(
    identities: tuple[tuple[bytes, int], ...], size: int, away: tuple[int, ...]
) -> NDArray[np.uint32]:
    made = maglev.table(identities, size, away)
    made.flags.writeable = False
    return made
