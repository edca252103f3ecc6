# SPDX-License-Identifier: Apache-2.0
"""As much of ELF as it takes to find the type information in a compiled BPF object.

Source: System V ABI, chapters 4 and 5 (64-bit object files).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SHT_SYMTAB = 2
_SHT_NOBITS = 8
_SHF_EXECINSTR = 4


@dataclass(frozen=True, slots=True)
class Section:
    """One section: `size` bytes in memory, of which `data` are in the file."""

    name: str
    kind: int
    size: int
    data: bytes
    link: int
    offset: int
    """Of the data in the file."""
    executable: bool


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name at `value` bytes into the section with index `section`."""

    name: str
    section: int
    value: int
    size: int


def c_string(table: bytes, offset: int) -> str:
    """The zero-terminated string at `offset`."""
    return table[offset : table.index(b"\0", offset)].decode()


def sections(blob: bytes) -> list[Section]:
    """All sections of a little-endian 64-bit ELF file. ValueError: it isn't one."""
    if blob[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a little-endian 64-bit ELF file")
    try:
        return _sections(blob)
    except (struct.error, IndexError, OverflowError, ValueError) as error:
        raise ValueError(f"a damaged ELF file ({error})") from error


def _sections(blob: bytes) -> list[Section]:
    header = _HEADER.unpack_from(blob)
    table, entry_size, count, names_index = header[6], header[11], header[12], header[13]
    raw = [_SECTION.unpack_from(blob, table + i * entry_size) for i in range(count)]
    names = blob[raw[names_index][4] :]
    found = []
    for name, kind, flags, _addr, offset, size, link, *_rest in raw:
        data = b"" if kind == _SHT_NOBITS else blob[offset : offset + size]
        executable = bool(flags & _SHF_EXECINSTR)
        found.append(Section(c_string(names, name), kind, size, data, link, offset, executable))
    return found


def symbols(found: list[Section]) -> list[Symbol]:
    """The symbol table's entries. ValueError: it is damaged."""
    try:
        return [
            Symbol(c_string(found[section.link].data, name), index, value, size)
            for section in found
            if section.kind == _SHT_SYMTAB
            for name, _info, _other, index, value, size in _SYMBOL.iter_unpack(section.data)
        ]
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(f"a damaged ELF file ({error})") from error
