# SPDX-License-Identifier: Apache-2.0
"""BTF, the type information inside a BPF object, as numpy dtypes and Python enums.

Pure Python: nothing is loaded, no library is asked.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from towpath.kernel.bpf import _elf
from towpath.kernel.bpf._btf_wire import BtfError, Kind, Member, Table, Type, Variable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Btf", "BtfError", "Dtype", "Kind", "Variable"]

Dtype: TypeAlias = "np.dtype[Any]"

# The typedef's name is what says that bytes are in network order.
_BIG_ENDIAN = {"__be16": ">u2", "__be32": ">u4", "__be64": ">u8"}
# The functional form; type checkers want its first argument to be a literal.
_make_enum: Callable[..., type[IntEnum]] = cast("Any", IntEnum)
_QUALIFIERS = frozenset({Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG, Kind.VAR})
_AGGREGATES = (Kind.STRUCT, Kind.UNION)
_WITH_DTYPE = (
    *_AGGREGATES,
    Kind.TYPEDEF,
    Kind.ENUM,
    Kind.ENUM64,
    Kind.INT,
    Kind.FLOAT,
    Kind.DATASEC,
)
_SIGNED = 1
_BOOL = 4
_KERNEL_NAME = 15
_POINTER_SIZE = 8  # of BPF, whatever the host's
_MAX_INT_SIZE = 8


class Btf:
    """The types of one BPF object, or of one map in the kernel."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._dtypes: dict[int, Dtype] = {}
        self._enums: dict[str, type[IntEnum]] = {}

    @classmethod
    def from_bytes(cls, blob: bytes) -> Btf:
        """Parse a BTF blob. BtfError: it isn't one."""
        return cls(Table(blob))

    @classmethod
    def from_elf(cls, path: Path | str) -> Btf:
        """Parse the .BTF section of a compiled object. BtfError: there is none."""
        try:
            sections = _elf.sections(Path(path).read_bytes())
        except ValueError as error:
            raise BtfError(f"{path}: {error}") from error
        for section in sections:
            if section.name == ".BTF":
                table = Table(section.data)
                _place_variables(table, sections)
                return cls(table)
        raise BtfError(f"{path}: no .BTF section; compile with -g")

    @property
    def blob(self) -> bytes:
        """What it was parsed from."""
        return self._table.blob

    # ---- By name ---------------------------------------------------------------------------------

    def dtype(self, name: str) -> Dtype:
        """The dtype of a struct, union, typedef, enum, number or data section.

        Offsets and sizes are the compiler's. Byte order is the machine's, but big-endian where the
        typedef is ``__be16``, ``__be32`` or ``__be64``. Arrays become subarrays, pointers 64-bit
        numbers. BtfError: there is no such type, or no dtype can hold it (bit-fields).
        """
        return self.dtype_of(self._find(name, _WITH_DTYPE))

    def enum(self, name: str) -> type[IntEnum]:
        """An enum, its members under their C names. BtfError: there is none of that name."""
        if name not in self._enums:
            self._enums[name] = self._read_enum(name)
        return self._enums[name]

    def _read_enum(self, name: str) -> type[IntEnum]:
        with _malformed(f"enum {name}"):
            number = self.resolve(self._find(name, (Kind.ENUM, Kind.ENUM64, Kind.TYPEDEF)))
            if self._table.types[number].kind not in (Kind.ENUM, Kind.ENUM64):
                raise BtfError(f"{name!r} is {_label(self._table.types[number])}, not an enum")
            return _make_enum(name, self._table.enumerators(number), module=__name__)

    def variables(self, section: str) -> dict[str, Variable]:
        """The variables of a data section such as ".rodata"; none when there is no such section."""
        number = self._numbers.get((Kind.DATASEC, section))
        if number is None:
            return {}
        return {variable.name: variable for variable in self._table.variables(number)}

    def map_types(self, name: str) -> tuple[int, int] | None:
        """The numbers of a map's key and value types by its declaration, None if it has none.

        As the kernel knows maps only by the first 15 characters of their names, so does this.
        """
        for variable in self.variables(".maps").values():
            if variable.name[:_KERNEL_NAME] == name[:_KERNEL_NAME]:
                members = {m.name: m.type for m in self._table.members(self.resolve(variable.type))}
                if {"key", "value"} <= members.keys():
                    return self._pointee(members["key"]), self._pointee(members["value"])
        return None

    def _pointee(self, number: int) -> int:
        return self._table.types[self.resolve(number)].size_or_type

    def names(self, *kinds: Kind) -> list[str]:
        """The names of all types of these kinds, in the compiler's order."""
        return [name for kind, name in self._numbers if kind in kinds]

    @cached_property
    def _numbers(self) -> dict[tuple[Kind, str], int]:
        return {
            (type_.kind, type_.name): number
            for number, type_ in enumerate(self._table.types)
            if type_.name
        }

    def _find(self, name: str, kinds: tuple[Kind, ...]) -> int:
        for kind in kinds:
            if (number := self._numbers.get((kind, name))) is not None:
                return number
        words = ", ".join(kind.name.lower() for kind in kinds)
        raise BtfError(f"no type {name!r} in this BTF (looked for: {words})")

    # ---- By number -------------------------------------------------------------------------------

    def resolve(self, number: int) -> int:
        """The type behind typedefs, qualifiers and variables."""
        types = self._table.types
        for _ in types:
            if (type_ := types[number]).kind not in _QUALIFIERS and type_.kind is not Kind.TYPEDEF:
                return number
            number = type_.size_or_type
        raise BtfError(f"type {number} leads to itself")

    def dtype_of(self, number: int) -> Dtype:
        """The dtype of the type with that number in the table. BtfError as for `dtype`."""
        dtype = self._dtypes.get(number)
        if dtype is None:
            with _malformed(f"type {number}"):
                dtype = self._dtypes[number] = self._make(number)
        return dtype

    def _make(self, number: int) -> Dtype:
        type_ = self._table.types[number]
        kind = type_.kind
        if kind is Kind.TYPEDEF and type_.name in _BIG_ENDIAN:
            return np.dtype(_BIG_ENDIAN[type_.name])
        if kind is Kind.TYPEDEF or kind in _QUALIFIERS:
            return self.dtype_of(type_.size_or_type)
        if kind is Kind.ARRAY:
            element, count = self._table.array(number)
            inner = self.dtype_of(element)
            return np.dtype((inner.base, (count, *inner.shape)))
        if kind in _AGGREGATES:
            return self._make_aggregate(number)
        if kind is Kind.DATASEC:
            return self._make_section(number)
        return self._make_scalar(number)

    def _make_scalar(self, number: int) -> Dtype:
        type_ = self._table.types[number]
        kind, size = type_.kind, type_.size_or_type
        if kind is Kind.PTR:
            return np.dtype(f"u{_POINTER_SIZE}")
        if kind in (Kind.ENUM, Kind.ENUM64):
            return np.dtype(f"{'i' if type_.flag else 'u'}{size}")
        if kind is Kind.FLOAT:
            return np.dtype(f"f{size}")
        if kind is Kind.INT:
            encoding, _width = self._table.integer(number)
            if encoding & _BOOL:
                return np.dtype(np.bool_)
            if size > _MAX_INT_SIZE:
                return np.dtype((np.void, size))
            return np.dtype(f"{'i' if encoding & _SIGNED else 'u'}{size}")
        raise BtfError(f"{_label(type_)} has no dtype")

    def _make_aggregate(self, number: int) -> Dtype:
        type_ = self._table.types[number]
        names: list[str] = []
        formats: list[Dtype] = []
        offsets: list[int] = []
        for member, base in self._flattened(number, 0):
            if member.width:
                raise BtfError(f"{_label(type_)}: bit-field {member.name!r} has no dtype")
            names.append(member.name)
            formats.append(self.dtype_of(member.type))
            offsets.append(base + member.bit_offset // 8)
        return _record(names, formats, offsets, type_.size_or_type)

    def _flattened(self, number: int, base: int) -> list[tuple[Member, int]]:
        """The members with the offset to add; those of nameless members stand in their place."""
        result = []
        for member in self._table.members(number):
            inner = self.resolve(member.type)
            if not member.name and self._table.types[inner].kind in _AGGREGATES:
                result += self._flattened(inner, base + member.bit_offset // 8)
            elif member.name:
                result.append((member, base))
        return result

    def _make_section(self, number: int) -> Dtype:
        variables = self._table.variables(number)
        return _record(
            [variable.name for variable in variables],
            [self.dtype_of(variable.type) for variable in variables],
            [variable.offset for variable in variables],
            self._table.types[number].size_or_type,
        )


@contextmanager
def _malformed(what: str) -> Iterator[None]:
    """Numbers that lead nowhere, or in circles, and sizes that no type has: not a compiler's."""
    try:
        yield
    except BtfError:
        raise
    except (
        ValueError,
        TypeError,
        LookupError,
        OverflowError,
        RecursionError,
        struct.error,
    ) as error:
        raise BtfError(f"malformed BTF: {what}: {error}") from error


def _place_variables(table: Table, sections: list[_elf.Section]) -> None:
    """Give data sections the sizes and offsets that compilers leave to the ELF headers."""
    symbols = _elf.symbols(sections)
    numbers = {section.name: index for index, section in enumerate(sections)}
    for number, type_ in enumerate(table.types):
        index = numbers.get(type_.name)
        if type_.kind is Kind.DATASEC and index is not None:
            offsets = {symbol.name: symbol.value for symbol in symbols if symbol.section == index}
            table.place_variables(number, sections[index].size, offsets)


def _record(names: list[str], formats: list[Dtype], offsets: list[int], size: int) -> Dtype:
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


def _label(type_: Type) -> str:
    return f"{type_.kind.name.lower()} {type_.name or '(nameless)'}"
