# SPDX-License-Identifier: Apache-2.0
"""Dispatchers: up to ten XDP programs on one device, by the protocol of libxdp.

A dispatcher is a program that calls others in turn, which have taken the place of functions of it
(freplace). All who use the protocol read what is there, make a new dispatcher with what they add or
leave out, and put it in the place of the old one; nobody's program misses a packet. What they share
is below `directory`: a lock, and the links that keep programs in their places. See
docs/design/dispatcher.md.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import os
import time
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from towpath.closeable import Closeable
from towpath.kernel.bpf import bpffs, links
from towpath.kernel.bpf._structs import ExtensionLinkCreateOpts, XdpAttachOpts
from towpath.kernel.bpf.attached import Inventory
from towpath.kernel.bpf.libbpf import captured, lib
from towpath.kernel.bpf.maps import Map
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.bpf.programs import BPF_F_XDP_HAS_FRAGS, Program
from towpath.kernel.errors import KernelError
from towpath.kernel.lock import exclusive
from towpath.kernel.net.interfaces import device_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from towpath.kernel.bpf.btf import Dtype

    Change: TypeAlias = Callable[[Sequence["Component"]], Sequence["Component"] | None]

Mode = Literal["native", "generic"]

NAME = "xdp_dispatcher"
COMPONENT_OBJECT = "dispatcher_component"
_OBJECTS = {2: "dispatcher", 3: "dispatcher_v3"}
"""What is loaded as a dispatcher of a version."""
FIRST = 2
"""The version where there is none yet: whatever adds to it must not know less."""
_SHARING = {
    "towpath_lb": "attach: dispatcher among its devices",
    "towpath_decap": "towpath decap --attach dispatcher",
}
"""Those of Towpath's programs that can take part, by what they are called alone; and how."""
_FLAGS = {"native": 1 << 2, "generic": 1 << 1}
_ONLY_IF_NONE = 1 << 0
_OUTRUN = frozenset((errnos.EBUSY, errnos.EEXIST))
_TRIES = 10
_LOCK_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Component:
    """A program that a dispatcher calls."""

    program: Program
    priority: int
    """Lower ones are called first."""
    actions: frozenset[int]
    """What it returns (XDP_*) for the next one to be called."""
    flags: int = 0
    """BPF_F_XDP_HAS_FRAGS: it takes frames in fragments."""

    @property
    def fragments(self) -> bool:
        """Whether it takes frames in fragments."""
        return bool(self.flags & BPF_F_XDP_HAS_FRAGS)


class Dispatcher(Closeable):
    """The dispatcher on a device, with all that it calls; open until it is closed."""

    def __init__(
        self,
        ifindex: int,
        mode: str,
        version: int,
        program: Program,
        pins: Path,
        components: tuple[Component, ...],
        *,
        fragments: bool,
    ) -> None:
        self.ifindex = ifindex
        self.mode = mode
        self.version = version
        self.program = program
        self.pins = pins
        """Where what keeps its components in their places is pinned."""
        self.components = components
        self.fragments = fragments
        """Whether it takes frames in fragments: only if all that it calls do."""

    def close(self) -> None:
        """Close the file descriptors of its programs. Twice is once."""
        self.program.close()
        for each in self.components:
            each.program.close()


# ---- Where things are ----------------------------------------------------------------------------


def directory() -> Path:
    """Where dispatchers' links are pinned; it is also what is locked."""
    return Path(os.environ.get("LIBXDP_BPFFS") or bpffs.ROOT) / "xdp"


def pins_of(ifindex: int, program_id: int) -> Path:
    """Where a dispatcher's links are to be pinned."""
    return directory() / f"dispatch-{ifindex}-{program_id}"


def _pins_found(ifindex: int, program_id: int) -> Path | None:
    """Where they are. A device that was in another network namespace may have another index now."""
    expected = pins_of(ifindex, program_id)
    if expected.is_dir():
        return expected
    return next(directory().glob(f"dispatch-*-{program_id}"), None)


