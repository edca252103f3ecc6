# SPDX-License-Identifier: Apache-2.0
"""The load balancer in the kernel, as one object: what it holds, and how to change it."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from towpath.closeable import Closeable
from towpath.core.lb.states import BackendKey
from towpath.datapath.errors import DatapathError
from towpath.datapath.flows.count import FlowCounter
from towpath.datapath.flows.flow_table import IDLE_SECONDS, FlowTable
from towpath.datapath.flows.members import Member, Members
from towpath.datapath.flows.nat_table import NatFlows
from towpath.datapath.health.foreign import Foreign, common_bits
from towpath.datapath.health.path import HealthPath
from towpath.datapath.host import Host
from towpath.datapath.lb.contents import Contents
from towpath.datapath.lb.destinations import destinations
from towpath.datapath.lb.hops import BackendHops
from towpath.datapath.lb.unwrap import UnwrapAddresses
from towpath.datapath.lb.ways_by_flow import WaysByFlow
from towpath.datapath.local.node import LocalNode
from towpath.datapath.maps.pins import LOCAL, held
from towpath.datapath.maps.shared import SharedMaps
from towpath.datapath.migration.takeover import State, Takeover
from towpath.datapath.observe import trace
from towpath.datapath.observe.counters import Readings, Totals, drops, read_counters, read_verdicts
from towpath.datapath.observe.refused import Refusals
from towpath.datapath.observe.verdicts import describe
from towpath.datapath.program.egress import Egress
from towpath.datapath.program.program import LoadedProgram
from towpath.datapath.recorder.recorder import Recorder
from towpath.datapath.snat.own import resolved
from towpath.datapath.snat.table import begin as begin_snat
from towpath.datapath.snat.table import check as check_snat
from towpath.datapath.snat.table import forget as forget_translations
from towpath.datapath.snat.tracked import Tracked
from towpath.datapath.socket.balancer import SocketBalancer
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.jiffies import Jiffies
from towpath.model.service import Protocol
from towpath.model.settings import (
    DEFAULT_LOCAL,
    DEFAULT_MARK,
    NO_UNWRAP,
    Device,
    ForeignCheck,
    Icmp,
    Limits,
    Local,
    Source,
    Unwrap,
)
from towpath.model.snat import Snat

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from towpath.core.lb.plan import Transition
    from towpath.core.recorder.names import Told
    from towpath.datapath.address import Address
    from towpath.datapath.cgroup.root import CgroupRoot
    from towpath.datapath.lb.services import Installed
    from towpath.datapath.neigh.next_hops import Trouble
    from towpath.datapath.neigh.wanted import Resolver
    from towpath.datapath.recorder.capture import Recording
    from towpath.documents import Counters, DeviceStatus, Refused, Trace, UnwrappedCounters
    from towpath.model.capture import Capture
    from towpath.model.flow import FlowTuple
    from towpath.model.service import Service, ServiceKey
    from towpath.native.records import Outcome

log = logging.getLogger(__name__)


class Followed(NamedTuple):
    """How often something was put right that others had done."""

    programs: int
    """Of a device: detached, or another one put in their place."""
    settings: int
    """Of a device, that is needed otherwise than it was set."""
    checks: int
    """The program or the routing of health checks."""
    pins: int
    """Pins that were removed."""
    resyncs: int
    """All was asked for again, since messages about changes were lost."""


class Balancer(Closeable):
    """An XDP load balancer on ``devices``.

    With ``pins``, a directory in a bpffs, it outlives this object: another one made
    with the same directory takes it over as it is, programs and tables, and no packet
    is lost in between; also where ``limits`` or this version of Towpath ask for other
    tables. Without, closing it detaches everything.

    ``health`` is the way that health checks take, their packets carrying ``mark``, those of other
    programs one of ``foreign``. ``next_hops`` keeps resolved how backends are reached. ``egress``
    finds out what can leave by which device. ``local`` says which backends are on this node,
    besides those that have its own addresses. ``unwrap``: tunnels to this node whose packets are
    balanced.
    ``tracks``: somebody else may have translated for these services before, or will: flows are
    taken from the kernel's connection tracking, and given to it (``tracked``).
    ``known``: services that may be pinned already; those that are there just as they are known need
    not be made of what is there, nor compared with it again.
    ``bare``: there may be no device; services are then balanced by others, over the same tables.

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
        foreign: Sequence[ForeignCheck] = (),
        next_hops: Resolver | None = None,
        egress: type[Egress] = Egress,
        bare: bool = False,
        local: Local = DEFAULT_LOCAL,
        unwrap: Unwrap = NO_UNWRAP,
        tracks: bool = False,
        known: Sequence[Service] = (),
    ) -> None:
        if not devices and not bare:
            raise DatapathError("no device to balance on; name at least one")
        self._pins = pins
        self._snat = resolved(snat or Snat(), [each.name for each in devices])
        self._source = source or Source()
        self._next_hops = next_hops
        self._told: list[Callable[[Transition], None]] = []
        self._mark, self._foreign = mark, common_bits(foreign)
        self._undo = ExitStack()
        with ExitStack() as undo, ExitStack() as on_failure:
            hold = None if pins is None else undo.enter_context(held(pins))
            self._host = Host(devices, self._source, pins, [each.backend for each in foreign])
            undo.callback(self._host.close)
            self._maps = SharedMaps(limits or Limits(), pins)
            undo.callback(self._maps.close)
            if pins is not None and not self._maps.adopted and not self._maps.leaving:
                on_failure.callback(remove_pins, pins / "maps")
                on_failure.callback(remove_pins, pins / "links")
            self._program = LoadedProgram(
                self._maps,
                snat=self._snat,
                mark=mark,
                foreign=self._foreign,
                unwrap=unwrap,
                tracks=tracks,
                slots=any(each.attach == "dispatcher" for each in devices),
            )
            undo.callback(self._program.close)
            self.local = LocalNode(local, self._host.devices, pins and pins / LOCAL)
            undo.callback(self.local.close)
            self._contents = Contents(self._maps, self.local.locality.is_here)
            self._answer_as(icmp or Icmp(), on_failure)
            self._unwrap = UnwrapAddresses(self._maps.maps["unwrap_addresses"], unwrap, on_failure)
            takeover = Takeover(self._program, self._contents, known)
            on_failure.callback(takeover.give_up)
            if takeover.state is State.MOVING:
                begin_snat(self._maps, self._snat)
            takeover.before_attaching()
            begun = partial(Tracked.begun, self._maps, self._contents, self._snat, pins)
            self.tracked = begun(bare=not devices) if tracks else None
            self._refusals = undo.enter_context(Refusals(self._maps))
            ways = egress(self._program, self._refusals, self._host.devices)
            self._attachment = self._host.attach(self._program, self._contents, ways)
            undo.callback(self._host.let_go)
            self.health = HealthPath(
                self._program,
                self._attachment,
                self._host.devices,
                self._host.switches,
                mark=mark,
                foreign=Foreign(self._program, foreign),
                snat=self._snat,
            )
            undo.callback(self.health.close)
            self.local.begin(self._maps, self._contents, self._attachment)
            self._host.follow_with(self.health, self.local, hold)
            takeover.after_attaching()
            self._unwrap.settle()
            # Only now does no other program fill the table in its own way any more.
            begin_snat(self._maps, self._snat)
            self.recorder = Recorder(self._program, self._attachment)
            undo.callback(self.recorder.close)
            on_failure.pop_all()
            self._undo = undo.pop_all()
        self._hops = BackendHops(next_hops, self._source, self._contents, self.local, self._maps)
        self._follow_differences()

    def _answer_as(self, icmp: Icmp, on_failure: ExitStack) -> None:
        record = self._maps.maps["settings"].lookup(0)
        on_failure.callback(self._maps.maps["settings"].update, 0, record.copy())
        record["echo"] = icmp.echo
        record["too_big_df"] = icmp.fragmentation_needed == "df"
        self._maps.maps["settings"].update(0, record)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that the program is on."""
        return tuple(self._attachment.devices.values())

    def observed(self) -> tuple[Service, ...]:
        """Return the services that are in the kernel.

        The kernel doesn't know their names: a service that this object hasn't
        been given is called as :func:`towpath.datapath.lb.contents.unnamed` says.
        """
        return self._contents.observed()

    def observed_at(self, keys: Iterable[ServiceKey]) -> tuple[Service, ...]:
        """Return those of the services in the kernel that have these keys."""
        return self._contents.at(keys)

    @property
    def installed(self) -> Collection[Installed]:
        """The services as they are in the kernel."""
        return self._contents.installed

    def plan(self, services: Iterable[Service]) -> Transition:
        """Return what `apply` would do with ``services``."""
        return self._contents.plan(services)

    def apply(self, services: Iterable[Service]) -> Transition:
        """Make ``services`` what is in the kernel, step by step, and return the steps.

        Flows go on throughout. CapacityError: there is no room, DatapathError: there is no
        address to translate a service's packets to; nothing was changed then.
        """
        services = tuple(services)
        check_snat(self._snat, services)
        return self._tell(self._contents.apply(services, self._host.prepare))

    def change(self, keys: Iterable[ServiceKey], services: Iterable[Service]) -> Transition:
        """Make ``services`` what is in the kernel in the place of those at ``keys``, as `apply`.

        All others stay as they are, and cost nothing.
        """
        services = tuple(services)
        check_snat(self._snat, services)
        return self._tell(self._contents.change(keys, services, self._host.prepare))

    def _tell(self, made: Transition) -> Transition:
        """Have all follow what services have become."""
        self.recorder.changed()
        self._ways_by_flow.notice(each.after for each in made.changes if each.after)
        both = (each for change in made.changes for each in change if each is not None)
        self._hops.follow({each.key for each in both})
        for tell in self._told:
            tell(made)
        return made

    @property
    def version(self) -> int:
        """Another number whenever other services may be in the kernel than before."""
        return self._contents.version

    def sockets(
        self, cgroup: Path | CgroupRoot | None, pins: Path | None = None, **wishes: Any
    ) -> SocketBalancer:
        """Balance these services at the sockets of a cgroup's processes, too.

        ``wishes`` and errors as :class:`towpath.datapath.socket.balancer.SocketBalancer` has them.
        To be closed before this is.
        """
        own: dict[str, Any] = {"mark": self._mark, "foreign": self._foreign}
        own["tracked"] = self.tracked
        made = SocketBalancer(self._maps, self._contents, cgroup, pins, **own, **wishes)
        self.tell(made.changed)
        return made

    def tell(self, changed: Callable[[Transition], None]) -> None:
        """Have this called after each `apply`, with what it has changed, by the same thread."""
        self._told.append(changed)

    def _follow_differences(self) -> None:
        """Have the program ask for each packet where one way can't be kept for all flows."""
        self._ways_by_flow = WaysByFlow(self._program.rows("ways"), self._source)
        self._ways_by_flow.notice(each.options for each in self._contents.installed)
        if self._next_hops is not None:
            self._next_hops.tell(self._ways_by_flow.tell)
            self._undo.callback(self._next_hops.tell, None)

    def counters(self, cpu: int | None = None) -> Counters:
        """Return what has been counted since the load balancer came up, by one CPU or by all."""
        installed = self._contents.installed
        backends = self._contents.tables.backends
        read = read_counters(self._maps, backends, installed, self._contents.by_key, cpu)
        read = replace(read, unwrapped=self._unwrap.counters(cpu))
        if cpu is not None:
            return read
        return replace(read, refused=self.refused(), local=self.local.counts())

    def unwrapped(self) -> tuple[UnwrappedCounters, ...]:
        """Return what was taken out of tunnels, by their destinations."""
        return self._unwrap.counters()

    def refused(self) -> tuple[Refused, ...] | None:
        """Return what was counted as sent and then refused; None: this kernel doesn't tell."""
        return self._refusals.refused(self._host.devices)

    def readings(self) -> Readings:
        """Return the same without names and addresses, for who renders all of it."""
        unreached = frozenset(handle for *_, handle, _ in self._unreached())
        return Readings(
            self._contents.places,
            Totals.read(self._maps),
            unreached,
            self._contents.tables.local.handles(),
        )

    def unreached(self) -> dict[BackendKey, Trouble]:
        """Return the backends that packets don't get to, and why.

        None where nobody keeps next hops resolved.
        """
        return {BackendKey(key, address): why for key, address, _, why in self._unreached()}

    def reasons(self) -> dict[str, int]:
        """Return how many these are, by the reason."""
        return dict(Counter(why.reason for *_, why in self._unreached()))

    def _unreached(self) -> Iterator[tuple[ServiceKey, Address, int, Trouble]]:
        troubles = self._next_hops.troubles() if self._next_hops else {}
        if not troubles:
            return
        for service in self._contents.installed:
            if service.key.scope == "node":
                continue
            towards = destinations(service, self._source)
            for address, handle in service.noted.items():
                why = troubles.get(towards(address))
                if why is not None:
                    yield service.key, address, handle, why

    @property
    def cpus(self) -> range:
        """The CPUs that may count."""
        return range(self._program.layout.cpus)

    def members(self) -> Members:
        """Return which backend of which service each handle stands for."""
        return {
            handle: Member(
                service.key,
                address,
                # Those of backends here are not: their flows are in the flow table.
                service.options.forwarding == "snat" and not self._is_here(handle),
            )
            for service in self._contents.installed
            for address, handle in service.noted.items()
        }

    def local_backends(self) -> frozenset[BackendKey]:
        """Return the backends that this node delivers to itself."""
        return frozenset(
            BackendKey(service.key, address)
            for service in self._contents.installed
            for address, handle in service.noted.items()
            if self._is_here(handle)
        )

    def _is_here(self, handle: int) -> bool:
        return self._contents.tables.local.has(handle)

    @cached_property
    def flow_table(self) -> FlowTable:
        """The flows that the program remembers, until this is closed."""
        return FlowTable.of(self._maps, self._jiffies)

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
        return read_verdicts(self._maps)

    def flow_counter(self, backends: Collection[BackendKey]) -> FlowCounter:
        """Prepare to count the flows of backends.

        Those that aren't there have none. What is returned may be used by another thread
        while this object is open.
        """
        services = self._contents.tables.services
        handles = {
            BackendKey(key, address): handle
            for key in services.keys() & {each.service for each in backends}
            for address, handle in services[key].noted.items()
        }
        wanted = {key: handles[key] for key in backends if key in handles}
        timeouts = {
            handle: services[key.service].options.flow_timeout or IDLE_SECONDS
            for key, handle in wanted.items()
            if key.service.protocol is Protocol.UDP
        }
        return FlowCounter(self.flow_table, wanted, self.nat_flows, timeouts)

    def trace(self, flow: FlowTuple, device: str | None = None) -> Trace:
        """Return what the program would do with the flow's next packet on ``device``.

        The first device unless one is named. Changes nothing. DatapathError if
        the program isn't on that device.
        """
        wanted = device or next(iter(self.devices), "any: none is there")
        for index, name in self._attachment.devices.items():
            if name == wanted:
                by_index = {each.index: each for each in self._contents.installed}
                return trace.run(
                    self._program, flow, (index, name), by_index, self._contents.by_key
                )
        raise DatapathError(f"not on device {wanted}; on: {', '.join(self.devices)}")

    def forget_translations(self) -> None:
        """Forget every flow of services with forwarding snat, as if it had never been."""
        forget_translations(self._maps)

    def record(self, capture: Capture) -> Recording:
        """Begin a capture; it ends when what this returns is closed, or this object.

        DatapathError: it names a service that isn't there, or there are too many captures.
        """
        return self.recorder.start(
            capture, self.observed(), self.describe, dropped=self.drop_counter(capture)
        )

    def drop_counter(self, capture: Capture) -> Callable[[], int]:
        """Return what says how many packets have been dropped by now, for any thread.

        Of the capture's services, as they are now, if it is for some; of all else.
        """
        if not capture.services:
            return partial(drops, self._maps)
        named = {
            key for key, each in self._contents.by_key.items() if each.name in capture.services
        }
        at = [each.index for each in self._contents.installed if each.key in named]
        return partial(drops, self._maps, at)

    def describe(
        self, outcome: Outcome, pod: Callable[[str, Address], str | None] = lambda *_: None
    ) -> Told:
        """Return what became of a packet in words: service, backend, verdict; and names.

        ``pod``: what the pod is called that a backend of a service is, by the service's name.
        """
        return describe(outcome, self._contents.installed, self._contents.by_key, self._maps, pod)

    # ---- the machine -----------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor that is readable when there is something for `follow` to look at."""
        return self._host.devices.fileno()

    def follow(self) -> None:
        """Follow what has changed on this machine: devices, addresses, VLANs, what others undid.

        To be called when `fileno` is readable, and once a second: not everything is told. What
        can't be put right is among ``troubles``. OSError: it can't be found out.
        """
        self._host.follow()
        self._hops.prefer_busy()

    @property
    def is_due(self) -> bool:
        """Whether `follow` is to be called now."""
        return self._host.is_due

    def refresh_devices(self) -> None:
        """The same, and all that was written for it is compared with what there is."""
        self._host.follow(thoroughly=True)

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is wrong with devices, settings and pins; empty when all is well. For any thread."""
        return self._host.troubles

    @property
    def device_status(self) -> tuple[DeviceStatus, ...]:
        """The devices that were asked for, and how they are. For any thread."""
        return self._attachment.status

    @property
    def followed(self) -> Followed:
        """How often it had to be put right what others did. For any thread."""
        return Followed(
            programs=self._attachment.repairs,
            settings=self._host.switches.repairs,
            checks=self.health.repairs,
            pins=self._host.repairs,
            resyncs=self._host.devices.resyncs,
        )

    # ---- the end ---------------------------------------------------------------------------------

    def detach(self) -> None:
        """Take everything out of the kernel, pins too, and close.

        Translated flows are the kernel's from then on, where it ``tracks``.
        """
        self.recorder.close()
        if self.tracked is not None:
            self.tracked.give(self.nat_flows, self.local.path)
        self._host.detach()
        if self._pins is not None:
            remove_pins(self._pins)
        self.close()

    def close(self) -> None:
        """Let go: without pins the load balancer is gone, with pins it works on."""
        self._undo.close()
