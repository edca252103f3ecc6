# SPDX-License-Identifier: Apache-2.0
"""What two maps must have in common to stand in for one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from towpath.kernel.bpf.map_types import BPF_F_RDONLY_PROG, MapType, type_name

if TYPE_CHECKING:
    from towpath.kernel.bpf.btf import Dtype


@dataclass(frozen=True, slots=True)
class Layout:
    """A map as it was declared: `type` and `flags` are the kernel's numbers."""

    type: int
    key: Dtype
    value: Dtype
    max_entries: int
    flags: int

    def differences(self, found: Layout) -> list[str]:
        """One line for each thing in which ``found`` isn't as wanted here; none: compatible."""
        lines = []
        if self.type != found.type:
            lines.append(f"type is {type_name(found.type)} instead of {type_name(self.type)}")
        if self.max_entries != found.max_entries:
            lines.append(f"max_entries is {found.max_entries} instead of {self.max_entries}")
        if _own_flags(self) != _own_flags(found):
            lines.append(f"flags are {found.flags:#x} instead of {self.flags:#x}")
        lines += _compare("key", self.key, found.key)
        lines += _compare("value", self.value, found.value)
        return lines


def _own_flags(layout: Layout) -> int:
    # The kernel makes every devmap read-only for programs, declared so or not.
    implied = BPF_F_RDONLY_PROG if layout.type in (MapType.DEVMAP, MapType.DEVMAP_HASH) else 0
    return layout.flags & ~implied


def _compare(where: str, wanted: Dtype, found: Dtype) -> list[str]:
    if wanted == found:
        return []
    if _is_opaque(wanted) or _is_opaque(found):
        # One of them was made without type information: the size is all there is to compare.
        same = wanted.itemsize == found.itemsize
        return [] if same else [f"{where} has {found.itemsize} bytes instead of {wanted.itemsize}"]
    if wanted.names is None or found.names is None:
        if wanted.shape == found.shape and wanted.base.names and found.base.names:
            return _compare(f"{where}[]", wanted.base, found.base)
        return [f"{where} is {describe(found)} instead of {describe(wanted)}"]
    return _compare_fields(where, wanted, found)


def _compare_fields(where: str, wanted: Dtype, found: Dtype) -> list[str]:
    wanted_fields, found_fields = dict(wanted.fields or {}), dict(found.fields or {})
    lines = []
    for name, (dtype, offset, *_title) in wanted_fields.items():
        path = f"{where}.{name}"
        if name not in found_fields:
            lines.append(f"{path} is missing")
            continue
        other, place = found_fields[name][:2]
        if place != offset:
            lines.append(f"{path} is at byte {place} instead of {offset}")
        lines += _compare(path, dtype, other)
    lines += [f"{where}.{name} is unknown" for name in found_fields if name not in wanted_fields]
    if wanted.itemsize != found.itemsize:
        lines.append(f"{where} has {found.itemsize} bytes instead of {wanted.itemsize}")
    return lines


def opaque(size: int) -> Dtype:
    """What stands for a type that isn't known: only its size counts."""
    return np.dtype((np.void, size))


def _is_opaque(dtype: Dtype) -> bool:
    return dtype.kind == "V" and dtype.names is None and dtype.subdtype is None


def describe(dtype: Dtype) -> str:
    """A dtype in C's terms: "u32", "be16", "u8[6]", "struct of 16 bytes"."""
    if dtype.subdtype is not None:
        return describe(dtype.base) + "".join(f"[{length}]" for length in dtype.shape)
    if dtype.names is not None:
        return f"struct of {dtype.itemsize} bytes"
    prefix = "be" if dtype.byteorder == ">" else {"u": "u", "i": "s"}.get(dtype.kind, dtype.kind)
    return f"{prefix}{dtype.itemsize * 8}"
