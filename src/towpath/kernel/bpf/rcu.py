# SPDX-License-Identifier: Apache-2.0
"""Waiting until no program can still see what was replaced.

A program runs inside an RCU read-side section. What user space unpublished can be written over once
all sections that had begun by then have ended: after a grace period.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

from towpath.kernel import _libc
from towpath.kernel.bpf._structs import MapCreateOpts
from towpath.kernel.bpf.libbpf import check, lib
from towpath.kernel.bpf.map_types import MapType
from towpath.kernel.fallback import fall_back

_MEMBARRIER_CMD_GLOBAL = 1


def wait_for_readers() -> None:
    """Return when every program run that began before this call has ended.

    Takes some tens of milliseconds. KernelError: the kernel offers no way to wait.
    """
    if _membarrier_waits():
        try:
            _libc.membarrier(_MEMBARRIER_CMD_GLOBAL)
        except OSError:  # EINVAL with nohz_full= CPUs, ENOSYS without CONFIG_MEMBARRIER
            fall_back("membarrier(2) here", "running programs are waited for by a map of maps")
        else:
            return
    _update_map_in_map()


def _membarrier_waits() -> bool:
    # It is synchronize_rcu() by another name, except with one CPU, where ordering needs no wait.
    return os.sysconf("SC_NPROCESSORS_ONLN") > 1


def _update_map_in_map() -> None:
    """Storing a map into a map of maps waits for programs that still hold the one before it."""
    outer, inner = _nested_maps()
    key, value = ctypes.c_uint32(0), ctypes.c_uint32(inner)
    check(
        lib.bpf_map_update_elem(outer, ctypes.byref(key), ctypes.byref(value), 0),
        "wait for running programs",
    )


@cache
def _nested_maps() -> tuple[int, int]:
    """An array of one map and the map in it, kept open for the life of the process."""
    what = "make the maps that wait for running programs"
    word = ctypes.sizeof(ctypes.c_uint32)
    inner = check(lib.bpf_map_create(MapType.ARRAY, b"rcu_inner", word, word, 1, None), what)
    opts = MapCreateOpts(inner_map_fd=inner)
    try:
        outer = check(
            lib.bpf_map_create(
                MapType.ARRAY_OF_MAPS, b"rcu_outer", word, word, 1, ctypes.byref(opts)
            ),
            what,
        )
    except BaseException:
        os.close(inner)
        raise
    return outer, inner
