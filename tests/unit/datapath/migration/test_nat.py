# SPDX-License-Identifier: Apache-2.0
"""Translations of a version that knew less of them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.unit.datapath.harness_program import BTF

from towpath.datapath.migration.nat import read

if TYPE_CHECKING:
    from collections.abc import Iterator

SETS = 8


class Window:
    """A mapping, and the map of it."""

    def __init__(self, array: Any) -> None:
        self.array = array

    @contextmanager
    def mmap(self, *, writable: bool) -> Iterator[Window]:
        """All of it."""
        assert not writable
        yield self


class Version:
    """Tables of source NAT; ``way`` is the type of their entries."""

    def __init__(self, way: np.dtype[Any]) -> None:
        ways = BTF.dtype("nat_set")["way"].shape
        self.tables = {
            "nat_flows": np.zeros(SETS, np.dtype([("way", way, ways)])),
            "nat_heads": np.zeros(SETS, BTF.dtype("nat_head")),
        }

    @property
    def pinned(self) -> dict[str, Window]:
        """As maps."""
        return {name: Window(table) for name, table in self.tables.items()}


WAY = BTF.dtype("nat_flow")
NAMES = [name for name in WAY.names or () if name != "backend_port"]
WITHOUT = np.dtype([(name, WAY[name]) for name in NAMES])


@pytest.mark.parametrize(("way", "port"), [(WITHOUT, 80), (WAY, 8080)])
def test_a_flow_keeps_its_backends_port(way: np.dtype[Any], port: int) -> None:
    """Which was the VIP's, before backends could have their own."""
    old = Version(way)
    entry = old.tables["nat_flows"]["way"][3]
    entry["vip_port"][1], entry["port"][1], entry["handle"][1] = 80, 20000, 7
    entry["ref"][1] = 5 << 32 | 9
    if way is WAY:
        entry["backend_port"][1] = port
    head = old.tables["nat_heads"][3]
    head["forward"], head["reply"], head["life"]["seen"][1] = 0x5500, 0x6600, 4
    found, refs = read(old, WAY)  # type: ignore[arg-type]
    (kept,) = found.rows
    assert (kept["handle"], kept["vip_port"], kept["backend_port"]) == (7, 80, port)
    assert (found.places.tolist(), found.refs.tolist()) == ([3 * 8 + 1], [5 << 32 | 9])
    assert (found.forward.tolist(), found.reply.tolist()) == ([0x55], [0x66])
    assert found.life["seen"].tolist() == [4]
    assert np.flatnonzero(refs).tolist() == [3 * 8 + 1]
