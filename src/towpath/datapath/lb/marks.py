# SPDX-License-Identifier: Apache-2.0
"""Marks of services whose changes went through to the end: ``table_marks`` of the maps.

To make a service's Maglev table again takes far longer than to read it. So each service
has a mark, of all its backends' records and of its table, written when both are as they
are to be. A process that finds pinned maps compares: what has its mark is right as it is,
and what hasn't, whether it was left half done or somebody else has written it, is gone
through backend by backend and slot by slot. No packet looks at marks, so nothing depends
on when they are written.
"""

from __future__ import annotations

from array import array
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import family, pack
from towpath.native.library import table_marks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from towpath.datapath.lb.backends import Records
    from towpath.datapath.lb.services import Installed
    from towpath.model.service import BackendState

    Array = np.ndarray[Any, Any]

# A word of what a backend has besides its address, from the lowest bit on.
_WEIGHT, _STATE, _FAMILY = 32, 48, 56


class Marks:
    """``rows`` is ``table_marks``, a mark by the index of a service.

    Maps of a version that had no such table have a row of zeros: none has its mark then.
    ``states`` has the numbers of ``enum backend_state``.
    """

    def __init__(self, rows: Array, states: Mapping[BackendState, int]) -> None:
        self._rows = rows
        self._states = states

    def write(self, services: Iterable[Installed]) -> None:
        """Mark services as they are known to be, once all of a change is in the kernel."""
        services = [each for each in services if each.index < len(self._rows)]
        if not services:
            return
        records = [each for service in services for each in service.noted.backends]
        handles = [each for service in services for each in service.noted.handles]
        words = [
            handle
            | each.weight << _WEIGHT
            | self._states[each.state] << _STATE
            | family(each.address) << _FAMILY
            for handle, each in zip(handles, records, strict=True)
        ]
        made = table_marks(
            b"".join([pack(each.address) for each in records]),
            array("Q", words),
            array("I", accumulate(len(each.noted.handles) for each in services)),
            array("Q", [each.sum for each in services]),
        )
        for service, mark in zip(services, made, strict=True):
            self._rows[service.index] = mark

    def found(self, indexes: Sequence[int], records: Records, sums: Sequence[int]) -> Array:
        """Return which of these services have their marks.

        ``records``: of all their backends, in this order; ``sums``: of what is in their tables.
        """
        services = np.array(indexes, np.int64)
        if not len(services) or services.max() >= len(self._rows):
            return np.zeros(len(services), bool)
        rows = records.rows
        words = rows["handle"].astype(np.uint64)
        for name, bits in (("weight", _WEIGHT), ("state", _STATE), ("family", _FAMILY)):
            words |= rows[name].astype(np.uint64) << np.uint64(bits)
        made = table_marks(
            rows["addr"].tobytes(),
            words,
            records.ends.astype(np.uint32),
            array("Q", sums),
        )
        return np.asarray(np.array(made, np.uint64) == self._rows[services])
