# SPDX-License-Identifier: Apache-2.0
"""Numbers of <linux/bpf.h> that say what a map is and how to store in it."""

from __future__ import annotations

from enum import IntEnum


class MapType(IntEnum):
    """BPF_MAP_TYPE_*, those that are used here."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    CPUMAP = 16
    PERCPU_CGROUP_STORAGE = 21
    SK_STORAGE = 24
    DEVMAP_HASH = 25
    RINGBUF = 27


BPF_ANY = 0
BPF_NOEXIST = 1
BPF_EXIST = 2
BPF_F_NO_PREALLOC = 1 << 0
BPF_F_RDONLY_PROG = 1 << 7
BPF_F_MMAPABLE = 1 << 10


def type_name(number: int) -> str:
    """A map type in the kernel's words: "percpu_array"; digits for one that isn't used here."""
    names = {kind.value: kind.name.lower() for kind in MapType}
    return names.get(number, str(number))
