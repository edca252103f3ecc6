# SPDX-License-Identifier: Apache-2.0
"""Connection ids of QUIC: what they look like, and which backend has which server's id.

The program asks ``quic_servers`` for what an id names, and then whether a backend has the handle
that is there. So an entry whose backend has gone says nothing, and what a death leaves half done is
found by its handle: an entry of no backend, or a second one of a backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.model.quic import Quic

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from towpath.datapath.address import Address
    from towpath.datapath.lb.services import Installed

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
    """``quic_servers`` of ``bpf/lb/maps.h``: the handle of the backend that has an id."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def enter(self, service: Installed, address: Address) -> None:
        """Have a backend's id name it, if it has one."""
        server_id = service.noted.backend(address).server_id
        if server_id is not None:
            self._table.update(self._key(service.index, server_id), service.noted.handle(address))

    def leave(self, service: int, server_id: int | None, handles: Collection[int]) -> None:
        """Have an id name nobody, unless it is another backend's than that of these handles."""
        if server_id is None:
            return
        key = self._key(service, server_id)
        there = self._table.lookup(key)
        if there is not None and int(there) in handles:
            self._table.delete(key, missing_ok=True)

    def adopt(self, known: Collection[int]) -> dict[int, int]:
        """Return the ids by the handles that are known; other entries, and second ones, go."""
        found: dict[int, int] = {}
        for key, value in list(self._table.items()):
            handle = int(value)
            if handle in known and handle not in found:
                found[handle] = int(key["id"])
            else:
                self._table.delete(key, missing_ok=True)
        return found

    def _key(self, service: int, server_id: int) -> Any:
        key = np.zeros((), self._table.key_dtype)
        key["id"], key["service"] = server_id, service
        return key