@contextmanager
def _locked() -> Iterator[None]:
    """Nobody who goes by the protocol pins anything meanwhile. KernelError: another keeps it."""
    where = directory()
    bpffs.ensure_bpffs(where.parent)
    try:
        where.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise KernelError(f"make {where}", error.errno or 0) from error
    with ExitStack() as undo:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                undo.enter_context(exclusive(where))
                break
            except KernelError as error:
                if error.errno != errnos.EWOULDBLOCK or time.monotonic() > until:
                    raise
            time.sleep(_LOCK_POLL_SECONDS)
        yield


# ---- What is there -------------------------------------------------------------------------------


def opened(ifindex: int) -> Dispatcher | None:
    """The dispatcher on a device, None where nothing is at its XDP hook.

    KernelError: what is there is no dispatcher, or one that can't be read.
    """
    with _locked() if directory().is_dir() else nullcontext():
        return _read(ifindex)


def _read(ifindex: int) -> Dispatcher | None:
    number = links.xdp_program_id(ifindex)
    if not number:
        return None
    with ExitStack() as undo:
        program = undo.enter_context(Program.from_id(number))
        config = config_of(program, ifindex)
        pins = _pins_found(ifindex, number)
        components = []
        # Without pins nothing is left of what it called, unless they are where another looks.
        if pins is not None or Inventory().extensions(number) != 0:
            pins = pins or pins_of(ifindex, number)
            for n in range(int(config["programs"])):
                try:
                    each = undo.enter_context(Program.from_pin(pins / f"prog{n}-prog"))
                except KernelError as error:
                    hint = f"what it calls isn't pinned there: take it off the device ({error})"
                    raise _refused(ifindex, program, hint) from error
                words = (int(config[name][n]) for name in ("priorities", "actions", "flags"))
                priority, actions, flags = words
                components.append(Component(each, priority, actions_of(actions), flags))
        mode, version = links.xdp_mode(ifindex), int(config["version"])
        pins = pins or pins_of(ifindex, number)
        undo.pop_all()
        fragments = bool(config["fragments"])
        return Dispatcher(
            ifindex, mode, version, program, pins, tuple(components), fragments=fragments
        )


def config_of(program: Program, ifindex: int) -> Any:
    """A dispatcher's record. KernelError: it isn't one, or of a version that isn't known here."""
    maps = program.map_ids
    if program.name != NAME or len(maps) != 1:
        aside = _aside(program, ifindex)
        hint = f"it was attached by itself, which leaves no room for others: {aside}"
        raise _refused(ifindex, program, hint)
    with Map.from_id(maps[0]) as kept:
        data = kept.lookup(0).tobytes()
    dtype, limits = _types()
    if len(data) < dtype.itemsize or data[0] != limits["DISPATCHER_MAGIC"]:
        raise _refused(ifindex, program, "it is of version 1: libxdp 1.3 or newer is needed")
    config = np.frombuffer(data[: dtype.itemsize], dtype)[0]
    if config["version"] not in _OBJECTS:
        known = " and ".join(map(str, _OBJECTS))
        hint = f"its version is {config['version']}; {known} are known here"
        raise _refused(ifindex, program, hint)
    if len(data) > dtype.itemsize and data[dtype.itemsize]:
        raise _refused(ifindex, program, "it is bound to the device (XDP_ATTACH_DEVBIND)")
    if config["programs"] > limits["DISPATCHER_PROGRAMS"]:
        raise _refused(ifindex, program, f"it says that it calls {config['programs']} programs")
    return config


def _aside(program: Program, ifindex: int) -> str:
    """What is to be done for a program to leave room for others."""
    if program.name in _SHARING:
        return f"let it share the hook too ({_SHARING[program.name]})"
    off = f"ip link set {device_name(ifindex)} xdp off"
    return f"take it off ({off}), or have it loaded by xdp-loader"


def _refused(ifindex: int, program: Program, hint: str) -> KernelError:
    there = f"program {program.name} (id {program.id})"
    what = f"share the XDP hook of {device_name(ifindex)} with {there}"
    return KernelError(what, errnos.EBUSY, hint)


