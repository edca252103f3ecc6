# SPDX-License-Identifier: Apache-2.0
"""The load balancer's program, loaded over maps that it shares with others."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from towpath.datapath.flows.flow_table import IDLE_SECONDS
from towpath.datapath.lb.unwrap import unwrap_constants
from towpath.datapath.snat.constants import constants as snat_constants
from towpath.kernel.bpf import probe
from towpath.kernel.bpf.fragments import Kind
from towpath.kernel.errors import VerifierError
from towpath.kernel.jiffies import per_second, units
from towpath.kernel.net.conntrack_flows import udp_seconds
from towpath.model.settings import NO_UNWRAP, Unwrap
from towpath.model.snat import Snat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from towpath.datapath.address import Address
    from towpath.datapath.maps.layout import Layout
    from towpath.datapath.maps.shared import SharedMaps
    from towpath.kernel.bpf.btf import Btf
    from towpath.kernel.bpf.maps import Map
    from towpath.kernel.bpf.object import BpfObject
    from towpath.kernel.bpf.programs import Program

log = logging.getLogger(__name__)

OBJECT = "lb"
PROGRAM = "towpath_lb"


class LoadedProgram:
    """The program over ``tables``, which outlive it. VerifierError, KernelError.

    ``mark`` is that of health checks' packets, 0 for none; ``foreign`` the bits that marks of other
    programs' checks have in common. ``tracks``: flows may be the kernel's. ``slots``: dispatchers
    may call it.
    """

    def __init__(
        self,
        tables: SharedMaps,
        *,
        snat: Snat | None = None,
        mark: int = 0,
        foreign: int = 0,
        unwrap: Unwrap = NO_UNWRAP,
        tracks: bool = False,
        slots: bool = False,
    ) -> None:
        self._undo = ExitStack()
        self._rows: dict[str, Any] = {}
        self._others: dict[Kind, BpfObject] = {}
        self._marks = {"health_mark": mark, "foreign_marks": foreign}
        self._snat = snat or Snat()
        self._unwrap = unwrap
        self._tracks = tracks
        self.slots = slots
        self.tables = tables
        self.fragments = probe.fragments()
        """Whether the program takes frames in fragments: larger ones than a page has room for."""
        self.object = self._undo.enter_context(self._load())

    def _load(self) -> BpfObject:
        constants = self._own_constants()
        try:
            return self.tables.load(OBJECT, constants, kind=self.main, slots=self.slots)
        except VerifierError as error:
            if not self.fragments:
                raise
            log.warning("frames in fragments are not taken: %s", error)
        self.fragments = False
        return self.tables.load(OBJECT, constants, kind=self.main, slots=self.slots)

    def _own_constants(self) -> dict[str, Any]:
        nat = snat_constants(
            self._snat,
            self.btf.dtype("address"),
            per_family=self.constant("nat_limits", "NAT_SOURCES"),
            shift=self.constant("nat_limits", "NAT_SEEN_SHIFT"),
        )
        seen_shift = self.constant("flow_limits", "FLOW_SEEN_SHIFT")
        idle = units(IDLE_SECONDS, per_second(), seen_shift)
        tunnels = unwrap_constants(self._unwrap)
        return (
            nat
            | tunnels
            | self._marks
            | {
                "tracks": self._tracks,
                "tracks_udp": udp_seconds() * 10**9 if self._tracks else 0,
                "flow_idle": idle,
                "jiffies_a_second": per_second(),
            }
        )

    @property
    def main(self) -> Kind:
        """That of the object's own programs."""
        return Kind.FRAGMENTS if self.fragments else Kind.LINEAR

    def kind(self, mode: str, attach: str = "link") -> Kind:
        """Of what kind a program is that runs in a mode, by a link or by a dispatcher.

        In generic mode none takes frames in fragments: the kernel hands others one linear frame,
        of whatever size, and forgets of frames that it has copied for such programs how long their
        link header is (seen on 6.18, netif_receive_generic_xdp), so that tc programs find their
        packet cut off.
        """
        if not self.fragments or mode == "generic":
            return Kind.LINEAR
        return Kind.CALLED if attach == "dispatcher" else Kind.FRAGMENTS

    def balancing(self, kind: Kind) -> Program:
        """Return the program that balances, of a kind. KernelError."""
        if kind is self.main:
            return self.object.programs[PROGRAM]
        if kind not in self._others:
            made = self.tables.load(
                OBJECT, self._own_constants(), [PROGRAM], kind=kind, slots=self.slots
            )
            self._others[kind] = self._undo.enter_context(made)
        return self._others[kind].programs[PROGRAM]

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

    def forgetter(self, *names: str, columns: int) -> Callable[[Sequence[int]], None]:
        """Return a function that zeroes columns of per-CPU tables."""
        return self.tables.forgetter(*names, columns=columns)

    def close(self) -> None:
        """Close the program; where it is attached, or pinned, it stays."""
        self._undo.close()
