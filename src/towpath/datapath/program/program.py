# SPDX-License-Identifier: Apache-2.0
"""The load balancer's program, loaded over maps that it shares with others."""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from towpath.datapath.flows.flow_table import IDLE_SECONDS
from towpath.datapath.snat.constants import constants as snat_constants
from towpath.kernel.jiffies import per_second, units
from towpath.model.snat import Snat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from towpath.datapath.address import Address
    from towpath.datapath.maps.layout import Layout
    from towpath.datapath.maps.shared import SharedMaps
    from towpath.kernel.bpf.btf import Btf
    from towpath.kernel.bpf.maps import Map

OBJECT = "lb"


class LoadedProgram:
    """The program over ``tables``, which outlive it. VerifierError, KernelError.

    ``mark`` is that of health checks' packets, 0 for none.
    """

    def __init__(self, tables: SharedMaps, *, snat: Snat | None = None, mark: int = 0) -> None:
        self._undo = ExitStack()
        self._rows: dict[str, Any] = {}
        self._mark = mark
        self._snat = snat or Snat()
        self.tables = tables
        self.object = self._undo.enter_context(tables.load(OBJECT, self._own_constants()))

    def _own_constants(self) -> dict[str, Any]:
        nat = snat_constants(
            self._snat,
            self.btf.dtype("address"),
            per_family=self.constant("nat_limits", "NAT_SOURCES"),
            shift=self.constant("nat_limits", "NAT_SEEN_SHIFT"),
        )
        seen_shift = self.constant("flow_limits", "FLOW_SEEN_SHIFT")
        idle = units(IDLE_SECONDS, per_second(), seen_shift)
        return nat | {
            "health_mark": self._mark,
            "flow_idle": idle,
            "jiffies_a_second": per_second(),
        }

    @property
    def constants(self) -> dict[str, Any]:
        """What a program that stands in for this one has to be told before it is loaded."""
        return self.tables.constants | self._own_constants()

    @property
    def nat_addresses(self) -> list[Address]:
        """What source NAT translates to, by number; where there is nothing, 0.0.0.0."""
        most = self.constant("nat_limits", "NAT_SOURCES")
        nobody: tuple[Address, ...] = (IPv4Address(0),) * most
        families = (self._snat.addresses(version) for version in (4, 6))
        return [address for each in families for address in (*each, *nobody)[:most]]

    # ---- what is the maps' -----------------------------------------------------------------------

    @property
    def maps(self) -> Mapping[str, Map]:
        """The maps that are shared, and those of this program alone."""
        return self.object.maps

    @property
    def btf(self) -> Btf:
        """The types of ``bpf/abi``."""
        return self.tables.btf

    @property
    def layout(self) -> Layout:
        """How large the maps are."""
        return self.tables.layout

    @property
    def cookie(self) -> int:
        """What a frame that asks for a trace starts with."""
        return self.tables.seeds["trace_cookie"]

    def constant(self, enum: str, name: str) -> int:
        """Return an enumerator of ``bpf/abi``."""
        return self.tables.constant(enum, name)

    def rows(self, name: str) -> Any:
        """Map a whole table for as long as it is open; one of this program's own, too."""
        if name in self.tables.maps:
            return self.tables.rows(name)
        if name not in self._rows:
            self._rows[name] = self._undo.enter_context(self.maps[name].mmap()).array
        return self._rows[name]

    def forgetter(self, *names: str, columns: int) -> Callable[[int], None]:
        """Return a function that zeroes one column of per-CPU tables."""
        return self.tables.forgetter(*names, columns=columns)

    def close(self) -> None:
        """Close the program; where it is attached, or pinned, it stays."""
        self._undo.close()