@cache
def _types() -> tuple[Dtype, dict[str, int]]:
    """The record of version 2, with which that of version 3 begins; and its limits."""
    with BpfObject.packaged(_OBJECTS[2]) as made:
        dtype = made.btf.dtype("dispatcher_config")
    with BpfObject.packaged(COMPONENT_OBJECT) as made:
        limits = made.btf.enum("dispatcher_limits").__members__
    return dtype, {name: int(value) for name, value in limits.items()}


def actions_of(bits: int) -> frozenset[int]:
    """The verdicts of a word of `actions`, without the one that nobody returns."""
    return frozenset(n for n in range(31) if bits >> n & 1)


# ---- What is to be there -------------------------------------------------------------------------


def change(ifindex: int, wanted: Change, mode: Mode | None = None) -> None:
    """Have a device call other programs, and everyone else's as before; no packet misses one.

    ``wanted`` is given what there is, and says what there is to be, in the order of being called;
    None: leave it so. ``mode`` is how it is to run, None as it does. What an earlier call was
    killed amid is cleared away. KernelError: nothing has changed then.
    """
    with _locked():
        clear_away(ifindex)
        for _ in range(_TRIES):
            if _changed(ifindex, wanted, mode):
                return
    what = f"change the dispatcher of {device_name(ifindex)}"
    raise KernelError(what, errnos.EBUSY, f"others have changed it {_TRIES} times meanwhile")


def _changed(ifindex: int, wanted: Change, mode: Mode | None) -> bool:
    """Whether it is as wanted; not if somebody was faster."""
    with ExitStack() as undo:
        before = _read(ifindex)
        if before is not None:
            undo.enter_context(before)
            if mode not in (None, before.mode):
                raise _refused(ifindex, before.program, f"it runs in {before.mode} mode")
        components = wanted(before.components if before else ())
        if components is None:
            return True
        if not components:
            return before is None or _taken_off(before)
        version = before.version if before else FIRST
        made = undo.enter_context(loaded(components, version))
        program = made.programs[NAME]
        pins = pins_of(ifindex, program.id)
        note = Journal(ifindex)
        note.write(before.program.id if before else 0, program.id)
        try:
            _pin(made, components, pins)
            there = before.mode if before else mode or "native"
            old = before.program if before else None
            done = exchanged(ifindex, there, program, old, refusing(components))
        except BaseException:
            bpffs.remove_pins(pins)
            note.remove()
            raise
        if not done:
            bpffs.remove_pins(pins)
        elif before is not None:
            bpffs.remove_pins(before.pins)
        note.remove()
        return done


def _taken_off(before: Dispatcher) -> bool:
    flags = _FLAGS.get(before.mode, 0)
    opts = XdpAttachOpts(old_prog_fd=before.program.fd)
    with captured():
        result = lib.bpf_xdp_detach(before.ifindex, flags, ctypes.byref(opts))
    if result < 0 and -result not in _OUTRUN:
        raise KernelError(f"take the dispatcher off {device_name(before.ifindex)}", -result)
    if result == 0:
        bpffs.remove_pins(before.pins)
    return bool(result == 0)


def loaded(components: Sequence[Component], version: int = 2) -> BpfObject:
    """A dispatcher for these, which aren't in their places yet. None: for one. KernelError."""
    made = BpfObject.packaged(_OBJECTS[version])
    try:
        config = made.rodata["conf"]
        fill(config, components, version)
        made.rodata["conf"] = config
        if config["fragments"]:
            made.take_fragments()
        made.load()
    except BaseException:
        made.close()
        raise
    return made


def fill(config: Any, components: Sequence[Component], version: int) -> None:
    """Write a dispatcher's record. KernelError: there isn't room for so many."""
    _, limits = _types()
    if len(components) > limits["DISPATCHER_PROGRAMS"]:
        hint = f"a dispatcher has room for {limits['DISPATCHER_PROGRAMS']}"
        raise KernelError(f"have a dispatcher call {len(components)}", errnos.E2BIG, hint)
    config["magic"], config["version"] = limits["DISPATCHER_MAGIC"], version
    config["programs"] = len(components) or 1
    config["fragments"] = bool(components) and all(each.fragments for each in components)
    for n, each in enumerate(components):
        bits = sum(1 << action for action in each.actions)
        config["actions"][n] = bits | 1 << limits["DISPATCHER_NOBODY"]
        config["priorities"][n] = each.priority
        config["flags"][n] = each.flags


