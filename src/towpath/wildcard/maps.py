# SPDX-License-Identifier: Apache-2.0
"""The maps of a wildcard table: found in an object or among pins, checked, pinned.

A table ``acl`` is six maps, ``acl_index4``, ``acl_slots4``, ``acl_rules4`` and the same
with 6. They may come from any program that includes ``wildcard.h``; what that was
compiled with has to agree with what this library was.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from towpath.kernel.bpf.bpffs import ensure_bpffs, new_pin_dir
from towpath.kernel.bpf.maps import Map
from towpath.kernel.bpf.object import OBJECTS, BpfObject
from towpath.kernel.bpf.pinned_btf import pin_types, pinned_types
from towpath.kernel.errors import LayoutError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from towpath.kernel.bpf.btf import Dtype
    from towpath.kernel.bpf.layout import Layout

INCLUDE = OBJECTS / "include"
"""For the compiler's ``-I``: where ``<towpath/wildcard.h>`` is."""
PARTS = ("index", "slots", "rules")
VERSIONS = (4, 6)
_REFERENCE = "bench_wildcard"  # the packaged object that has a table, called "rules"
_REFERENCE_TABLE = "rules"
_TYPES = "types"
_MAX_RULES = 1 << 24  # a slot has so many bits to say where a run begins


@dataclass(frozen=True, slots=True)
class Wanted:
    """What this library was compiled with."""

    layouts: Mapping[str, Layout]
    """By part and version, such as "rules4"; their sizes mean nothing."""
    spare: int
    """WILDCARD_SPARE."""
    device_slots: int


@cache
def wanted() -> Wanted:
    """Read from the packaged object that has a table."""
    with BpfObject.packaged(_REFERENCE) as obj:
        limits = obj.btf.enum("wildcard_limits")
        layouts = {
            f"{part}{version}": obj.layout(f"{_REFERENCE_TABLE}_{part}{version}")
            for part in PARTS
            for version in VERSIONS
        }
        return Wanted(
            layouts,
            int(limits["WILDCARD_SPARE"]),
            int(limits["WILDCARD_DEVICE_SLOTS"]),
        )


def names(table: str) -> dict[str, str]:
    """Part and version to the name of the map, for all six."""
    return {
        f"{part}{version}": f"{table}_{part}{version}" for version in VERSIONS for part in PARTS
    }


def check(table: str, maps: Mapping[str, Map]) -> None:
    """LayoutError, naming all differences, unless these are a table's six maps."""
    differences = []
    for part, layout in wanted().layouts.items():
        if part not in maps:
            differences.append(f"{table}_{part} is missing")
            continue
        found = maps[part].layout
        same_size = replace(layout, max_entries=found.max_entries)
        differences += [f"{table}_{part}: {line}" for line in same_size.differences(found)]
    for version in VERSIONS:
        rules = maps.get(f"rules{version}")
        if rules is not None and not wanted().spare <= rules.max_entries <= _MAX_RULES:
            differences.append(
                f"{table}_rules{version}: max_entries is {rules.max_entries} instead of "
                f"{wanted().spare} to {_MAX_RULES}"
            )
        slots = maps.get(f"slots{version}")
        if slots is not None and slots.max_entries % 8:
            differences.append(f"{table}_slots{version}: max_entries is no multiple of 8")
    if differences:
        raise LayoutError(f"{table} is not a wildcard table of this version", differences)


def of_object(obj: BpfObject, table: str) -> dict[str, Map]:
    """The six maps of a loaded object, which stays their owner. LayoutError."""
    found = {part: obj.maps[name] for part, name in names(table).items() if name in obj.maps}
    check(table, found)
    return found


def of_pins(directory: Path, table: str, undo: ExitStack) -> dict[str, Map]:
    """The six maps pinned in a directory, closed by ``undo``. KernelError; LayoutError."""
    types = pinned_types(directory / _TYPES)
    found = {
        part: undo.enter_context(Map.from_pin(directory / name, types))
        for part, name in names(table).items()
    }
    check(table, found)
    return found


def pin(obj: BpfObject, table: str, directory: Path) -> None:
    """Pin an object's six maps, and their types, in a directory that this makes.

    It appears whole or not at all. FileExistsError: it is there already. KernelError.
    """
    ensure_bpffs()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with new_pin_dir(directory) as building:
        for part, each in of_object(obj, table).items():
            each.pin(building / names(table)[part])
        pin_types(obj.btf, building / _TYPES)


def reuse(obj: BpfObject, table: str, directory: Path) -> None:
    """Let an object that isn't loaded yet use the table pinned in a directory.

    Its own declaration may be of another size. KernelError; LayoutError.
    """
    with ExitStack() as undo:
        for part, each in of_pins(directory, table, undo).items():
            obj.resize(names(table)[part], each.max_entries)
            obj.reuse(names(table)[part], each)


def resize(obj: BpfObject, table: str, *, ipv4: int, ipv6: int) -> None:
    """Give a table of an object that isn't loaded yet room for other numbers of rules."""
    for version, rules in ((4, ipv4), (6, ipv6)):
        if rules < 0:
            raise ValueError(f"ipv{version}: {rules}; allowed: 0 or more")
        obj.resize(f"{table}_rules{version}", rules_room(rules))
        obj.resize(f"{table}_slots{version}", slots_room(rules))


def rules_room(rules: int) -> int:
    """WILDCARD_RULES_ROOM."""
    return rules + rules // 4 + wanted().spare


def slots_room(rules: int) -> int:
    """WILDCARD_SLOTS_ROOM."""
    return (rules // 2 + 256) * 8


def memory(each: Map, dtype: Dtype, stack: ExitStack) -> Any:
    """A map's elements as memory, for as long as the stack is open."""
    return stack.enter_context(each.mmap()).array.view(dtype)
