# SPDX-License-Identifier: Apache-2.0
"""Masquerade on a node: the programs on its devices, and all tables in step with it.

`Node.sync` compares what there is with what is to be, and changes what differs: addresses, devices,
rules. It is for one thread; :mod:`towpath.datapath.masquerade.follower` is that thread.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.closeable import Closeable
from towpath.datapath.attach.places import Places
from towpath.datapath.maps.pins import held
from towpath.datapath.masquerade.alike import Alike
from towpath.datapath.masquerade.beginning import hold, hold_pinned, learn
from towpath.datapath.masquerade.devices import Role, roles
from towpath.datapath.masquerade.program import MasqueradeProgram
from towpath.datapath.masquerade.route_sources import RouteSources
from towpath.datapath.masquerade.tables import PrefixTable, Sources
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.hooks import Tc
from towpath.kernel.bpf.probe_fib import names_sources
from towpath.kernel.errors import KernelError
from towpath.kernel.net import link_state, sockets
from towpath.kernel.net.devices import Devices
from towpath.model.kinds.patterns import matches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from towpath.kernel.net.devices import Owned
    from towpath.model.kinds import Prefix
    from towpath.model.masquerade import Section

log = logging.getLogger(__name__)

LINKS = "links"
HANDLE = 0x7471
"""Of filters, where the kernel has no links: apart from the load balancer's."""
AFTER = ("socket_from_pod", "bw_tag")
"""Programs of pods' devices that see packets before they are put on the wire."""
ADOPT_SECONDS = 60
"""Connections that are there when masquerade begins may be translated by netfilter: for so long
what is in the middle of an unknown one is left to the stack, which knows them."""


