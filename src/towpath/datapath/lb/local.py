# SPDX-License-Identifier: Apache-2.0
"""Which backends are on this node, as the program is told: ``local_backends``.

An element holds the handle of the backend that has its index, one store; a backend that gets the
index later has another handle. A service whose backends may be there has a flag, which is set
before the first of them is entered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

_WORD = 0xFFFFFFFF
_FEW = 16
"""Services that are looked at one by one: for more the whole table is read at once."""

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from towpath.datapath.address import Address
    from towpath.datapath.lb.services import Installed
    from towpath.model.service import Backend, Forwarding

    Array = np.ndarray[Any, Any]
    IsHere = Callable[[Forwarding, Backend], bool]
    """Whether packets of a forwarding to a backend are delivered on this node."""


def nobody(forwarding: Forwarding, backend: Backend) -> bool:
    """No backend is on this node."""
    del forwarding, backend
    return False


class LocalBackends:
    """``rows`` is ``local_backends``; ``services`` an array of ``struct service``.

    ``flag`` is SERVICE_LOCAL, ``index_bits`` says how much of a handle is its index. Maps of a
    version that had no such table have a row of zeros: nobody is entered.
    """

    def __init__(
        self, rows: Array, services: Array, flag: int, index_bits: int, is_here: IsHere = nobody
    ) -> None:
        self._rows = rows
        self._flags = services["flags"]
        self._flag = flag
        self._others = ~flag & _WORD
        self._mask = (1 << index_bits) - 1
        self._is_here = is_here

    def note(self, service: Installed, address: Address) -> None:
        """Enter a backend of a service, or take it out."""
        handle = service.noted.handle(address)
        if self._is_here(service.options.forwarding, service.noted.backend(address)):
            self._flags[service.index] |= self._flag
            self._rows[handle & self._mask] = handle
        elif self.has(handle):
            self._rows[handle & self._mask] = 0

    def enter(self, service: Installed, backends: Iterable[Backend]) -> None:
        """Enter those of a service's new backends that are here; others' handles are nowhere."""
        for backend in backends:
            if self._is_here(service.options.forwarding, backend):
                self.note(service, backend.address)

    def as_told(self, service: Installed, backend: Backend, handle: int) -> Backend:
        """Return a backend that was taken over, local if it is entered for no other reason."""
        told = self.has(handle) and not self._is_here(service.options.forwarding, backend)
        return replace(backend, local=True) if told else backend

    def sync(self, services: Iterable[Installed]) -> None:
        """The same for all backends of these services, as it is by now."""
        services = tuple(services)
        entered = self._entered(services)
        for service in services:
            forwarding = service.options.forwarding
            here = [each for each in service.noted.backends if self._is_here(forwarding, each)]
            if here or any(each in entered for each in service.noted.handles):
                for backend in service.noted.backends:
                    self.note(service, backend.address)
            if not here and int(self._flags[service.index]) & self._flag:
                self._flags[service.index] &= self._others

    def _entered(self, services: Sequence[Installed]) -> Collection[int]:
        """Return the handles of these services that are entered, and perhaps others."""
        if len(services) > _FEW:
            return self.handles()
        return {each for one in services for each in one.noted.handles if self.has(each)}

    def handles(self) -> frozenset[int]:
        """Those of backends on this node; some may be of backends that have gone."""
        return frozenset(self._rows[np.flatnonzero(self._rows)].tolist())

    def has(self, handle: int) -> bool:
        """Whether packets to the backend of a handle are delivered on this node."""
        index = handle & self._mask
        return index < len(self._rows) and int(self._rows[index]) == handle
