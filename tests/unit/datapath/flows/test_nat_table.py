# SPDX-License-Identifier: Apache-2.0
"""Entries that are written at the very moment that they are read."""

from __future__ import annotations

from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.unit.datapath.harness_program import BTF

from towpath.datapath.flows.nat_table import Marks, NatFlows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETS, HANDLE = 4, 1 << 20 | 1


class Memory:
    """A map, with ``before``, which is called whenever somebody begins to look at it."""

    def __init__(self, kind: str, before: Callable[[int], None]) -> None:
        self.value_dtype = BTF.dtype(kind)
        self.max_entries = SETS
        self.rows = np.zeros(SETS, self.value_dtype)
        self._before = before
        self._looked = 0

    @property
    def array(self) -> Any:
        """The elements; the n-th look calls ``before(n)`` first."""
        self._looked += 1
        self._before(self._looked)
        return self.rows

    @contextmanager
    def mmap(self, start: int, count: int, *, writable: bool) -> Iterator[Memory]:
        """All of them."""
        assert (start, count, writable) == (0, SETS, False)
        yield self


class Table:
    """A table of one entry, which some change befalls while it is read."""

    def __init__(self, change: Callable[[Any], None], when: str) -> None:
        def befall(map_name: str) -> Callable[[int], None]:
            return lambda n: change(self.flows.rows["way"]) if f"{map_name} {n}" == when else None

        self.flows = Memory("nat_set", befall("flows"))
        self.heads = Memory("nat_head", befall("heads"))
        backends = np.zeros(2, BTF.dtype("backend"))
        backends["handle"][1] = HANDLE
        way = self.flows.rows["way"]
        way["handle"][2, 3], way["client_port"][2, 3] = HANDLE, 40000
        way["version"][2, 3], way["ref"][2, 3] = 7, 7 << 32 | 0x1234
        self.table = NatFlows(
            self.heads,  # type: ignore[arg-type]
            self.flows,  # type: ignore[arg-type]
            backends,
            index_bits=20,
            sources={0: IPv4Address("192.0.2.1")},
            marks=Marks(1, 2, 4),
            allowed=np.full((2, 3), 100),
            shift=8,
            jiffies=lambda: 0,
            hz=1000,
        )


def rewritten(way: Any) -> None:
    """As nat_write() does; the same flow's hash, so that the version alone tells."""
    way["ref"][2, 3] = 0
    way["client_port"][2, 3] = 41000
    way["ref"][2, 3] = 8 << 32 | 0x1234


def begun(way: Any) -> None:
    """Half of that."""
    way["ref"][2, 3] = 0
    way["client_port"][2, 3] = 41000


LOOKS = ["flows 1", "flows 2", "heads 1", "flows 3"]


@pytest.mark.parametrize(
    ("change", "listed"),
    [
        (rewritten, [[41000], [], [], []]),
        (begun, [[], [], [], []]),
    ],
    ids=["rewritten", "begun"],
)
def test_an_entry_is_listed_whole_or_not_at_all(
    change: Callable[[Any], None], listed: list[list[int]]
) -> None:
    """Whenever it is that another flow takes its place."""
    for when, ports in zip(LOOKS, listed, strict=True):
        table = Table(change, when)
        assert table.table.entries().client_ports.tolist() == ports, when


def test_an_entry_that_nothing_befalls_is_listed() -> None:
    """So it's the change that hides it."""
    table = Table(rewritten, "never")
    found = table.table.entries()
    assert (found.client_ports.tolist(), found.places.tolist()) == ([40000], [19])