class Node(Closeable):
    """Masquerade in the calling thread's network namespace, until it is closed.

    What is in the kernel goes on when this is closed, and the next one takes it over; `detach` ends
    it. ``pins``: the directory that keeps it, None for none. Not thread-safe. KernelError, OSError:
    the programs can't be loaded, or the kernel's lists can't be read.

    ``named_sources``: the kernel's FIB tells which source a route prefers; None: it is asked.
    Otherwise that is read from the routes. ``indirect``: devices, or how their names begin, at
    whose egress somebody has to see what pods are sent, whatever ``direct`` says.
    """

    def __init__(
        self,
        section: Section,
        pins: Path | None,
        *,
        named_sources: bool | None = None,
        indirect: Sequence[str] = (),
    ) -> None:
        named = names_sources() if named_sources is None else named_sources
        self.section = section
        self._pins = pins
        self._indirect = tuple(indirect)
        self.roles: dict[int, Role] = {}
        self.taken: dict[int, frozenset[int]] = {}
        """Ports that sockets of this node have bound, by IP protocol."""
        self.troubles: tuple[str, ...] = ()
        """What isn't as it should be."""
        with ExitStack() as undo:
            self._hold = None if pins is None else undo.enter_context(held(pins))
            self.program = undo.enter_context(MasqueradeProgram(section, pins, sources=named))
            maps = self.program.maps
            self._pods = PrefixTable(maps["masq_pods4"], maps["masq_pods6"])
            self._spared = PrefixTable(maps["masq_spared4"], maps["masq_spared6"])
            self.sources = Sources(self.program)
            self.devices = undo.enter_context(Devices())
            self._alike = undo.enter_context(Alike(self.program))
            self._routes: RouteSources | None = None
            if not named:
                self._routes = undo.enter_context(RouteSources(self.program))
            self._places = Places(pins and pins / LINKS)
            undo.callback(self._places.close)
            self._adopt()
            self.sync()
            self.watch_ports()
            self._forget_places()
            self.program.own.settle()
            self._undo = undo.pop_all()

    def _adopt(self) -> None:
        """Whose connections those are that a new table doesn't know."""
        if "masq_flows" not in self.program.own.fresh:
            return
        state = self.program.maps["masq_states"].lookup(0)
        first = "masq_states" in self.program.own.fresh
        now = int(time.clock_gettime(time.CLOCK_MONOTONIC))
        state["adopt_until"] = now + ADOPT_SECONDS if first else 0
        self.program.maps["masq_states"].update(0, state)

    # ---- In step ---------------------------------------------------------------------------------

    def replace_rules(self, section: Section) -> None:
        """Go by other rules from now on. KernelError: there is no room; those of before hold."""
        before, self.section = self.section, section
        try:
            self.sync()
        except (KernelError, OSError):
            self.section = before
            self.sync()
            raise

    def replace_indirect(self, indirect: Sequence[str]) -> None:
        """Have others be indirect. KernelError, OSError."""
        if tuple(indirect) != self._indirect:
            self._indirect = tuple(indirect)
            self.sync()

    def read(self) -> bool:
        """Take in what the kernel has told; whether anything has changed. OSError."""
        self._alike.read()
        routes = self._routes is not None and self._routes.read()
        return self.devices.read() or routes

    def filenos(self) -> tuple[int, ...]:
        """Descriptors that are readable when something has changed."""
        mine = self.devices.fileno(), self._alike.fileno()
        return mine if self._routes is None else (*mine, self._routes.fileno())

    def sync(self) -> None:
        """Make everything as it is to be. KernelError, OSError: the rest is done the next time."""
        troubles: list[str] = []
        self.roles = roles(link_state.devices(), self.section.rules)
        self._sync_sources(troubles)
        if self._routes is not None:
            self._routes.sync(self.sources, self.devices.addresses())
        self._spared.replace(dict(self._spared_prefixes()))
        for role in self.roles.values():
            if not role.rules:
                self._attach(role, troubles)
        pods = dict(self._pods_prefixes())
        begins = bool(pods) and not self._pods.any
        if begins:
            hold(self.program)
        self._pods.replace(pods)
        for role in self.roles.values():
            if role.rules:
                self._attach(role, troubles)
        if begins:
            learn(self.program, {prefix for _, prefix in pods}, self.section.prefixes)
        self._leave_others()
        self._alike.sync()
        self._check(troubles)
        for trouble in troubles:
            if trouble not in self.troubles:
                log.warning("masquerade: %s", trouble)
        self.troubles = tuple(troubles)

    def _pods_prefixes(self) -> Iterator[tuple[tuple[int, Prefix], int]]:
        """By the device that packets come in by, as programs know it.

        That of a VRF is its packets' from the IP header on: what the stack sends on came by it.
        """
        for role in self.roles.values():
            vrf = [role.device.master] if role.device.part_of == "vrf" else []
            for number in role.rules:
                for prefix in self.section.rules[number].prefixes:
                    for index in (role.device.index, *vrf):
                        yield (index, prefix), number

    def _spared_prefixes(self) -> Iterator[tuple[tuple[int, Prefix], int]]:
        for number, rule in enumerate(self.section.rules):
            for prefix in (*self.section.prefixes, *(rule.exclude or ())):
                yield (number, prefix), 1

    # ---- Addresses -------------------------------------------------------------------------------

    def _sync_sources(self, troubles: list[str]) -> None:
        wanted = sorted(filter(_is_source, self.devices.addresses()), key=_preference)
        self.sources.sync(each.interface.ip for each in wanted)
        if self.sources.left_out:
            more = len(self.sources.left_out)
            troubles.append(
                f"{more} of the node's addresses are too many: "
                f"what would leave from {self.sources.left_out[0]} is dropped"
            )

    def _number(self, index: int, version: int) -> int:
        """The number of a device's own address, for kernels whose FIB names none."""
        for each in self.devices.addresses([index]):
            address = each.interface.ip
            usable = _is_source(each) and not each.secondary and not each.deprecated
            if usable and address.version == version:
                return self.sources.by_address.get(address, self.sources.none)
        return self.sources.none

    # ---- Devices ---------------------------------------------------------------------------------

    def _attach(self, role: Role, troubles: list[str]) -> None:
        index = role.device.index
        egress, ingress = role.programs
        try:
            # What sees to packets that leave comes first, and then the device may be used.
            self._take(f"{index}-egress", egress, Tc(index, "egress", HANDLE))
            self._note(role)
            self._take(f"{index}-ingress", ingress, Tc(index, "ingress", HANDLE, AFTER))
        except KernelError as error:
            if link_state_gone(index):
                return
            troubles.append(str(error))

    def _take(self, name: str, program: str, hook: Tc) -> None:
        wanted = self.program.programs[program]
        place = self._places.get(name)
        if place is None or place.lost or place.program is not wanted:
            self._places.take(name, wanted, hook)

    def _note(self, role: Role) -> None:
        table = self.program.maps["masq_devices"]
        record = np.zeros((), table.value_dtype)
        ethernet = self.program.constant("masquerade_device_flags", "MASQ_DEVICE_ETHERNET")
        peer = self.program.constant("masquerade_device_flags", "MASQ_DEVICE_PEER")
        record["flags"] = ethernet * role.device.ethernet | peer * self.is_direct(role)
        record["mtu"] = role.device.mtu
        record["source4"] = self._number(role.device.index, 4)
        record["source6"] = self._number(role.device.index, 6)
        if not np.array_equal(table.lookup(role.device.index), record):
            table.update(role.device.index, record)

    def is_direct(self, role: Role) -> bool:
        """Whether answers are put straight into the namespace of a pod."""
        if not (self.section.direct and role.peer and role.rules):
            return False
        return not any(matches(each, role.device.name) for each in self._indirect)

    def _leave_others(self) -> None:
        """Give up devices that have gone, or have become part of another one."""
        table = self.program.maps["masq_devices"]
        for index in map(int, table.keys()):
            if index not in self.roles:
                table.delete(index, missing_ok=True)
        for place in list(self._places):
            if int(place.name.partition("-")[0]) not in self.roles:
                self._places.drop(place.name)

    def _forget_places(self) -> None:
        """Give up what an earlier process has left on devices that are nothing any more."""
        for name in self._places.pinned():
            if int(name.partition("-")[0]) not in self.roles:
                self._places.drop(name)

    # ---- Ports -----------------------------------------------------------------------------------

    def watch_ports(self) -> None:
        """See which ports of the range sockets have, so that no flow gets them. KernelError."""
        first, last = self.section.ports
        table = self.program.maps["masq_ports"]
        for number, protocol in enumerate(sockets.PROTOCOLS):
            bound = sockets.bound_ports(protocol, first, last)
            if bound == self.taken.get(protocol):
                continue
            record = np.zeros((), table.value_dtype)
            words: Any = record["taken"]
            for port in bound:
                words[port >> 6] |= np.uint64(1 << (port & 63))
            table.update(number, record)
            self.taken[protocol] = bound

    # ---- What others undo ------------------------------------------------------------------------

    def put_right(self) -> None:
        """Attach and pin again what somebody has detached or removed. KernelError, OSError."""
        if self._places.lost():
            log.warning("masquerade: a program was detached, or its device is gone")
            self.sync()
        if self._hold is None:
            return
        missing = [str(self._pins)] if self._hold.again() else []
        missing += ["maps"] if self.program.own.pin_again() else []
        missing += self._places.pin_again()
        if missing:
            log.warning("masquerade: pins were removed: %s; made again", ", ".join(missing))

    # ---- Checks ----------------------------------------------------------------------------------

    def _check(self, troubles: list[str]) -> None:
        for number, rule in enumerate(self.section.rules):
            if not any(number in role.rules for role in self.roles.values()):
                troubles.append(f"rules[{number}]: there is no device {' or '.join(rule.devices)}")

    # ---- Life ------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """How many flows there is room for."""
        ways = self.program.constant("nat_limits", "NAT_WAYS")
        return self.program.maps["masq_flows"].max_entries * ways

    def detach(self) -> None:
        """Take everything out of the kernel.

        Until all programs are gone some answer to what no other has noted any more.
        """
        hold(self.program)
        self._places.detach()
        if self._pins is not None:
            remove_pins(self._pins)

    def close(self) -> None:
        """Let go of it. What is in the kernel goes on."""
        self._undo.close()


def link_state_gone(index: int) -> bool:
    """Whether there is no device with that index by now."""
    return index not in link_state.devices()


def _is_source(owned: Owned) -> bool:
    address = owned.interface.ip
    return owned.usable and not address.is_loopback and not address.is_link_local


def _preference(owned: Owned) -> tuple[bool, bool, bool]:
    """Addresses of hosts alone come last: a node may have thousands of them (kube-ipvs0)."""
    alone = owned.interface.network.num_addresses == 1
    return owned.deprecated, alone, owned.secondary


def detach(pins: Path) -> None:
    """Take out of the kernel what is pinned there."""
    hold_pinned(pins)
    Places(pins / LINKS).detach_pinned()
    remove_pins(pins)
