# SPDX-License-Identifier: Apache-2.0
"""The decapsulating end: unwraps tunnel packets on a backend's device.

A script's own, gone when the block ends::

    with Decap("eth0", ["192.0.2.11", "2001:db8::11"]) as decap:
        ...
        print(decap.counters().verdicts["unwrapped"])

or pinned, which outlives the process::

    Decap("eth0", ["192.0.2.11"], pins=Path("/sys/fs/bpf/towpath-decap")).close()
    Decap.pinned(Path("/sys/fs/bpf/towpath-decap")).detach()
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, Self

from towpath.closeable import Closeable
from towpath.datapath.decap.addresses import DecapError, between, tunnel_address
from towpath.datapath.decap.table import DecapCounters, DecapTable
from towpath.kernel.bpf import probe
from towpath.kernel.bpf.bpffs import ROOT, ensure_bpffs, new_pin_dir, remove_pins
from towpath.kernel.bpf.dispatched import DECAP_COMPONENT, DEFAULT_PRIORITY, Dispatched
from towpath.kernel.bpf.fragments import Kind, of_kind
from towpath.kernel.bpf.hooks import Dispatcher, Xdp
from towpath.kernel.bpf.links import NOT_THE_DRIVER, from_pin, xdp_mode, xdp_program_id
from towpath.kernel.bpf.maps import Map
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import KernelError, LayoutError
from towpath.kernel.net.interfaces import device_index, device_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from towpath.datapath.address import Address
    from towpath.kernel.bpf.links import Attachment

Mode = Literal["auto", "native", "generic"]

OBJECT = "decap"
PROGRAM = "towpath_decap"

# Maps of the object; also what the pins are called.
ADDRESSES = "addresses"
VERDICTS = "verdicts"
LINK = "link"

_MODES: dict[Mode, tuple[Literal["native", "generic"], ...]] = {
    "auto": ("native", "generic"),
    "native": ("native",),
    "generic": ("generic",),
}


class _Programs:
    """The program in all of its kinds, over the same tables; loaded when they are needed.

    In native mode it takes frames in fragments where the kernel has such, in generic mode it takes
    none, see `LoadedProgram.kind`. ``priority``: in a dispatcher; None: by links.
    """

    def __init__(self, undo: ExitStack, constants: Mapping[str, Any], priority: int | None) -> None:
        self._undo = undo
        self._constants = constants
        self._priority = priority
        self._loaded: dict[Kind, BpfObject] = {}
        self.why_generic = ""

    def load(self, mode: Literal["native", "generic"]) -> BpfObject:
        """The object with the program for a mode. KernelError."""
        kind = self._kind(mode)
        if kind not in self._loaded:
            shared = self._priority is not None
            made = of_kind(BpfObject.packaged(OBJECT), kind, slots=shared)
            with ExitStack() as undo:
                undo.enter_context(made)
                for name, value in self._constants.items():
                    made.rodata[name] = value
                for name in (ADDRESSES, VERDICTS) if self._loaded else ():
                    made.reuse(name, self.any.maps[name])
                made.load()
                self._undo.push(undo.pop_all())
            self._loaded[kind] = made
        return self._loaded[kind]

    def _kind(self, mode: str) -> Kind:
        if mode == "generic" or not probe.fragments():
            return Kind.LINEAR
        return Kind.FRAGMENTS if self._priority is None else Kind.CALLED

    @property
    def any(self) -> BpfObject:
        """One that is loaded."""
        return next(iter(self._loaded.values()))

    def attach(self, index: int, mode: Mode) -> Attachment:
        """Put it on a device, natively if it may be. KernelError."""
        why = ""
        if mode == "auto" and self._priority is not None and (there := xdp_mode(index)):
            # A dispatcher goes on in its mode.
            mode = "native" if there == "native" else "generic"
        for each in _MODES[mode]:
            try:
                link = self._attach(index, each)
            except KernelError as error:
                if mode != "auto" or each == "generic" or error.errno in NOT_THE_DRIVER:
                    raise
                why = str(error)
            else:
                self.why_generic = why
                return link
        raise AssertionError(mode)

    def _attach(self, index: int, mode: Literal["native", "generic"]) -> Attachment:
        program = self.load(mode).programs[PROGRAM]
        if self._priority is None:
            return Xdp(index, mode).attach(program)
        takes = self._kind(mode).fragments
        return Dispatcher(index, mode, self._priority, DECAP_COMPONENT, takes).attach(program)


class Decap(Closeable):
    """Unwraps IPIP, IP6IP6, 4in6 and 6in4 packets that come in on one device.

    ``device`` is a name or an index, ``addresses`` are the outer destinations to unwrap for.
    ``gre``: packets in GRE, too; ``udp_ports``: and those in UDP to these ports, of FOU and of
    either variant of GUE. ``mode`` is where the program runs: native in the driver, generic in the
    kernel's stack, auto the first of these that works. ``attach``: by a link, which has the
    device's XDP hook alone, or by a dispatcher, which others share, the load balancer among them
    (libxdp). It is called there by ``priority``, 50 unless it is given, and those that come later
    see what it has unwrapped; a load balancer may not. With ``pins``, a directory that doesn't
    exist yet in a BPF file system, the program stays attached after `close`, until `detach`.

    A context manager, which closes. DecapError: a wrong address, port or priority, too many, or
    ``pins`` is there already. KernelError: no such device, another program is attached, a
    capability is missing.
    """

    def __init__(
        self,
        device: str | int,
        addresses: Iterable[str | Address],
        mode: Mode = "auto",
        *,
        gre: bool = False,
        udp_ports: Iterable[int] = (),
        pins: Path | None = None,
        attach: Literal["link", "dispatcher"] = "link",
        priority: int | None = None,
    ) -> None:
        if priority is not None and attach == "link":
            raise DecapError("priority: orders the programs of a dispatcher; a link has none")
        wanted = [tunnel_address(address) for address in addresses]
        index = device_index(device) if isinstance(device, str) else device
        self.pins: Path | None = None
        if pins is not None:
            _check_free(pins)
        with ExitStack() as undo:
            placed = None
            if attach == "dispatcher":
                placed = DEFAULT_PRIORITY if priority is None else priority
            programs = _Programs(undo, between(gre=gre, udp_ports=udp_ports), placed)
            obj = programs.load(_MODES[mode][0])
            self._table = DecapTable(obj, obj.maps[ADDRESSES], obj.maps[VERDICTS])
            for address in wanted:
                self._table.add(address)
            self._name = device if isinstance(device, str) else device_name(index)
            self._wished: Mode = mode
            self._programs: _Programs | None = programs
            self._link = programs.attach(index, mode)
            self._lost = False
            undo.callback(self._let_go)
            if pins is not None:
                _pin(pins, obj, self._link)
                self.pins = pins
            self._undo = undo.pop_all()

    @classmethod
    def pinned(cls, pins: Path) -> Self:
        """Return what another process has pinned in ``pins``.

        DecapError: nothing is there. LayoutError: another version of Towpath has, and its maps
        can't be read; `detach_pinned` takes such a one down too.
        """
        _check_pinned(pins)
        self = cls.__new__(cls)
        self.pins = pins
        with ExitStack() as undo, BpfObject.packaged(OBJECT) as obj:
            addresses = undo.enter_context(_open_map(pins, obj, ADDRESSES))
            verdicts = undo.enter_context(_open_map(pins, obj, VERDICTS))
            self._table = DecapTable(obj, addresses, verdicts)
            self._programs = None
            self._link = from_pin(pins / LINK)
            self._lost = False
            undo.callback(self._let_go)
            self._undo = undo.pop_all()
        return self

    @property
    def ifindex(self) -> int:
        """The device's index, 0 when the device has gone."""
        return self._link.ifindex

    @property
    def device(self) -> str:
        """The device's name. KernelError: it has gone, or is in another network namespace."""
        return device_name(self.ifindex)

    @property
    def mode(self) -> str:
        """Where the program runs: "native" or "generic"."""
        return self._link.mode

    @property
    def shared(self) -> bool:
        """Whether it is called by a dispatcher, as others may be."""
        return isinstance(self._link, Dispatched)

    @property
    def why_generic(self) -> str:
        """What the driver said when mode auto had to settle for generic."""
        return self._programs.why_generic if self._programs else ""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses unwrapped for: IPv4 first, in order."""
        return self._table.addresses

    def add(self, address: str | Address) -> None:
        """Unwrap for this address too, from now on. DecapError: not an address, or no room."""
        self._table.add(address)

    def remove(self, address: str | Address) -> None:
        """Leave packets for this address alone from now on. DecapError: it isn't there."""
        self._table.remove(address)

    def counters(self) -> DecapCounters:
        """Read the counters. Not one moment's: packets go on while they are read."""
        return self._table.counters()

    def follow(self) -> str:
        """Attach again if the device has gone and come back, or somebody has detached the program.

        To be called now and then by the process that has attached. A device that is renamed keeps
        its program until another one has its name. Returns what is wrong, such as that there is no
        such device; empty when all is well.
        """
        if self._programs is None:
            return ""
        try:
            if not self._lost and not self._is_here(self._link.ifindex):
                # Wherever it is by now, as in another network namespace: it isn't wanted there.
                self._lost = True
                self._link.detach()
            index = device_index(self._name)
            if self._lost or index != self._link.ifindex:
                self._move(self._programs, index)
        except KernelError as error:
            return str(error)
        return ""

    def _is_here(self, index: int) -> bool:
        if isinstance(self._link, Dispatched):
            return self._link.attached
        return self._link.attached and xdp_program_id(index) == self._link.program_id

    def _move(self, programs: _Programs, index: int) -> None:
        """Attach to a device in place of the one before, if that is still there."""
        link = programs.attach(index, self._wished)
        self._link.detach()
        self._link, self._lost = link, False
        if self.pins is not None:
            (self.pins / LINK).unlink(missing_ok=True)
            link.pin(self.pins / LINK)

    def close(self) -> None:
        """Detach, unless pinned, and let go of everything in the kernel. Twice is once."""
        self._undo.close()

    def detach(self) -> None:
        """Detach even if pinned, remove the pins, and close."""
        if self.pins is not None:
            self._link.detach()
            remove_pins(self.pins)
        self.close()

    def _let_go(self) -> None:
        if self.pins is None:
            self._link.detach()
        self._link.close()


def detach_pinned(pins: Path) -> None:
    """Detach what is pinned in ``pins``, by whichever version, and remove the pins.

    DecapError: nothing is there.
    """
    _check_pinned(pins)
    from_pin(pins / LINK).detach()
    remove_pins(pins)


def _check_pinned(pins: Path) -> None:
    if not (pins / LINK).exists():
        raise DecapError(f"{pins}: no decapsulation is pinned there")


def _check_free(pins: Path) -> None:
    if pins.exists():
        raise DecapError(
            f"{pins}: something is pinned there already; detach it first, or name another directory"
        )


def _pin(pins: Path, obj: BpfObject, link: Attachment) -> None:
    if pins.is_relative_to(ROOT):
        ensure_bpffs()
    with new_pin_dir(pins) as directory:
        for name in (ADDRESSES, VERDICTS):
            obj.maps[name].pin(directory / name)
        link.pin(directory / LINK)


def _open_map(pins: Path, obj: BpfObject, name: str) -> Map:
    found = Map.from_pin(pins / name)
    differences = obj.layout(name).differences(found.layout)
    if differences:
        found.close()
        raise LayoutError(f"{pins / name}: pinned by another version of Towpath", differences)
    return found
