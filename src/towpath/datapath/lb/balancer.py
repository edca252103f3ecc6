# SPDX-License-Identifier: Apache-2.0
"""The load balancer in the kernel, as one object: what it holds, and how to change it."""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, NamedTuple, cast

from towpath.closing import Closing
from towpath.core.lb.plan import Plan, plan
from towpath.core.lb.states import BackendKey
from towpath.core.lb.steps import RemoveBackend
from towpath.datapath.address import FAMILY_V4, FAMILY_V6, Address
from towpath.datapath.errors import DatapathError
from towpath.datapath.flows.count import Census
from towpath.datapath.flows.flow_table import FlowTable
from towpath.datapath.flows.nat_table import NatFlows
from towpath.datapath.health.path import HealthPath
from towpath.datapath.lb.admission import check
from towpath.datapath.lb.allow_from import SourceSets
from towpath.datapath.lb.backends import BackendTable
from towpath.datapath.lb.execute import execute
from towpath.datapath.lb.extents import Extents
from towpath.datapath.lb.grace import Reclaimer
from towpath.datapath.lb.kernel_tables import KernelTables
from towpath.datapath.lb.lookup import Endpoints, Lengths
from towpath.datapath.lb.maglev_table import MaglevSlots
from towpath.datapath.lb.options import Flags, ServiceOptions
from towpath.datapath.lb.outer_source import fill_settings
from towpath.datapath.lb.port_pages import PortPages
from towpath.datapath.lb.services import ServiceRows
from towpath.datapath.lb.vips import VipIndex
from towpath.datapath.migration.migration import Migration, Moved
from towpath.datapath.observe import trace
from towpath.datapath.observe.counters import Counters, forget_drops, read_counters, read_verdicts
from towpath.datapath.observe.verdicts import describe
from towpath.datapath.program.attachment import Attachment
from towpath.datapath.program.pins import held
from towpath.datapath.program.program import LoadedProgram
from towpath.datapath.recorder.recorder import Recorder
from towpath.datapath.snat.table import begin as begin_snat
from towpath.datapath.snat.table import check as check_snat
from towpath.datapath.snat.table import forget as forget_translations
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.rcu import wait_for_readers
from towpath.kernel.jiffies import Jiffies
from towpath.kernel.net import interfaces
from towpath.model.service import BackendState, Service, ServiceKey
from towpath.model.settings import DEFAULT_MARK, Device, Icmp, Limits, Source
from towpath.model.snat import Snat

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from towpath.datapath.lb.services import Installed
    from towpath.datapath.migration.pinned_tables import KeptTables
    from towpath.datapath.recorder.capture import Recording
    from towpath.model.capture import Capture
    from towpath.model.flow import FlowTuple
    from towpath.native.records import Fate

log = logging.getLogger(__name__)


def unnamed(key: ServiceKey) -> str:
    """Return what a service is called whose name isn't known, such as tcp-203.0.113.10-80."""
    return re.sub("[/,]", "_", f"{key.protocol}-{key.vip}-{key.port}")


class Member(NamedTuple):
    """A backend of a service: what a handle stands for."""

    service: ServiceKey
    backend: Address
    translated: bool = False
    """Its flows are among those that are translated."""

    @property
    def family(self) -> int:
        """The ``enum family`` of the service's clients."""
        return FAMILY_V4 if isinstance(self.service.vip, IPv4Address | IPv4Network) else FAMILY_V6


