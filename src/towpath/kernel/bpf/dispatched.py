# SPDX-License-Identifier: Apache-2.0
"""A program that a dispatcher calls, with the methods of a link.

What the dispatcher calls is not the program but `bpf/dispatcher/component.bpf.c`, which tail-calls
what is in its slot. Dispatchers that others make take it along, and so the program is exchanged by
one write, whoever has made the dispatcher; it can be test-run, which extensions can't. The slot
empties itself when nothing holds it any more, neither a process nor a pin: then packets pass.
"""

from __future__ import annotations

import errno as errnos
import os
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Self

from towpath.kernel.bpf import dispatcher, links, probe
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.dispatcher import COMPONENT_OBJECT, NAME, Component, Mode
from towpath.kernel.bpf.map_types import MapType
from towpath.kernel.bpf.maps import Map
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.programs import BPF_F_XDP_HAS_FRAGS, Program, ProgramType
from towpath.kernel.errors import KernelError
from towpath.kernel.net.interfaces import device_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

DEFAULT_PRIORITY = 50
"""The protocol's, of programs that say nothing else."""
COMPONENT = "towpath"
"""What stands in dispatchers for the load balancer."""
DECAP_COMPONENT = "towpath_decap"
"""And for the program on a backend. Of one priority it is called later."""
COMPONENTS = (COMPONENT, DECAP_COMPONENT)
_SLOT = "slot"
_XDP_PASS = 2
_CONTINUE = frozenset((_XDP_PASS,))


