# SPDX-License-Identifier: Apache-2.0
"""Connection ids of QUIC: what they look like, and which backend has which server's id.

The program asks ``quic_servers`` for what an id names, and then whether a backend has the handle
that is there. So an entry whose backend has gone says nothing, and one that a death leaves is found
by its handle, which no backend has. What a death leaves half done is as true as what there was: a
backend has ids that it was to have, and those that it had.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.lb.dry_run import DryRunKeyed
from towpath.model.quic import Quic

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from towpath.datapath.lb.dry_run import Keyed, Tally

_BITS = 8
_KATRAN = {1: 2, 2: 3, 3: 4}
"""Bytes of a server's id by version, which is an id's first two bits."""


class Forms:
    """What ids look like as an element of ``quic_forms`` says it: see ``enum quic_form``."""

    def __init__(self, constant: Callable[[str, str], int]) -> None:
        names = ("LENGTH", "TELLS", "SHIFTED", "KATRAN")
        bits = (constant("quic_form", f"QUIC_FORM_{each}") for each in names)
        self._length, self._tells, self._shifted, self._katran = bits
        self._all_katran = sum(
            (size | self._katran | (self._shifted if version == 1 else 0)) << _BITS * form
            for version, size in _KATRAN.items()
            for form in (2 * version, 2 * version + 1)
        )

    def word(self, quic: Quic) -> int:
        """Return the element."""
        if quic.server_ids == "katran":
            return self._all_katran
        form = (quic.length or 0) | (self._tells if quic.length_self_description else 0)
        return form << _BITS * quic.rotation

    def quic(self, word: int) -> Quic:
        """Return what an element means."""
        if word == self._all_katran:
            return Quic("katran")
        rotation = (word.bit_length() - 1) // _BITS if word else 0
        form = word >> _BITS * rotation
        return Quic(
            length=form & self._length or None,
            rotation=rotation,
            length_self_description=bool(form & self._tells),
        )


class ServerIds:
    """``quic_servers`` of ``bpf/lb/maps.h``: the handle of the backend that has an id.

    ``capacity``: how many ids there is room for, of all services.
    """

    def __init__(self, table: Keyed, capacity: int) -> None:
        self._table = table
        self.capacity = capacity
        self.in_use = 0
        """Ids that there are."""

    def enter(self, service: int, ids: Iterable[int], handle: int) -> None:
        """Have ids of a service name a backend, and what else they named no more."""
        for each in ids:
            key = self._key(service, each)
            there = self._table.lookup(key)
            if there is None or int(there) != handle:
                self._table.update(key, handle)
                self.in_use += there is None

    def leave(self, service: int, ids: Iterable[int], handles: Collection[int]) -> None:
        """Have ids name nobody, but those that are another backend's than that of these handles."""
        for each in ids:
            key = self._key(service, each)
            there = self._table.lookup(key)
            if there is not None and int(there) in handles:
                self._remove(key)

    def adopt(self, known: Collection[int]) -> dict[int, tuple[int, ...]]:
        """Return the ids by the handles that are known; others go."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for key, value in list(self._table.items()):
            self.in_use += 1
            handle = int(value)
            if handle in known:
                found[handle].append(int(key["id"]))
            else:
                self._remove(key)
        return {handle: tuple(sorted(ids)) for handle, ids in found.items()}

    def dry_run(self, tally: Tally) -> ServerIds:
        """Return such as counts what would be there, and changes nothing."""
        return ServerIds(DryRunKeyed(self._table, tally), self.capacity)

    def _remove(self, key: Any) -> None:
        self._table.delete(key, missing_ok=True)
        self.in_use -= 1

    def _key(self, service: int, server_id: int) -> Any:
        key = np.zeros((), self._table.key_dtype)
        key["id"], key["service"] = server_id, service
        return key
