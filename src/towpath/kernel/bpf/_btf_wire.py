# SPDX-License-Identifier: Apache-2.0
"""The wire format of BTF. Source: the kernel's Documentation/bpf/btf.rst.

A blob is a header, a table of types numbered from 1 (0 is void) and a table of strings. Each type
is 12 bytes (name, info, size or type) and what its kind adds to that.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import NamedTuple

from towpath.errors import Error


class BtfError(Error, ValueError):
    """A blob that isn't BTF, or a type that isn't in it or that has no dtype."""


class Kind(enum.IntEnum):
    """BTF_KIND_*."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


@dataclass(frozen=True, slots=True)
class Type:
    """One entry of the type table. `tail` is what its kind adds, not yet decoded."""

    kind: Kind
    name: str
    flag: bool
    size_or_type: int
    tail: bytes


class Member(NamedTuple):
    """A member of a struct or union; `width` is a bit-field's, 0 for an ordinary one."""

    name: str
    type: int
    bit_offset: int
    width: int


class Variable(NamedTuple):
    """A global variable: its type, and where it is within its section, in bytes."""

    name: str
    type: int
    offset: int
    size: int


_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_WORD = struct.Struct("<I")
_TRIPLE = struct.Struct("<III")
# Bytes after the common 12: some kinds have a fixed number, some so many for each of their parts.
_FIXED = {Kind.INT: 4, Kind.ARRAY: 12, Kind.VAR: 4, Kind.DECL_TAG: 4}
_EACH = {
    Kind.STRUCT: 12,
    Kind.UNION: 12,
    Kind.ENUM: 8,
    Kind.FUNC_PROTO: 8,
    Kind.DATASEC: 12,
    Kind.ENUM64: 12,
}
_TAILS = [(kind, _FIXED.get(kind, 0), _EACH.get(kind, 0)) for kind in Kind]
_VOID = Type(Kind.VOID, "void", flag=False, size_or_type=0, tail=b"")


class Table:
    """The type table of a blob. BtfError: it isn't BTF, or of the other byte order."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        if len(blob) < _HEADER.size:
            raise BtfError(f"not BTF: {len(blob)} bytes are shorter than its header")
        magic, version, _flags, length, types, types_size, strings, strings_size = (
            _HEADER.unpack_from(blob)
        )
        if (magic, version) != (_MAGIC, 1):
            raise BtfError(f"not BTF 1 of this byte order: it starts with {blob[:3].hex()}")
        if max(types + types_size, strings + strings_size) > len(blob) - length:
            raise BtfError(f"truncated BTF: {len(blob)} bytes")
        self._strings = blob[length + strings : length + strings + strings_size]
        try:
            self.types = self._parse(blob[length + types : length + types + types_size])
        except (struct.error, IndexError, ValueError) as error:
            raise BtfError(f"malformed BTF: {error}") from error

    def _parse(self, data: bytes) -> list[Type]:
        types = [_VOID]
        unpack, string = _TYPE.unpack_from, self.string
        at, end = 0, len(data)
        while at < end:
            name, info, size_or_type = unpack(data, at)
            kind, fixed, each = _TAILS[info >> 24 & 0x1F]
            stop = at + 12 + fixed + each * (info & 0xFFFF)
            if stop > end:
                raise ValueError(f"type {len(types)} ends beyond the table")
            types.append(
                Type(kind, string(name), info >> 31 == 1, size_or_type, data[at + 12 : stop])
            )
            at = stop
        return types

    def string(self, offset: int) -> str:
        """The string at that offset of the string table."""
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    # ---- Tails -----------------------------------------------------------------------------------

    def members(self, number: int) -> list[Member]:
        """The members of a struct or union, in order."""
        type_ = self.types[number]
        result = []
        for name, member, offset in _TRIPLE.iter_unpack(type_.tail):
            # With the flag set, the top byte of the offset is the width of a bit-field.
            width, bits = (offset >> 24, offset & 0xFFFFFF) if type_.flag else (0, offset)
            result.append(Member(self.string(name), member, bits, width))
        return result

    def enumerators(self, number: int) -> dict[str, int]:
        """The enumerators of an enum by name.

        The flag says that values are signed. Compilers older than the flag (clang 14) never set it:
        a negative value then reads as its two's complement here, as it does in a dtype.
        """
        type_ = self.types[number]
        if type_.kind is Kind.ENUM:
            words = struct.Struct("<Ii" if type_.flag else "<II")
        else:
            words = struct.Struct("<Iq" if type_.flag else "<IQ")
        return {self.string(name): value for name, value in words.iter_unpack(type_.tail)}

    def array(self, number: int) -> tuple[int, int]:
        """The element type of an array and the number of elements."""
        element, _index_type, count = _TRIPLE.unpack(self.types[number].tail)
        return element, count

    def integer(self, number: int) -> tuple[int, int]:
        """Of an integer: the encoding bits (1 signed, 2 char, 4 bool) and the width in bits."""
        (word,) = _WORD.unpack(self.types[number].tail)
        return word >> 24 & 0xF, word & 0xFF

    def variables(self, number: int) -> list[Variable]:
        """The variables of a data section, in order."""
        return [
            Variable(self.types[var].name, self.types[var].size_or_type, offset, size)
            for var, offset, size in _TRIPLE.iter_unpack(self.types[number].tail)
        ]

    def place_variables(self, number: int, size: int, offsets: dict[str, int]) -> None:
        """Set a data section's size and its variables' offsets.

        Compilers leave both zero: the ELF symbols have them.
        """
        type_ = self.types[number]
        tail = b"".join(
            _TRIPLE.pack(var, offsets.get(self.types[var].name, offset), length)
            for var, offset, length in _TRIPLE.iter_unpack(type_.tail)
        )
        self.types[number] = Type(type_.kind, type_.name, type_.flag, size, tail)
