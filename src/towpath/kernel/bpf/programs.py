# SPDX-License-Identifier: Apache-2.0
"""Loaded programs: what the kernel tells of them, and running one on a packet."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Self

from towpath.closeable import Closeable
from towpath.kernel.bpf import bpffs
from towpath.kernel.bpf._structs import ProgInfo, TestRunOpts
from towpath.kernel.bpf.libbpf import get_info, lib
from towpath.kernel.errors import CAP_BPF, KernelError, errno_name, permission_hint

if TYPE_CHECKING:
    from pathlib import Path


class ProgramType(IntEnum):
    """BPF_PROG_TYPE_*, those that are used here."""

    SOCKET_FILTER = 1
    SCHED_CLS = 3
    XDP = 6
    CGROUP_SKB = 8
    CGROUP_SOCK = 9
    RAW_TRACEPOINT = 17
    CGROUP_SOCK_ADDR = 18
    CGROUP_SOCKOPT = 25
    TRACING = 26
    EXT = 28


BPF_F_XDP_HAS_FRAGS = 1 << 5
BPF_F_TEST_XDP_LIVE_FRAMES = 1 << 1
# The kernel's own choice. Said all the same: kernels that don't know live frames refuse this field,
# but overlook the flag.
LIVE_BATCH = 64

# A program may grow a packet: by its headroom and tailroom, never by more than a page.
_GROWTH = 4096
_CONTEXT = 256  # more than any struct that a program has for its context


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a program made of a packet.

    ``data`` is the packet as the program left it, ``duration_ns`` the average of all runs, ``ctx``
    the context afterwards, if one was given: of struct __sk_buff what the kernel copies back, such
    as mark, priority and tstamp.
    """

    __test__ = False  # pytest: this is not a test case

    retval: int
    data: bytes
    duration_ns: int
    ctx: bytes = b""


class Program(Closeable):
    """One loaded program, through a file descriptor of its own.

    ``tag`` is the kernel's hash of its instructions, ``jited_bytes`` the machine code's size and
    ``verified_instructions`` how many the verifier walked through; both are 0 where the kernel
    doesn't tell. ``loaded_ns`` is when it was loaded, in nanoseconds of CLOCK_BOOTTIME.
    ``attach_type`` is the hook that it was compiled for (BPF_*), None where only the kernel knows.
    A context manager, which closes the file descriptor. The program lives on while something is
    attached or a pin names it.
    """

    def __init__(
        self, fd: int, *, name: str = "", verified: int = 0, attach_type: int | None = None
    ) -> None:
        self.fd = fd
        info = get_info(fd, ProgInfo(), f"ask for the program behind file descriptor {fd}")
        self.name: str = name or info.name.decode()
        self.id: int = info.id
        self.tag: str = bytes(info.tag).hex()
        self.type: int = info.type
        self.attach_type = attach_type
        self.loaded_ns: int = info.load_time
        self.jited_bytes: int = info.jited_prog_len
        self.verified_instructions: int = info.verified_insns or verified

    @classmethod
    def from_pin(cls, path: Path | str) -> Self:
        """The program pinned at ``path``. KernelError: no program is pinned there."""
        return cls(bpffs.open_pin(path, "prog"))

    @classmethod
    def from_id(cls, number: int) -> Self:
        """The program with that id. KernelError: there is none."""
        return cls(bpffs.check_id(lib.bpf_prog_get_fd_by_id(number), "program", number))

    @property
    def map_ids(self) -> tuple[int, ...]:
        """The ids of the maps that it uses. KernelError."""
        what = f"ask for the maps of program {self.name}"
        count = get_info(self.fd, ProgInfo(), what).nr_map_ids
        ids = (ctypes.c_uint32 * count)()
        info = ProgInfo(nr_map_ids=count, map_ids=ctypes.addressof(ids) if count else 0)
        get_info(self.fd, info, what)
        return tuple(ids)

    def test_run(self, data: bytes, *, repeat: int = 1, ctx: bytes | None = None) -> TestRun:
        """Run on a packet in the kernel, ``repeat`` times, without a device.

        ``ctx`` is the program's context as it begins: struct xdp_md of an XDP program. Each run
        after the first gets the packet as the run before it left it. KernelError: EINVAL when the
        packet or the context isn't one that this program type can have.
        """
        packet_in = ctypes.create_string_buffer(data, len(data))
        packet_out = ctypes.create_string_buffer(len(data) + _GROWTH)
        opts = TestRunOpts(
            data_in=ctypes.addressof(packet_in),
            data_size_in=len(data),
            data_out=ctypes.addressof(packet_out),
            data_size_out=len(packet_out),
            repeat=repeat,
        )
        if ctx is not None:
            context = ctypes.create_string_buffer(ctx, len(ctx))
            opts.ctx_in, opts.ctx_size_in = ctypes.addressof(context), len(ctx)
            # The kernel's whole context has to have room, however little of it is told.
            left = ctypes.create_string_buffer(max(len(ctx), _CONTEXT))
            opts.ctx_out, opts.ctx_size_out = ctypes.addressof(left), len(left)
        result = lib.bpf_prog_test_run_opts(self.fd, ctypes.byref(opts))
        if result < 0:
            raise self._error("test run of", -result, len(data))
        data_out = packet_out.raw[: opts.data_size_out]
        ctx_out = left.raw[: len(ctx)] if ctx is not None else b""
        return TestRun(opts.retval, data_out, opts.duration, ctx_out)

    def send_live(self, data: bytes, count: int) -> None:
        """Run on ``count`` frames in turn, and send each where the program says (5.18).

        They leave as frames of a driver do, in the namespace of the calling thread. A frame that
        has been sent and freed comes again as it was left, so the program writes all of it that
        anyone may change. KernelError: EINTR when a signal ended it; EINVAL before Linux 5.18.
        """
        packet = ctypes.create_string_buffer(data, len(data))
        opts = TestRunOpts(
            data_in=ctypes.addressof(packet),
            data_size_in=len(data),
            repeat=count,
            flags=BPF_F_TEST_XDP_LIVE_FRAMES,
            batch_size=LIVE_BATCH,
        )
        result = lib.bpf_prog_test_run_opts(self.fd, ctypes.byref(opts))
        if result < 0:
            raise self._error("send frames by", -result, len(data))

    def _error(self, verb: str, number: int, size: int) -> KernelError:
        hint = ""
        if errno_name(number) == "EINVAL":
            hint = f"a packet of {size} bytes, or that context, is not one that it can have"
        elif errno_name(number) == "EPERM":
            hint = permission_hint(CAP_BPF)
        return KernelError(f"{verb} program {self.name}", number, hint)

    def pin(self, path: Path | str) -> None:
        """Name the program in a BPF file system, which keeps it. KernelError."""
        bpffs.pin(self.fd, path, f"program {self.name}")

    def close(self) -> None:
        """Close the file descriptor. Twice is once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __repr__(self) -> str:
        return f"<Program {self.name} id {self.id}>"


def described(number: int) -> str:
    """A program as messages name it: by its id, and its name where that may be asked for."""
    try:
        with Program.from_id(number) as program:
            return f"program {program.name} (id {number})"
    except KernelError:
        return f"program {number}"
