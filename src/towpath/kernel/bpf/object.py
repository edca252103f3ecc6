# SPDX-License-Identifier: Apache-2.0
"""Compiled BPF objects: opened, prepared, then loaded into the kernel all at once."""

from __future__ import annotations

import ctypes
import errno as errnos
import os
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from towpath.closeable import Closeable
from towpath.kernel.bpf import verifier
from towpath.kernel.bpf._structs import ObjectOpenOpts
from towpath.kernel.bpf.btf import Btf, Dtype, Kind
from towpath.kernel.bpf.constants import Constants
from towpath.kernel.bpf.layout import Layout, opaque
from towpath.kernel.bpf.libbpf import captured, check, lib
from towpath.kernel.bpf.maps import Map
from towpath.kernel.bpf.programs import BPF_F_XDP_HAS_FRAGS, Program, ProgramType
from towpath.kernel.errors import (
    CAP_BPF,
    CAP_NET_ADMIN,
    KernelError,
    LayoutError,
    VerifierError,
    permission_hint,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OBJECTS = Path(__file__).parents[2] / "objects"
_SUFFIX = ".bpf.o"
_FRAGMENTS = "xdp_fragments"
_Dtypes: TypeAlias = "dict[str, tuple[Dtype | None, Dtype | None]]"


class BpfObject(Closeable):
    """One compiled object file.

    Between opening and `load`, constants can be set, maps resized or replaced and programs left
    out. After it, ``maps`` and ``programs`` have what is in the kernel, by C name; the sections of
    global variables are maps too, called ".rodata", ".data" and ".bss".

    A context manager, which closes all file descriptors; what is attached or pinned by then stays.
    KernelError: the file isn't there, or libbpf can't make sense of it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.maps: Mapping[str, Map] = MappingProxyType({})
        self.programs: Mapping[str, Program] = MappingProxyType({})
        self._undo = ExitStack()
        self._loaded = False
        self._reused: _Dtypes = {}
        opts = ObjectOpenOpts(object_name=self.path.name.partition(".")[0].encode())
        with captured() as printed:
            pointer = lib.bpf_object__open_file(os.fsencode(self.path), ctypes.byref(opts))
            error = ctypes.get_errno()
        if not pointer:
            hint = verifier.reason(printed) if self.path.exists() else ""
            raise KernelError(f"open {self.path}", error, hint)
        self._open_pointer: int | None = pointer
        self._undo.callback(lib.bpf_object__close, pointer)

    @classmethod
    def packaged(cls, name: str) -> Self:
        """The object of that name that comes with Towpath: "lb" is lb.bpf.o."""
        path = OBJECTS / f"{name}{_SUFFIX}"
        if not path.exists():
            there = sorted(file.name.removesuffix(_SUFFIX) for file in OBJECTS.glob(f"*{_SUFFIX}"))
            hint = f"there are: {', '.join(there)}" if there else "no object has been built"
            raise KernelError(f"open {path}", errnos.ENOENT, hint)
        return cls(path)

    @cached_property
    def btf(self) -> Btf:
        """The object's types. BtfError: it was compiled without."""
        size = ctypes.c_uint32()
        pointer = lib.bpf_object__btf(self._pointer)
        raw = lib.btf__raw_data(pointer, ctypes.byref(size)) if pointer else None
        return Btf.from_bytes(ctypes.string_at(raw, size.value) if raw else b"")

    # ---- Before the load -------------------------------------------------------------------------

    @cached_property
    def rodata(self) -> Constants:
        """The constants, to be set before the load: ``obj.rodata["seed"] = 7``."""
        pointer = lib.bpf_object__find_map_by_name(self._pointer, b".rodata")
        size = ctypes.c_size_t()
        address = lib.bpf_map__initial_value(pointer, ctypes.byref(size)) if pointer else 0
        return Constants(self.btf, ".rodata", address or 0, self._check_constants)

    def _check_constants(self, *, store: bool) -> None:
        if self._pointer and store and self._loaded:
            raise RuntimeError(f"{self.path.name} is loaded: constants are stored before that")

    def resize(self, map_name: str, max_entries: int) -> None:
        """Give a map another size than it was compiled with."""
        result = lib.bpf_map__set_max_entries(self._map(map_name), max_entries)
        hint = "the object is loaded" if result == -errnos.EBUSY else ""
        check(result, f"resize map {map_name} to {max_entries}", hint)

    def reuse(self, map_name: str, m: Map) -> None:
        """Use a map that exists already in place of a new one.

        LayoutError: it differs, in ways that the message lists, from what this object wants.
        """
        differences = self.layout(map_name).differences(m.layout)
        if differences:
            raise LayoutError(f"map {map_name} of {self.path.name} can't be {m!r}", differences)
        pointer = self._map(map_name)
        # Afterwards libbpf has the numbers that its types have where the map was made.
        self._reused[map_name] = self._dtypes(pointer)
        check(lib.bpf_map__reuse_fd(pointer, m.fd), f"reuse {m!r} as {map_name}")

    def autoload(self, program: str, on: bool) -> None:  # noqa: FBT001 -- a switch by its name
        """Whether `load` loads that program; by default it loads all."""
        pointer = lib.bpf_object__find_program_by_name(self._pointer, program.encode())
        if not pointer:
            there = ", ".join(sorted(name for name, _ in self._walk("program")))
            raise KeyError(f"no program {program!r} in {self.path.name}; there are: {there}")
        check(lib.bpf_program__set_autoload(pointer, on), f"set autoload of program {program}")

    def take_fragments(self, *, marked: bool = True) -> None:
        """Have its XDP programs take frames in fragments, which they are told: `probe.fragments`.

        ``marked``: the kernel is told too. Programs that are marked and others can't call each
        other by tail calls.
        """
        for name, pointer in self._walk("program"):
            if marked and lib.bpf_program__type(pointer) == ProgramType.XDP:
                flags = lib.bpf_program__flags(pointer) | BPF_F_XDP_HAS_FRAGS
                check(lib.bpf_program__set_flags(pointer, flags), f"set flags of program {name}")
        if _FRAGMENTS in self.rodata:
            self.rodata[_FRAGMENTS] = 1

    def for_slots(self) -> None:
        """Have its XDP programs be such as a dispatcher may call: `dispatched.Dispatched`.

        A tail call goes to programs only that were loaded for the same hook as the caller
        (4540aed51b12, in 6.18 and older ones by their updates), and extensions are for none.
        Devices take these as well; but a link that has a program of the other kind is given none
        of these (382778edc826, in 5.17), and the other way round.
        """
        for name, pointer in self._walk("program"):
            if lib.bpf_program__type(pointer) == ProgramType.XDP:
                result = lib.bpf_program__set_expected_attach_type(pointer, 0)
                check(result, f"set the hook of program {name}")

    def extend(self, program: str, target: Program, function: str) -> None:
        """Have a program made for the place of a function of another that is loaded (freplace)."""
        pointer = lib.bpf_object__find_program_by_name(self._pointer, program.encode())
        with captured() as printed:
            result = lib.bpf_program__set_attach_target(pointer, target.fd, function.encode())
        hint = verifier.reason(printed) if result < 0 else ""
        check(result, f"have {program} made for {function}() of {target!r}", hint)

    def function_id(self, name: str) -> int:
        """The number of a function among the object's types. KeyError: there is none."""
        pointer = lib.bpf_object__btf(self._pointer)
        found: int = lib.btf__find_by_name_kind(pointer, name.encode(), Kind.FUNC)
        if found <= 0:
            raise KeyError(f"no function {name!r} in {self.path.name}")
        return found

    @property
    def program_names(self) -> tuple[str, ...]:
        """The programs that are in it, to be loaded or not."""
        return tuple(name for name, _ in self._walk("program"))

    @property
    def map_names(self) -> tuple[str, ...]:
        """The maps that are declared, without the sections of global variables."""
        return tuple(name for name, _ in self._walk("map") if not name.startswith("."))

    def layout(self, map_name: str) -> Layout:
        """The layout that this object wants a map to have."""
        pointer = self._map(map_name)
        key, value = self._dtypes(pointer)
        return Layout(
            lib.bpf_map__type(pointer),
            key or opaque(lib.bpf_map__key_size(pointer)),
            value or opaque(lib.bpf_map__value_size(pointer)),
            lib.bpf_map__max_entries(pointer),
            lib.bpf_map__map_flags(pointer),
        )

    # ---- Load ------------------------------------------------------------------------------------

    def load(self, *, statistics: bool = False) -> None:
        """Make the maps and load the programs; all or nothing.

        With ``statistics`` kernels before 5.16 also tell how many instructions they verified, at
        the price of the verifier's log where a program is refused.

        VerifierError: the verifier refused a program. KernelError: anything else.
        """
        logs = self._ask_for_statistics() if statistics else {}
        # Asked for before: libbpf forgets the types of maps that the kernel takes none for.
        dtypes = {
            name: self._reused.get(name) or self._dtypes(pointer)
            for name, pointer in self._walk("map")
        }
        with captured() as printed:
            result = lib.bpf_object__load(self._pointer)
        if result < 0:
            raise self._load_error(-result, printed)
        self._loaded = True
        self.maps = MappingProxyType(dict(self._loaded_maps(dtypes)))
        self.programs = MappingProxyType(dict(self._loaded_programs(logs)))

    def _load_error(self, number: int, printed: list[str]) -> KernelError:
        refusal = verifier.refusal(printed)
        if refusal is not None:
            what = f"load {self.path.name}: program {refusal.program}"
            return VerifierError(what, number, refusal.summary, refusal.log)
        hint = verifier.reason(printed)
        if number in (errnos.EPERM, errnos.EACCES):
            hint = permission_hint(CAP_BPF, CAP_NET_ADMIN)
        return KernelError(f"load {self.path.name}", number, hint)

    def _loaded_maps(self, dtypes: _Dtypes) -> Iterator[tuple[str, Map]]:
        for name, pointer in self._walk("map"):
            fd = lib.bpf_map__fd(pointer)
            if fd >= 0:
                key, value = dtypes[name]
                made = Map(os.dup(fd), name=name, key=key, value=value)
                self._undo.callback(made.close)
                yield name, made

    def _ask_for_statistics(self) -> dict[str, Any]:
        """Give each program a buffer that the verifier's summary is written to."""
        logs = {}
        for name, pointer in self._walk("program"):
            logs[name] = buffer = ctypes.create_string_buffer(verifier.STATISTICS_BYTES)
            check(
                lib.bpf_program__set_log_level(pointer, verifier.STATISTICS_LEVEL), "set log level"
            )
            check(lib.bpf_program__set_log_buf(pointer, buffer, len(buffer)), "set log buffer")
        return logs

    def _loaded_programs(self, logs: dict[str, Any]) -> Iterator[tuple[str, Program]]:
        for name, pointer in self._walk("program"):
            fd = lib.bpf_program__fd(pointer)
            if fd >= 0:
                told = verifier.processed(logs[name].value.decode()) if name in logs else 0
                hook = lib.bpf_program__expected_attach_type(pointer)
                made = Program(os.dup(fd), name=name, verified=told, attach_type=hook)
                self._undo.callback(made.close)
                yield name, made

    # ---- libbpf's handles ------------------------------------------------------------------------

    @property
    def _pointer(self) -> int:
        if self._open_pointer is None:
            raise RuntimeError(f"{self.path.name} is closed")
        return self._open_pointer

    def _walk(self, kind: str) -> Iterator[tuple[str, Any]]:
        """All maps, or programs, of the object: name and handle."""
        following = getattr(lib, f"bpf_object__next_{kind}")
        name_of = getattr(lib, f"bpf_{kind}__name")
        pointer = None
        while pointer := following(self._pointer, pointer):
            # A section's map is called "lb.rodata", after the object.
            _object, dot, section = name_of(pointer).decode().rpartition(".")
            yield (f".{section}" if dot else section), pointer

    def _map(self, name: str) -> int:
        pointer: int | None = lib.bpf_object__find_map_by_name(self._pointer, name.encode())
        if not pointer:
            there = ", ".join(sorted(name for name, _ in self._walk("map")))
            raise KeyError(f"no map {name!r} in {self.path.name}; there are: {there}")
        return pointer

    def _dtypes(self, pointer: int) -> tuple[Dtype | None, Dtype | None]:
        """A map's key and value as declared, None for what was declared by size only."""
        key = lib.bpf_map__btf_key_type_id(pointer)
        value = lib.bpf_map__btf_value_type_id(pointer)
        return (
            self.btf.dtype_of(key) if key else None,
            self.btf.dtype_of(value) if value else None,
        )

    # ---- Life ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all file descriptors. Twice is once."""
        self._open_pointer = None
        self._undo.close()
