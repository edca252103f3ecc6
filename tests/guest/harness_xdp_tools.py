# SPDX-License-Identifier: Apache-2.0
"""The programs of xdp-tools: what they have on a device, and what their kernel lets them do."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
from pathlib import Path

from tests.unit.kernel.harness_clang import compile_bpf

from towpath.kernel.bpf import bpffs

_NATIVE = 1  # XDP_MODE_NATIVE
CALL_ADJUST_TAIL = struct.pack("<BBhi", 0x85, 0, 0, 65)
FIXTURES = Path(__file__).parents[1] / "prog" / "kernel" / "fixtures"


def gives_up() -> bool:
    """Whether libxdp can't make dispatchers that call programs which change packets.

    Before 1.5.5 the functions that its dispatchers have replaced change none. Some kernels look.
    """
    (made,) = Path("/usr/lib").glob("*/bpf/xdp-dispatcher.o")
    looks = b"\0changes_pkt_data\0" in Path("/sys/kernel/btf/vmlinux").read_bytes()
    return looks and CALL_ADJUST_TAIL not in made.read_bytes()


def names(device: str) -> list[str]:
    """What the dispatcher on a device in this namespace calls, as xdp-loader has it."""
    command = ["xdp-loader", "status", device]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split()[2] for line in shown.splitlines() if line.startswith(" =>")]


def load_taking_fragments(device: str, directory: Path) -> None:
    """Have libxdp put a program on a device that takes frames in fragments: takes_all.

    As xdp-bench does. xdp-loader can't: libbpf marks programs as it loads them, by their section,
    and libxdp has asked before.
    """
    made = compile_bpf(FIXTURES / "fragments.bpf.c", directory / "fragments.o")
    libxdp = ctypes.CDLL("libxdp.so.1", use_errno=True)
    libxdp.xdp_program__open_file.restype = ctypes.c_void_p
    program = ctypes.c_void_p(libxdp.xdp_program__open_file(os.fsencode(made), None, None))
    assert libxdp.libxdp_get_error(program) == 0
    # Looked for once a process, and tests remove it.
    (bpffs.ROOT / "xdp").mkdir(mode=0o700, exist_ok=True)
    try:
        assert libxdp.xdp_program__set_xdp_frags_support(program, ctypes.c_bool(1)) == 0
        index = socket.if_nametoindex(device)
        assert libxdp.xdp_program__attach(program, index, _NATIVE, 0) == 0
    finally:
        libxdp.xdp_program__close(program)