class Dispatched:
    """A program that the dispatcher of a device calls: an `Attachment`.

    Others come after it when it passes a packet.
    """

    why_generic = ""

    def __init__(self, slot: Map, ifindex: int) -> None:
        self._slot = slot
        self._seen: _Seen | None = None
        self.ifindex = ifindex

    @classmethod
    def attach(
        cls,
        program: Program,
        ifindex: int,
        mode: Mode,
        priority: int = DEFAULT_PRIORITY,
        *,
        component: str = COMPONENT,
        fragments: bool = False,
    ) -> Self:
        """Have the dispatcher of a device call a program; make one where there is none.

        ``component``: which of `COMPONENTS` others see. ``fragments``: the program takes frames in
        fragments (`fragments.Kind.CALLED`). KernelError: another program is there, the dispatcher
        is full or runs in another mode, the driver refuses, or the kernel can't.
        """
        with _component(component) as made:
            flags = _flags(fragments=fragments)
            ours = Component(made.programs[component], priority, _CONTINUE, flags)
            _fill(made.maps[_SLOT], program.fd, program.name)
            # The slot is never without a holder.
            with ExitStack() as undo:
                slot = undo.enter_context(Map(os.dup(made.maps[_SLOT].fd), name=_SLOT))
                dispatcher.change(
                    ifindex,
                    lambda there: ordered(ifindex, [*filter(_is_held, there), ours]),
                    mode=mode,
                )
                undo.pop_all()
        return cls(slot, ifindex)

    @classmethod
    def from_pin(cls, path: Path | str) -> Self:
        """What was pinned at ``path``; what a process was killed amid is cleared away. KernelError.

        Its device is 0 if others have taken it out of the dispatcher.
        """
        with ExitStack() as undo:
            slot = undo.enter_context(Map.from_pin(path))
            ifindex = next((each.ifindex for each in _directories(slot.id)), 0)
            if ifindex:
                with suppress(KernelError):  # somebody holds the lock: it is for the next one to do
                    dispatcher.recover(ifindex)
            undo.pop_all()
        return cls(slot, ifindex)

    @property
    def mode(self) -> str:
        """How the dispatcher runs: "native", "generic", "" when there is none."""
        return links.xdp_mode(self.ifindex) if self.ifindex else ""

    @property
    def program_id(self) -> int:
        """The id of the program that is called now, 0 for none."""
        return int(self._slot.lookup(0) or 0)

    @property
    def attached(self) -> bool:
        """Whether the dispatcher on the device, whoever has made it, calls this."""
        return self._look() is not None

    @property
    def fragments(self) -> bool:
        """Whether the dispatcher takes frames in fragments, as all that it calls do."""
        seen = self._look()
        return seen is not None and seen.fragments

    def _look(self) -> _Seen | None:
        """The dispatcher that calls this, None where none does."""
        number = links.xdp_program_id(self.ifindex) if self.ifindex else 0
        if not number:
            return None
        seen = self._seen
        if seen is None or seen.dispatcher != number or not seen.link.exists():
            self._seen = seen = self._looked_for()
        return seen

    def _looked_for(self) -> _Seen | None:
        with suppress(KernelError):  # what is there is no dispatcher, or has lost its pins
            there = dispatcher.opened(self.ifindex)
            if there is None:
                return None
            with there:
                for n, each in enumerate(there.components):
                    link = there.pins / f"prog{n}-link"
                    if self._is_this(each.program) and link.exists():
                        return _Seen(there.program.id, link, there.fragments)
        return None

    def others(self) -> list[str]:
        """The names of what the dispatcher calls beside it. KernelError."""
        there = dispatcher.opened(self.ifindex) if self.ifindex else None
        if there is None:
            return []
        with there:
            programs = [each.program for each in there.components]
            return [each.name for each in programs if not self._is_this(each)]

    def _is_this(self, program: Program) -> bool:
        return self._slot.id in program.map_ids

    def update(self, program: Program) -> None:
        """Replace the program; no packet goes by in between. KernelError."""
        _fill(self._slot, program.fd, program.name)

    def arrange(self, priority: int, *, fragments: bool | None = None) -> None:
        """Be called in another order from now on. KernelError.

        ``fragments``: whether the program takes frames in fragments by now; None: as before.
        """
        wished = None if fragments is None else _flags(fragments=fragments)

        def arranged(each: Component) -> Component:
            flags = each.flags if wished is None else wished
            return replace(each, priority=priority, flags=flags)

        def moved(there: Sequence[Component]) -> Sequence[Component] | None:
            ours = [each for each in there if self._is_this(each.program)]
            if all(each == arranged(each) for each in ours):
                return None
            others = [each for each in there if each not in ours]
            return ordered(self.ifindex, [*others, *map(arranged, ours)])

        dispatcher.change(self.ifindex, moved)

    def pin(self, path: Path | str) -> None:
        """Name it in a BPF file system, from which `from_pin` gets it back. KernelError."""
        self._slot.pin(path)

    def detach(self) -> None:
        """Have the dispatcher call it no longer, and close. Twice is once. KernelError."""
        if self._slot.fd < 0:
            return
        try:
            if self.ifindex and self.attached:
                dispatcher.change(self.ifindex, self._left_out)
            for each in _directories(self._slot.id):
                # Of a device that is gone. Others' programs, if there are any, are left to them, as
                # is what couldn't be looked at and is at work: with an empty slot it does nothing.
                if each.is_alone and links.xdp_program_id(each.ifindex) != each.dispatcher:
                    with suppress(OSError):  # whose it is removes them as well
                        remove_pins(each.path)
        finally:
            self._slot.delete(0, missing_ok=True)
            self.close()

    def _left_out(self, there: Sequence[Component]) -> Sequence[Component]:
        return [each for each in there if not self._is_this(each.program)]

    def close(self) -> None:
        """Let go: what is pinned stays, anything else passes packets from now on."""
        self._slot.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()


# ---- The component -------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """A dispatcher that calls a program of ours."""

    dispatcher: int
    """The id of its program."""
    link: Path
    """What keeps ours in its place there."""
    fragments: bool
    """Whether it takes frames in fragments."""


def _flags(*, fragments: bool) -> int:
    return BPF_F_XDP_HAS_FRAGS if fragments else 0


