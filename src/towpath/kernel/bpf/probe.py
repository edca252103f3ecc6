# SPDX-License-Identifier: Apache-2.0
"""What this kernel can do, found out by trying; never by its version.

Every answer is kept for the life of the process. Probing needs the capabilities that using the
feature does: without them the answer is False.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import contextmanager
from errno import EINVAL, ENODEV
from functools import cache
from typing import TYPE_CHECKING

from towpath.kernel import _libc
from towpath.kernel.bpf._structs import (
    LinkCreateOpts,
    MapBatchOpts,
    MapCreateOpts,
    ProgInfo,
    ProgLoadOpts,
    TestRunOpts,
)
from towpath.kernel.bpf.attach_types import AttachType
from towpath.kernel.bpf.libbpf import get_info, lib
from towpath.kernel.bpf.map_types import BPF_F_MMAPABLE, MapType
from towpath.kernel.bpf.programs import (
    BPF_F_TEST_XDP_LIVE_FRAMES,
    BPF_F_XDP_HAS_FRAGS,
    LIVE_BATCH,
    ProgramType,
)
from towpath.kernel.errors import KernelError
from towpath.kernel.net.netns import new_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

# Two instructions: return 0.
_RETURN_0 = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
# The same with XDP_DROP: of a live frame that is aborted the kernel's log tells.
_RETURN_DROP = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)
_NO_SUCH_HELPER = (b"invalid func ", b"unknown func ", b"cannot use helper ")
# r0 = 0; *(u64 *)(r10 - 8) = r0; if that is r0, r0 is put there (BPF_CMPXCHG); return.
_EXCHANGE = (
    _RETURN_0[:8]
    + struct.pack("<BBhi", 0x7B, 0x0A, -8, 0)
    + struct.pack("<BBhi", 0xDB, 0x0A, -8, 0xF1)
    + _RETURN_0
)
_NO_DEVICE = 0x7FFFFFFF
_LOOPBACK = 1  # in every network namespace
_XDP_GENERIC = 1 << 1
_MEMBARRIER_CMD_QUERY, _MEMBARRIER_CMD_GLOBAL = 0, 1


@cache
def map_mmap() -> bool:
    """Array maps as memory (5.5)."""
    opts = MapCreateOpts(map_flags=BPF_F_MMAPABLE)
    fd = lib.bpf_map_create(MapType.ARRAY, b"probe", 4, 8, 1, ctypes.byref(opts))
    return _close(fd)


@cache
def batch(map_type: int = MapType.HASH) -> bool:
    """Batched reads of that kind of map (hash tables and arrays 5.6, per-CPU arrays 5.13)."""
    fd = lib.bpf_map_create(map_type, b"probe", 4, 8, 4, None)
    if fd < 0:
        return False
    keys, values = ctypes.create_string_buffer(64), ctypes.create_string_buffer(1 << 16)
    token, count = ctypes.create_string_buffer(64), ctypes.c_uint32(4)
    result = lib.bpf_map_lookup_batch(
        fd, None, token, keys, values, ctypes.byref(count), ctypes.byref(MapBatchOpts())
    )
    os.close(fd)
    return result == 0 or -result not in (EINVAL, 95, 524)


@cache
def xdp_link() -> bool:
    """XDP attachments that last as long as something holds them (5.9)."""
    opts = LinkCreateOpts(flags=_XDP_GENERIC)
    try:
        with new_netns(), tiny(ProgramType.XDP) as fd:
            return _close(lib.bpf_link_create(fd, _LOOPBACK, AttachType.XDP, ctypes.byref(opts)))
    except KernelError:
        return False


@cache
def tcx() -> bool:
    """Links at tc's ingress and egress (6.6)."""
    opts = LinkCreateOpts()
    try:
        with tiny(ProgramType.SCHED_CLS) as fd:
            result = lib.bpf_link_create(fd, _NO_DEVICE, AttachType.TCX_INGRESS, ctypes.byref(opts))
    except KernelError:
        return False
    # A kernel that knows the attach type looks for the device, another one doesn't get that far.
    return _close(result) or bool(result == -ENODEV)


@cache
def jit() -> bool:
    """Programs become machine code."""
    with tiny(ProgramType.XDP) as fd:
        return bool(get_info(fd, ProgInfo(), "ask for a probe").jited_prog_len)


