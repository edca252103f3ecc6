# SPDX-License-Identifier: Apache-2.0
"""Atomic instructions that Linux 5.10 doesn't have."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from towpath.kernel.bpf._elf import sections

if TYPE_CHECKING:
    from pathlib import Path

MEANT = frozenset(("bandwidth.bpf.o",))
"""Objects with programs for either kind of kernel, each of which gets those that it can load."""
_ATOMIC = 0xC3  # BPF_STX | BPF_ATOMIC, of whatever size


def fetching(code: bytes) -> int:
    """Return how many atomic instructions of a program fetch what was there before (BPF_FETCH)."""
    instructions = struct.iter_unpack("<BBhi", code)
    return sum(
        operation & 0xE7 == _ATOMIC and bool(imm & 1) for operation, _, _, imm in instructions
    )


def fetching_in(compiled: Path) -> int:
    """Return how many an object has."""
    code = [each.data for each in sections(compiled.read_bytes()) if each.executable]
    return sum(map(fetching, code))