@contextmanager
def _component(name: str) -> Iterator[BpfObject]:
    """A new one. KernelError: the kernel has none such."""
    with BpfObject.packaged(COMPONENT_OBJECT) as made:
        try:
            load(made, name)
        except KernelError as error:
            hint = f"no program may take the place of a function (freplace): {error}"
            raise KernelError("share an XDP hook", error.errno, hint) from error
        yield made


def load(made: BpfObject, name: str = COMPONENT, *, statistics: bool = False) -> None:
    """Load one of the components, for the dispatchers that there will be. KernelError."""
    for each in COMPONENTS:
        made.autoload(each, on=each == name)
    with dispatcher.loaded([]) as template:
        made.extend(name, template.programs[NAME], "prog0")
        made.load(statistics=statistics)


def _fill(slot: Map, fd: int, name: str) -> None:
    try:
        slot.update(0, fd)
    except KernelError as error:
        hint = ""
        if error.errno == errnos.EINVAL:
            hint = "this kernel lets extensions (freplace) tail-call nothing else (6.2 does)"
        what = f"have a dispatcher call {name}"
        raise KernelError(what, error.errno, hint) from error


def placed(components: Iterable[Component]) -> list[Component]:
    """In the order of the protocol; those that are alike stay as they are."""
    return sorted(components, key=lambda each: (each.priority, each.program.name))


def ordered(ifindex: int, components: Iterable[Component]) -> list[Component]:
    """As `placed`. KernelError: the load balancer would see what has been unwrapped for the host.

    It would send that on as if a client had sent it: between two such hosts for ever.
    """
    there = placed(components)
    unwraps = None
    for each in filter(_is_held, there):
        if each.program.name == DECAP_COMPONENT:
            unwraps = unwraps or each
        elif each.program.name == COMPONENT and unwraps is not None:
            hint = (
                f"{DECAP_COMPONENT} (priority {unwraps.priority}) would be called before"
                f" {COMPONENT} (priority {each.priority}), which would balance again what has been"
                " unwrapped; allowed: the same priority, or the other way round"
            )
            raise KernelError(f"share the XDP hook of {device_name(ifindex)}", errnos.EBUSY, hint)
    return there


def _is_held(component: Component) -> bool:
    """Whether it isn't one of ours that nothing holds any more: it does nothing, for good."""
    if component.program.name not in COMPONENTS:
        return True
    for number in component.program.map_ids:
        with Map.from_id(number) as slot:
            if slot.type == MapType.PROG_ARRAY and slot.lookup(0) is None:
                return False
    return True


class _Directory(NamedTuple):
    """Pins of a dispatcher that calls, or has called, a program of ours."""

    path: Path
    ifindex: int
    dispatcher: int
    """The id of its program."""
    is_alone: bool
    """Whether it called nothing else."""


def _directories(slot: int) -> list[_Directory]:
    """Those where a component with that slot is pinned."""
    found = []
    for path in sorted(dispatcher.directory().glob("dispatch-*-*")):
        pinned = sorted(path.glob("prog?-prog"))
        ours = [each for each in pinned if slot in _maps_of(each)]
        if ours:
            ifindex, number = map(int, path.name.split("-")[1:])
            found.append(_Directory(path, ifindex, number, len(ours) == len(pinned)))
    return found


def _maps_of(pin: Path) -> tuple[int, ...]:
    with suppress(KernelError), Program.from_pin(pin) as program:
        return program.map_ids
    return ()


def why_not() -> str:
    """Why no dispatcher can call a program of ours here and now; empty: it can."""
    try:
        _try()
    except KernelError as error:
        return str(error)
    return ""


@cache
def _try() -> None:
    """KernelError: it may be for now only, as for want of memory."""
    with _component(COMPONENT) as made, probe.tiny(ProgramType.XDP) as fd:
        _fill(made.maps[_SLOT], fd, "a program")