@cache
def test_run_context() -> bool:
    """A test run can be told the context: on which device the packet comes in (5.15)."""
    packet = ctypes.create_string_buffer(64)
    words = struct.pack("=6I", 0, len(packet), 0, _LOOPBACK, 0, 0)
    context = ctypes.create_string_buffer(words, len(words))
    opts = TestRunOpts(
        data_in=ctypes.addressof(packet),
        data_size_in=len(packet),
        ctx_in=ctypes.addressof(context),
        ctx_size_in=len(context),
    )
    with tiny(ProgramType.XDP) as fd:
        return bool(lib.bpf_prog_test_run_opts(fd, ctypes.byref(opts)) == 0)


@cache
def live_frames() -> bool:
    """A test run can send the frames that a program redirects (5.18)."""
    packet = ctypes.create_string_buffer(64)
    opts = TestRunOpts(
        data_in=ctypes.addressof(packet),
        data_size_in=len(packet),
        repeat=1,
        flags=BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size=LIVE_BATCH,
    )
    fd = _load(ProgramType.XDP, _RETURN_DROP)
    found = fd >= 0 and lib.bpf_prog_test_run_opts(fd, ctypes.byref(opts)) == 0
    _close(fd)
    return bool(found)


@cache
def fragments() -> bool:
    """XDP programs may take frames in fragments (5.18)."""
    return _close(_load(ProgramType.XDP, _RETURN_0, BPF_F_XDP_HAS_FRAGS))


@cache
def atomics() -> bool:
    """Programs may compare and exchange, and add and see what was there (5.12)."""
    return _close(_load(ProgramType.SCHED_CLS, _EXCHANGE))


@cache
def membarrier() -> bool:
    """The system call of that name waits for all CPUs (4.3; not with nohz_full= CPUs)."""
    try:
        return bool(_libc.membarrier(_MEMBARRIER_CMD_QUERY) & _MEMBARRIER_CMD_GLOBAL)
    except OSError:
        return False


@cache
def program_type(number: int) -> bool:
    """Programs of that BPF_PROG_TYPE_* can be loaded."""
    return bool(lib.libbpf_probe_bpf_prog_type(number, None) == 1)


@cache
def map_type(number: int) -> bool:
    """Maps of that BPF_MAP_TYPE_* can be made."""
    return bool(lib.libbpf_probe_bpf_map_type(number, None) == 1)


@cache
def helper(number: int, program: int, hook: int = 0) -> bool:
    """Programs of type ``program`` may call the BPF_FUNC_* with that number.

    ``hook``: the BPF_* that they are for, where their type has several.
    """
    # libbpf's own probe doesn't know the words in which newer kernels (6.11) refuse.
    log = ctypes.create_string_buffer(4096)
    opts = ProgLoadOpts(
        expected_attach_type=hook,
        log_level=1,
        log_size=len(log),
        log_buf=ctypes.addressof(log),
    )
    code = struct.pack("<BBhi", 0x85, 0, 0, number) + _RETURN_0
    fd = lib.bpf_prog_load(program, b"probe", b"GPL", code, len(code) // 8, ctypes.byref(opts))
    if _close(fd):
        return True
    # A call with wrong arguments is refused too, but only after it was found to be allowed.
    return bool(log.value) and not any(words in log.value for words in _NO_SUCH_HELPER)


@contextmanager
def tiny(kind: ProgramType, flags: int = 0) -> Iterator[int]:
    """The shortest program of a type, loaded for the block: its file descriptor. KernelError.

    ``flags``: BPF_F_*.
    """
    fd = _load(kind, _RETURN_0, flags)
    if fd < 0:
        raise KernelError("load a probe", -fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _load(kind: ProgramType, instructions: bytes, flags: int = 0) -> int:
    opts, count = ctypes.byref(ProgLoadOpts(prog_flags=flags)), len(instructions) // 8
    fd: int = lib.bpf_prog_load(kind, b"probe", b"GPL", instructions, count, opts)
    return fd


def _close(fd: int) -> bool:
    """Whether ``fd`` is one; closes it."""
    if fd >= 0:
        os.close(fd)
    return fd >= 0
