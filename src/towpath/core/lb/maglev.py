# SPDX-License-Identifier: Apache-2.0
"""Maglev tables: which backend each share of new flows goes to.

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
NSDI 2016, section 3.4, with weights. ``native/maglev.c`` has the algorithm and
says where it differs from the paper: fewer slots move when backends change.
A table depends on the set of backends, their weights, which of them are away, and
its size, and on nothing else: every node makes the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from towpath.model.primes import is_prime
from towpath.native.library import fill_maglev

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

_MAX_WEIGHT = 65535
_MAX_SLOTS = 1 << 22


def table(
    backends: Sequence[tuple[bytes, int]], size: int, away: Collection[int] = ()
) -> NDArray[np.uint32]:
    """Return, for each of ``size`` slots, an index into ``backends``.

    A backend is its identity, bytes that no other of them has, and its weight (0
    to 65535). It gets slots in proportion to its weight, at least one, but none
    if its weight is 0. Without a backend to share the slots the table is empty.
    ``size`` is a prime below 2**22.

    ``away``: indexes of backends that get no slot for now and will be back. Nobody
    else's slots move when they go or come: the others share theirs, so that all get
    slots in proportion to their weights, and whoever comes back has exactly the slots
    that it had.

    Raises ValueError if backends are more than slots, an identity is there twice,
    a weight is out of range, or size is.
    """
    if not (0 < size < _MAX_SLOTS and is_prime(size)):
        raise ValueError(f"a table of {size} slots; allowed: a prime below {_MAX_SLOTS}")
    order = sorted(
        (-weight, identity, index) for index, (identity, weight) in enumerate(backends) if weight
    )
    if not order:
        return np.empty(0, np.uint32)
    if order[0][0] < -_MAX_WEIGHT or order[-1][0] > 0:
        raise ValueError(f"a weight is out of range; allowed: 0 to {_MAX_WEIGHT}")
    if len(order) > size:
        raise ValueError(f"{len(order)} backends for {size} slots; allowed: at most {size}")
    identities = [identity for _, identity, _ in order]
    if len(set(identities)) < len(identities):
        raise ValueError("an identity is there twice; allowed: once")
    labels = [index for _, _, index in order]
    absent = set(away)
    missing = [label in absent for label in labels]
    if all(missing):
        return np.empty(0, np.uint32)
    return fill_maglev(size, identities, [-weight for weight, _, _ in order], labels, missing)


def disruption(old: NDArray[np.generic], new: NDArray[np.generic]) -> float:
    """Return the share (0 to 1) of hash values that go to another backend.

    Both tables hold what identifies a backend, of one type. Their sizes may
    differ: what counts is the backend that each value of the flow hash leads to.
    From or to an empty table everything moves; between two of them nothing does.
    """
    if not len(old) or not len(new):
        return float(len(old) != len(new))
    if len(old) == len(new):
        return float(np.count_nonzero(old != new) / len(old))
    # Where either table starts a slot, as exact multiples of 1 / (len * len).
    starts = np.union1d(
        np.arange(len(old), dtype=np.int64) * len(new),
        np.arange(len(new), dtype=np.int64) * len(old),
    )
    widths = np.diff(starts, append=len(old) * len(new))
    moved = old[starts // len(new)] != new[starts // len(old)]
    return float(widths[moved].sum() / (len(old) * len(new)))
