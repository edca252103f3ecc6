# SPDX-License-Identifier: Apache-2.0
"""Which service and backend the rows of tables stand for, beyond the life of their indexes."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from towpath.datapath.lb.services import Installed
    from towpath.model.service import ServiceKey

    Array = np.ndarray[Any, Any]


def identity(what: str) -> int:
    """Return a number of 64 bits for a text, never 0."""
    return int.from_bytes(blake2b(what.encode(), digest_size=8).digest(), "little") or 1


def service_identity(key: ServiceKey) -> int:
    """Return what sockets note of the service that they talk to."""
    return identity(str(key))


@dataclass(slots=True)
class _Known:
    """What was written for a service."""

    index: int
    identity: int
    handles: Sequence[int] = ()
    """Of backends."""


class Identities:
    """``socket_service_ids`` and ``socket_backend_ids``, kept in step with the services.

    ``services`` and ``backends`` are these tables, as memory; ``service_rows`` has what CPUs count
    of services, shape (CPUs, services): rows of another service are zeroed.
    """

    def __init__(
        self, services: Array, backends: Array, service_rows: Array, index_mask: int
    ) -> None:
        self._services = services
        self._backends = backends
        self._rows = service_rows
        self._mask = index_mask
        self._known: dict[ServiceKey, _Known] = {}

    def write(
        self, installed: Mapping[ServiceKey, Installed], changed: Iterable[ServiceKey] | None = None
    ) -> None:
        """Note what there is; ``changed``: the services that may be otherwise, None for all."""
        keys = {*installed, *self._known} if changed is None else set(changed)
        gone = [key for key in keys if key not in installed and key in self._known]
        for key in gone:
            self._forget(self._known.pop(key))
        for key in keys:
            if key in installed:
                self._note(installed[key])
        if changed is None:
            self._forget_others()

    def _note(self, service: Installed) -> None:
        key, index = service.key, service.index
        known = self._known.get(key)
        if known is None or known.index != index:
            known = self._known[key] = _Known(index, service_identity(key))
        if int(self._services[index]) != known.identity:
            self._rows[:, index] = np.zeros((), self._rows.dtype)
            self._services[index] = known.identity
        handles = service.noted.handles
        written = frozenset(known.handles)
        new = {each: handle for each, handle in service.noted.items() if handle not in written}
        if new:
            what = str(key)
            at = [handle & self._mask for handle in new.values()]
            self._backends[at] = [identity(f"{what} {address}") for address in new]
        kept = {handle & self._mask for handle in handles} if written else set()
        for handle in known.handles:
            if handle & self._mask not in kept:
                self._backends[handle & self._mask] = 0
        known.handles = handles

    def _forget(self, known: _Known) -> None:
        if int(self._services[known.index]) == known.identity:
            self._services[known.index] = 0
        for handle in known.handles:
            self._backends[handle & self._mask] = 0

    def _forget_others(self) -> None:
        """What an earlier process has left of services that aren't there any more."""
        kept = [each.index for each in self._known.values()]
        others = np.ones(len(self._services), bool)
        others[kept] = False
        self._services[others] = 0
        used = [handle & self._mask for each in self._known.values() for handle in each.handles]
        others = np.ones(len(self._backends), bool)
        others[used] = False
        self._backends[others] = 0
