# SPDX-License-Identifier: Apache-2.0
"""Translations of a version that knew less of them."""

from __future__ import annotations

from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.unit.datapath.harness_program import BTF

from towpath.datapath.migration.flows import Heir
from towpath.datapath.migration.nat import NatCopy

if TYPE_CHECKING:
    from collections.abc import Iterator

SETS, OLD, NEW = 8, 1 << 20 | 1, 1 << 20 | 2


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
            "nat_states": np.zeros(1, BTF.dtype("nat_state")),
            "settings": np.zeros(1, BTF.dtype("settings")),
        }
        self.tables["nat_states"]["config"] = 7
        self.nat_addresses = [IPv4Address("192.0.2.1")]

    @property
    def pinned(self) -> dict[str, Window]:
        """As maps."""
        return {name: Window(table) for name, table in self.tables.items()}

    def rows(self, name: str) -> Any:
        """As memory."""
        return self.tables[name]


WAY = BTF.dtype("nat_flow")
NAMES = [name for name in WAY.names or () if name != "backend_port"]
WITHOUT = np.dtype([(name, WAY[name]) for name in NAMES])


@pytest.mark.parametrize(("way", "port"), [(WITHOUT, 80), (WAY, 8080)])
def test_a_flow_keeps_its_backends_port(way: np.dtype[Any], port: int) -> None:
    """Which was the VIP's, before backends could have their own."""
    old, new = Version(way), Version(WAY)
    entry = old.tables["nat_flows"]["way"][3]
    entry["vip_port"][1], entry["port"][1], entry["handle"][1] = 80, 20000, OLD
    entry["ref"][1] = 5 << 32 | 9
    if way is WAY:
        entry["backend_port"][1] = port
    copy = NatCopy(
        old,  # type: ignore[arg-type]
        new,  # type: ignore[arg-type]
        {OLD: Heir(NEW, 1, None, 1)},  # type: ignore[arg-type]
    )
    assert copy.run() == 1
    made = new.tables["nat_flows"]["way"]
    (kept,) = made[made["ref"] != 0]
    assert (kept["handle"], kept["vip_port"], kept["backend_port"]) == (NEW, 80, port)