def _pin(made: BpfObject, components: Sequence[Component], pins: Path) -> None:
    """Put the components into their places, and pin what keeps them there. KernelError."""
    program = made.programs[NAME]
    with captured(), ExitStack() as undo:
        pins.mkdir(mode=0o700)
        for n, each in enumerate(components):
            function = f"prog{n}"
            opts = ExtensionLinkCreateOpts(target_btf_id=made.function_id(function))
            fd = lib.bpf_link_create(each.program.fd, program.fd, 0, ctypes.byref(opts))
            if fd < 0:
                what = f"put program {each.program.name} (id {each.program.id}) into a dispatcher"
                raise KernelError(what, -fd)
            undo.callback(os.close, fd)
            bpffs.pin(fd, pins / f"{function}-link", f"link of {function}")
            each.program.pin(pins / f"{function}-prog")


def refusing(components: Sequence[Component]) -> str:
    """Who among those that a dispatcher calls takes no frames in fragments; empty: all do."""
    names = [each.program.name for each in components if not each.fragments]
    return f"{', '.join(names)} {'takes' if len(names) == 1 else 'take'} none" if names else ""


def exchanged(
    ifindex: int, mode: str, program: Program, before: Program | None, refusing: str = ""
) -> bool:
    """Put a dispatcher on a device; not if there is another than the one before.

    ``refusing``: who takes no frames in fragments, as `refusing` says. KernelError.
    """
    flags = _FLAGS[mode]
    opts = XdpAttachOpts()
    if before is None:
        flags |= _ONLY_IF_NONE
    else:
        opts.old_prog_fd = before.fd
    with captured():
        result = lib.bpf_xdp_attach(ifindex, program.fd, flags, ctypes.byref(opts))
    if result < 0 and -result not in _OUTRUN:
        error = links.xdp_error(program, device_name(ifindex), ifindex, mode, -result)
        if mode == "native" and refusing and -result not in links.NOT_THE_DRIVER:
            # On veth it is the peer's MTU that counts, and that may be anywhere.
            hint = f"{error.hint}; with a large MTU frames may be in fragments, and {refusing}"
            raise KernelError(error.what, error.errno, hint)
        raise error
    return bool(result == 0)


# ---- What was left half done ---------------------------------------------------------------------


class Journal:
    """Which two dispatchers a device had while one took the other's place.

    A symbolic link beside the pins, which others overlook. Indexes are the same in other network
    namespaces, hence the number of this one in its name.
    """

    def __init__(self, ifindex: int) -> None:
        namespace = Path("/proc/thread-self/ns/net").stat().st_ino
        self._path = directory() / f"towpath-{namespace}-{ifindex}"

    def write(self, before: int, after: int) -> None:
        """Note both, 0 for none."""
        self._path.unlink(missing_ok=True)
        self._path.symlink_to(f"{before} {after}")

    def read(self) -> tuple[int, ...]:
        """Both; nothing, if no change was begun."""
        with suppress(OSError, ValueError):
            return tuple(map(int, str(self._path.readlink()).split()))
        return ()

    def remove(self) -> None:
        """The change has ended."""
        self._path.unlink(missing_ok=True)


def clear_away(ifindex: int) -> None:
    """Remove the pins of a dispatcher of ours that isn't on its device: somebody was killed."""
    journal = Journal(ifindex)
    numbers = journal.read()
    if numbers:
        there = links.xdp_program_id(ifindex)
        for number in numbers:
            if number not in (0, there):
                bpffs.remove_pins(pins_of(ifindex, number))
        journal.remove()


def recover(ifindex: int) -> None:
    """The same, for whoever doesn't change anything. KernelError."""
    with _locked():
        clear_away(ifindex)
