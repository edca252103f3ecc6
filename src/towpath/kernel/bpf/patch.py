# SPDX-License-Identifier: Apache-2.0
"""Compiled objects in which a function is replaced before they are loaded."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.kernel.bpf import _elf

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.kernel.bpf.object import BpfObject

_INSTRUCTION = 8


def with_function(
    obj: type[BpfObject], path: Path, function: str, code: Callable[[int], bytes]
) -> BpfObject:
    """Open an object whose function consists of the instructions that ``code`` returns.

    It is asked for as many as the function has; there can be neither more nor less of them,
    since other parts of the object know where everything is. ValueError: the object has no such
    function, or the code isn't of that size.
    """
    blob = bytearray(path.read_bytes())
    sections = _elf.sections(bytes(blob))
    found = next((each for each in _elf.symbols(sections) if each.name == function), None)
    if found is None or not found.size:
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
