# SPDX-License-Identifier: Apache-2.0
"""Compiled objects in which functions are replaced before they are loaded."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.kernel.bpf import _elf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from towpath.kernel.bpf.object import BpfObject

_INSTRUCTION = 8


def functions_of(path: Path) -> frozenset[str]:
    """The names of an object's functions, and of whatever else has a size."""
    return frozenset(_sized(_elf.sections(path.read_bytes())))


def _sized(sections: list[_elf.Section]) -> dict[str, _elf.Symbol]:
    return {each.name: each for each in _elf.symbols(sections) if each.size}


def with_functions(
    obj: type[BpfObject], path: Path, functions: Mapping[str, Callable[[int], bytes]]
) -> BpfObject:
    """Open an object some of whose functions consist of the instructions that others return.

    These are asked for as many as the function has; there can be neither more nor less of them,
    since other parts of the object know where everything is. ValueError: the object has no such
    function, or the code isn't of that size.
    """
    blob = bytearray(path.read_bytes())
    sections = _elf.sections(bytes(blob))
    symbols = _sized(sections)
    for function, code in functions.items():
        found = symbols.get(function)
        if found is None:
            raise ValueError(f"no function {function!r} in {path.name}")
        made = code(found.size // _INSTRUCTION)
        if len(made) != found.size:
            raise ValueError(f"{function}: {len(made)} bytes of code; allowed: {found.size}")
        at = sections[found.section].offset + found.value
        blob[at : at + found.size] = made
    with tempfile.TemporaryDirectory(prefix="towpath-") as directory:
        patched = Path(directory) / path.name
        patched.write_bytes(blob)
        return obj(patched)  # which reads all of it