class Balancer(Closing):
    """An XDP load balancer on ``devices``.

    With ``pins``, a directory in a bpffs, it outlives this object: another one made
    with the same directory takes it over as it is, programs and tables, and no packet
    is lost in between; also where ``limits`` or this version of Towpath ask for other
    tables. Without, closing it detaches everything.

    ``health`` is the way that health checks take, their packets carrying ``mark``.

    Not thread-safe. A context manager, which closes.

    Raises KernelError if a device doesn't exist or can't take the program, or another
    process has ``pins``; LayoutError if ``pins`` holds tables that this version can't read,
    CapacityError if what is in them is more than ``limits`` allow. There is then no more
    in the kernel than before.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        source: Source | None = None,
        icmp: Icmp | None = None,
        limits: Limits | None = None,
        pins: Path | None = None,
        snat: Snat | None = None,
        mark: int = DEFAULT_MARK,
    ) -> None:
        if not devices:
            raise DatapathError("no device to balance on; name at least one")
        indexes = [interfaces.device_index(device.name) for device in devices]
        self._pins = pins
        self._snat = snat or Snat()
        self._observed: dict[ServiceKey, Service] = {}
        self._tell_recorder: Callable[[], None] = lambda: None
        self._undo = ExitStack()
        with ExitStack() as undo, ExitStack() as on_failure:
            if pins is not None:
                undo.enter_context(held(pins))
            self._program = LoadedProgram(limits or Limits(), pins, snat=self._snat, mark=mark)
            undo.callback(self._program.close)
            if pins is not None and not self._program.adopted and not self._program.leaving:
                on_failure.callback(remove_pins, pins / "maps")
                on_failure.callback(remove_pins, pins / "links")
            self._make_tables()
            settings = self._program.maps["settings"]
            on_failure.callback(settings.update, 0, settings.lookup(0))
            self._write_settings(source or Source(), icmp or Icmp(), indexes)
            migration = None
            if self._program.adopted:
                self._adopt()
            elif self._program.leaving:
                on_failure.callback(self._program.give_up)
                migration = self._move_in(self._program.leaving)
            self._attachment = Attachment(self._program, devices, pins)
            undo.callback(self._attachment.close)
            self.health = HealthPath(self._program, indexes, mark, self._snat)
            undo.callback(self.health.close)
            self._leave(migration)
            # Only now does no other program fill the table in its own way any more.
            begin_snat(self._program, self._snat)
            self.recorder = Recorder(self._program, self._attachment)
            self._tell_recorder = self.recorder.changed
            undo.callback(self.recorder.close)
            on_failure.pop_all()
            self._undo = undo.pop_all()

    def _make_tables(self) -> None:
        program = self._program
        reclaimer = Reclaimer(wait_for_readers)
        self._slots = MaglevSlots(
            program.maps["maglev"], program.constant("maglev_limits", "MAGLEV_LINE")
        )
        self._extents = Extents(self._slots.capacity, wait_for_readers)
        self._backends = BackendTable(
            program.rows("backends"),
            program.constant("handle_bits", "HANDLE_INDEX_BITS"),
            reclaimer,
            program.forgetter(
                "backend_cpus", "backend_flows", columns=program.layout.entries["backends"]
            ),
            {
                state: program.constant("backend_state", f"BACKEND_{state.name}")
                for state in BackendState
            },
        )
        self._tables = KernelTables(
            self._make_endpoints(reclaimer),
            self._backends,
            self._extents,
            self._slots,
            ServiceRows(
                program.rows("services"),
                reclaimer,
                program.forgetter(
                    "service_cpus", "reply_cpus", columns=program.layout.entries["services"]
                ),
            ),
            self._make_options(reclaimer),
        )

    def _make_options(self, reclaimer: Reclaimer) -> ServiceOptions:
        program = self._program
        trie = program.maps["sources"]
        self._sources = SourceSets(
            trie,
            trie.key_dtype,
            program.constant("source_limits", "SOURCE_BITS"),
            program.layout.entries["sources"],
            reclaimer,
        )
        flags = (
            program.constant("service_flags", name)
            for name in ("SERVICE_NO_FLOW_TABLE", "SERVICE_L2", "SERVICE_SNAT")
        )
        return ServiceOptions(program.rows("services"), Flags(*flags), self._sources)

    def _make_endpoints(self, reclaimer: Reclaimer) -> Endpoints:
        program = self._program
        flag = program.constant("vip_kind", "VIP_PREFIX")
        probes = program.constant("vip_limits", "VIP_PROBES")
        most = program.constant("vip_families", "VIP_LENGTHS")
        whole = program.constant("port_pages", "PORT_WHOLE")
        (lengths,) = program.rows("vip_lengths")
        return Endpoints(
            VipIndex(program.rows("vips"), probes, reclaimer, flag),
            PortPages(program.rows("port_pages"), whole, reclaimer),
            Lengths(lengths["ports"], most),
            Lengths(lengths["known"], most),
            flag,
        )

    def _write_settings(self, source: Source, icmp: Icmp, indexes: Sequence[int]) -> None:
        addresses = [each for index in indexes for each in interfaces.addresses(index)]
        record = self._program.maps["settings"].lookup(0)
        fill_settings(record, source, addresses)
        record["echo"] = icmp.echo
        self._program.maps["settings"].update(0, record)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that the program is on."""
        return tuple(self._attachment.devices.values())

    def observed(self) -> tuple[Service, ...]:
        """Return the services that are in the kernel.

        The kernel doesn't know their names: a service that this object hasn't
        been given is called as :func:`unnamed` says.
        """
        return tuple(self._observed.values())

    def _adopt(self, known: Iterable[Service] = ()) -> None:
        """Take over what is in the kernel, with the names that are ``known``."""
        self._tables.adopt()
        names = {service.key: service.name for service in known}
        installed = self._tables.services
        self._observed = {
            key: Service(
                name=names.get(key, unnamed(key)),
                vip=key.vip,
                port=key.port,
                protocol=key.protocol,
                backends=each.backends(),
                **each.options.fields(),
            )
            for key, each in sorted(installed.items(), key=lambda item: item[0].order)
        }

    def _move_in(self, leaving: KeptTables) -> Migration:
        """Fill the tables, which no packet reads yet, with everything that ``leaving`` has.

        CapacityError: it doesn't fit.
        """
        begin_snat(self._program, self._snat)
        before = _Reader(leaving)
        self.apply(before.observed())
        moved = Moved.between(before.installed, self.installed)
        made = Migration(leaving, self._program, moved)
        flows = made.before()
        log.info("copied %d services and %d flows to new tables", len(self.installed), flows)
        self._program.pin_beside()
        return made

    def _leave(self, migration: Migration | None) -> None:
        """After the last device uses these tables: take what came meanwhile along.

        Without a migration a process died in the middle of one, if there are tables to leave.
        """
        leaving = self._program.leaving
        if migration is not None:
            log.info("copied %d flows that came meanwhile", migration.after())
        elif leaving is not None:
            moved = Moved.between(_Reader(leaving).installed, self.installed)
            flows = Migration(leaving, self._program, moved).follow()
            log.info("copied %d flows from tables that were being left", flows)
        self._program.leave()

    @property
    def installed(self) -> Collection[Installed]:
        """The services as they are in the kernel."""
        return self._tables.services.values()

    def plan(self, services: Iterable[Service]) -> Plan:
        """Return what `apply` would do with ``services``."""
        return plan(self.observed(), tuple(services))

    def apply(self, services: Iterable[Service]) -> Plan:
        """Make ``services`` what is in the kernel, step by step, and return the steps.

        Flows go on throughout. CapacityError: there is no room, DatapathError: there is no
        address to translate a service's packets to; nothing was changed then.
        """
        services = tuple(services)
        check_snat(self._snat, services)
        wanted = self.plan(services)
        check(self._tables, wanted.steps)
        try:
            for step in wanted.steps:
                execute(step, self._tables)
            self._tables.withdraw_leftovers()
        except BaseException:
            # As after a death: the kernel's tables say what there is.
            wait_for_readers()
            self._make_tables()
            self._adopt((*self.observed(), *services))
            raise
        if any(isinstance(step, RemoveBackend) for step in wanted.steps):
            forget_drops(self._program, (handle for _, handle, _ in self._backends))
        # The very objects: what doesn't change next time is then seen at a glance.
        self._tell_recorder()
        for change in wanted.changes:
            if change.before is not None:
                del self._observed[change.before.key]
        self._observed |= {each.after.key: each.after for each in wanted.changes if each.after}
        return wanted

    def counters(self, cpu: int | None = None) -> Counters:
        """Return what has been counted since the load balancer came up, by one CPU or by all."""
        installed = self._tables.services.values()
        return read_counters(self._program, self._backends, installed, cpu)

    @property
    def cpus(self) -> range:
        """The CPUs that may count."""
        return range(self._program.layout.cpus)

    def members(self) -> dict[int, Member]:
        """Return which backend of which service each handle stands for."""
        return {
            handle: Member(service.key, address, service.options.forwarding == "snat")
            for service in self._tables.services.values()
            for address, handle in service.handles.items()
        }

    @cached_property
    def flow_table(self) -> FlowTable:
        """The flows that the program remembers, until this is closed."""
        return FlowTable.of(self._program, self._jiffies)

    @cached_property
    def nat_flows(self) -> NatFlows:
        """The flows that are translated, until this is closed."""
        return NatFlows.of(self._program, self._jiffies)

    @cached_property
    def _jiffies(self) -> Jiffies:
        jiffies = Jiffies()
        self._undo.callback(jiffies.close)
        return jiffies

    def verdicts(self) -> dict[str, int]:
        """Return how many packets had each verdict: a part of `counters`, for less."""
        return read_verdicts(self._program)

    def census(self, backends: Collection[BackendKey]) -> Census:
        """Prepare to count the flows of backends.

        Those that aren't there have none. What is returned may be used by another thread
        while this object is open.
        """
        services = self._tables.services
        handles = {
            BackendKey(key, address): handle
            for key in services.keys() & {each.service for each in backends}
            for address, handle in services[key].handles.items()
        }
        wanted = {key: handles[key] for key in backends if key in handles}
        return Census(self.flow_table, wanted, self.nat_flows)

    def trace(self, flow: FlowTuple, device: str | None = None) -> trace.Trace:
        """Return what the program would do with the flow's next packet on ``device``.

        The first device unless one is named. Changes nothing. DatapathError if
        the program isn't on that device.
        """
        wanted = device or self.devices[0]
        for index, name in self._attachment.devices.items():
            if name == wanted:
                by_index = {each.index: each for each in self._tables.services.values()}
                return trace.run(self._program, flow, (index, name), by_index)
        raise DatapathError(f"not on device {wanted}; on: {', '.join(self.devices)}")

    def forget_translations(self) -> None:
        """Forget every flow of services with forwarding snat, as if it had never been."""
        forget_translations(self._program)

    def record(self, capture: Capture) -> Recording:
        """Begin a capture; it ends when what this returns is closed, or this object.

        DatapathError: it names a service that isn't there, or there are too many captures.
        """
        return self.recorder.start(capture, self.observed(), self.fate)

    def fate(self, fate: Fate) -> str:
        """Return what became of a packet in words: service, backend, verdict."""
        return describe(fate, self._tables.services.values(), self._observed, self._program)

    def refresh_devices(self) -> None:
        """Look again which VLAN devices there are."""
        self._attachment.refresh_vlans()

    def detach(self) -> None:
        """Take everything out of the kernel, pins too, and close."""
        self.recorder.close()
        self._attachment.detach()
        if self._pins is not None:
            remove_pins(self._pins)
        self.close()

    def close(self) -> None:
        """Let go: without pins the load balancer is gone, with pins it works on."""
        self._undo.close()


class _Reader(Balancer):
    """What is in tables that another program was made for. Changes nothing in the kernel."""

    def __init__(self, kept: KeptTables) -> None:
        self._program = cast("LoadedProgram", kept)
        self._make_tables()
        self._adopt()
