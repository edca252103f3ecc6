# SPDX-License-Identifier: Apache-2.0
"""What reading the load balancer's tables takes: maps, their types and how large they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from towpath.datapath.maps.layout import Layout
    from towpath.kernel.bpf.btf import Btf


class TableSource(Protocol):
    """Maps by name: :class:`~towpath.datapath.maps.shared.SharedMaps`, or copies of pinned ones."""

    @property
    def maps(self) -> Mapping[str, Any]:
        """Each has ``mmap``, ``snapshot``, ``items``, ``update`` and ``delete`` as a Map has."""

    @property
    def btf(self) -> Btf:
        """Types of what is in them."""

    @property
    def layout(self) -> Layout:
        """How large they are."""

    def rows(self, name: str) -> Any:
        """Return a whole table as a structured array."""

    def constant(self, enum: str, name: str) -> int:
        """Return an enumerator of ``bpf/abi``."""

    def forgetter(self, *names: str, columns: int) -> Callable[[Sequence[int]], None]:
        """Return a function that zeroes columns of per-CPU tables."""
