# SPDX-License-Identifier: Apache-2.0
"""The programs of masquerade with their tables: loaded, sized, pinned, and taken over.

What is pinned below ``pins`` outlives the process: ``maps`` are the tables, ``links`` the places of
the programs on the devices. The next process uses the tables that fit what it wants. Those that
don't are made anew beside the others in ``maps-next``, which takes the place of ``maps`` when the
links have the new programs. Flows of a table that doesn't fit are lost, and made again by their
next packets: the same seed gives them the same ports.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from towpath.closeable import Closeable
from towpath.kernel.bpf.bpffs import new_pin_dir, remove_pins
from towpath.kernel.bpf.maps import Map, possible_cpus
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.jiffies import per_second, units

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.model.masquerade import Section

log = logging.getLogger(__name__)

MAPS, NEXT = "maps", "maps-next"
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
        self._pins = pins
        self.fresh: tuple[str, ...] = ()
        """Tables that were made, and not taken over."""
        with ExitStack() as undo:
            obj = undo.enter_context(BpfObject.packaged("masquerade"))
            self._object = obj
            self._size(section)
            kept = undo.enter_context(ExitStack())
            reused = self._reuse(kept)
            obj.load()
            self.maps = obj.maps
            self.programs = obj.programs
            self.btf = obj.btf
            self.fresh = tuple(name for name in obj.map_names if name not in (*reused, *_PRIVATE))
            if "masq_states" in self.fresh:
                self._begin()
            if pins is not None and self.fresh:
                self._pin(pins)
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

    def _reuse(self, kept: ExitStack) -> list[str]:
        """Use the pinned tables that fit; their names."""
        if self._pins is None or not (self._pins / MAPS).is_dir():
            return []
        fitting: dict[str, Map] = {}
        for name in self._object.map_names:
            path = self._pins / MAPS / name
            if name in _PRIVATE or not path.exists():
                continue
            found = kept.enter_context(Map.from_pin(path, self._object.btf))
            differences = self._object.layout(name).differences(found.layout)
            if differences:
                log.info("%s is made anew: %s", name, "; ".join(differences))
            else:
                fitting[name] = found
        if not all(name in fitting for name in _TABLE):
            fitting = {name: each for name, each in fitting.items() if name not in _TABLE}
        for name, each in fitting.items():
            self._object.reuse(name, each)
        return list(fitting)

    def _begin(self) -> None:
        """Give a new table its seed."""
        state = self.maps["masq_states"].lookup(0)
        state["seed"] = int.from_bytes(os.urandom(8), "little")
        self.maps["masq_states"].update(0, state)

    def _pin(self, pins: Path) -> None:
        remove_pins(pins / NEXT)
        target = NEXT if (pins / MAPS).is_dir() else MAPS
        with new_pin_dir(pins / target) as directory:
            for name in self._object.map_names:
                if name not in _PRIVATE:
                    self.maps[name].pin(directory / name)

    def pin_again(self) -> None:
        """Pin the tables, if somebody has removed their pins. KernelError."""
        if self._pins is not None and not (self._pins / MAPS).is_dir():
            self._pin(self._pins)

    def settle(self) -> None:
        """Make the tables that were made anew the only ones: all links have these programs."""
        if self._pins is None or not (self._pins / NEXT).is_dir():
            return
        old = self._pins / f"{MAPS}-old"
        remove_pins(old)
        (self._pins / MAPS).rename(old)
        (self._pins / NEXT).rename(self._pins / MAPS)
        remove_pins(old)

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
