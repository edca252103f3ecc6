# SPDX-License-Identifier: Apache-2.0
"""The programs of masquerade with their tables: loaded, sized, pinned, and taken over.

What is pinned below ``pins`` outlives the process: ``maps`` are the tables, ``links`` the places of
the programs on the devices. The next process uses the tables that fit what it wants. Those that
don't are made anew beside the others in ``maps-next``, which takes the place of ``maps`` when the
links have the new programs. Flows of a table that doesn't fit are lost, and made again by their
next packets: the same seed gives them the same ports.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from towpath.closeable import Closeable
from towpath.datapath.maps.own import OwnTables
from towpath.kernel.bpf.maps import possible_cpus
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.jiffies import per_second, units

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.model.masquerade import Section

_PRIVATE = ("masq_works", "masq_decisions", "masq_known_pods")
"""A program's own: nothing in them outlives a moment."""
_TABLE = ("masq_heads", "masq_flows", "masq_locks")
"""Of one size, or none of them is of use."""

# Seconds. RFC 5382 asks for 4 minutes of a connection that isn't established or is at its end;
# like source NAT of services, this gives up a port sooner.
TCP_NEW = 60
TCP_CLOSING = 30
UDP_NEW = 30
MAPPINGS = 65536
"""Endpoints that have a port of their own at one time, with endpoint-independent mapping."""


def constants(section: Section, *, ways: int, shift: int, sources: bool = True) -> dict[str, int]:
    """What ``bpf/masquerade/maps.h`` and ``bpf/snat/life.h`` want to know.

    ``sources``: the kernel's FIB tells which source a route prefers.
    """
    hz = per_second()
    first, last = section.ports
    seconds = {
        "nat_tcp_open": section.tcp_timeout,
        "nat_tcp_new": TCP_NEW,
        "nat_tcp_closing": TCP_CLOSING,
        "nat_udp_open": section.udp_timeout,
        "nat_udp_new": min(UDP_NEW, section.udp_timeout),
    }
    return {
        "masq_mask": sets(section, ways) - 1,
        "masq_port_first": first,
        "masq_port_count": last - first + 1,
        "masq_rate": max(section.rate // hz, 1),
        "masq_independent": section.mapping == "endpoint-independent",
        "masq_open": section.filtering == "endpoint-independent",
        "masq_own_routes": not sources,
        "masq_through_stack": section.through_stack,
        "masq_pass_unsolicited": section.unsolicited == "pass",
    } | {name: units(each, hz, shift) for name, each in seconds.items()}


def sets(section: Section, ways: int) -> int:
    """How many sets a table for so many flows has: a power of two."""
    return 1 << (-(-section.flows // ways) - 1).bit_length()


class MasqueradeProgram(Closeable):
    """The loaded programs. ``pins``: where they outlive this process, None for not at all.

    ``sources``: the kernel's FIB tells which source a route prefers.

    VerifierError, KernelError: they can't be loaded, or pinned.
    """

    def __init__(self, section: Section, pins: Path | None = None, *, sources: bool = True) -> None:
        self.section = section
        self._sources = sources
        with ExitStack() as undo:
            obj = undo.enter_context(BpfObject.packaged("masquerade"))
            self._object = obj
            self._size(section)
            names = (name for name in obj.map_names if name not in _PRIVATE)
            self.own = OwnTables(obj, names, pins, together=_TABLE)
            self.own.reuse(undo.enter_context(ExitStack()))
            obj.load()
            self.maps = obj.maps
            self.programs = obj.programs
            self.btf = obj.btf
            if "masq_states" in self.own.fresh:
                self._begin()
            self.own.pin()
            self._undo = undo.pop_all()

    def _size(self, section: Section) -> None:
        obj = self._object
        ways = self.constant("nat_limits", "NAT_WAYS")
        shift = self.constant("nat_limits", "NAT_SEEN_SHIFT")
        told = constants(section, ways=ways, shift=shift, sources=self._sources)
        self.allowed = {name: each for name, each in told.items() if name.startswith("nat_")}
        """How long flows are kept, in steps of nat_life.seen."""
        for name, value in told.items():
            obj.rodata[name] = value
        for name in _TABLE:
            obj.resize(name, sets(section, ways))
        obj.resize("masq_sources", self.constant("masquerade_limits", "MASQ_SOURCES"))
        for name in ("masq_decisions", "masq_known_pods"):
            per_cpu = self.constant("masquerade_limits", name.upper())
            obj.resize(name, possible_cpus() * per_cpu)
        obj.resize("masq_ports", 2)
        if section.mapping == "endpoint-independent":
            obj.resize("masq_mappings", MAPPINGS)

    def _begin(self) -> None:
        """Give a new table its seed."""
        state = self.maps["masq_states"].lookup(0)
        state["seed"] = int.from_bytes(os.urandom(8), "little")
        self.maps["masq_states"].update(0, state)

    def constant(self, enum: str, name: str) -> int:
        """Return an enumerator of ``bpf/abi``."""
        return int(self._object.btf.enum(enum)[name])

    def names(self, enum: str, prefix: str, end: str) -> list[str]:
        """The members of an enum up to ``end`` in their order, in lower case, without prefix."""
        members = self._object.btf.enum(enum)
        found = [each for each in members if each < members[end]]
        return [each.name.removeprefix(prefix).lower() for each in sorted(found, key=int)]

    def dtype(self, name: str) -> Any:
        """The dtype of a struct of ``bpf/abi``."""
        return self._object.btf.dtype(name)

    def close(self) -> None:
        """Let go of it: what is attached and pinned stays."""
        self._undo.close()
