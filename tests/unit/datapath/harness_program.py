# SPDX-License-Identifier: Apache-2.0
"""The program's own look-ups, compiled for this process: what a packet finds in given tables."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from towpath.kernel.bpf.btf import Btf
from towpath.kernel.bpf.object import OBJECTS

SOURCE = Path(__file__).with_name("program.c")
HEADERS = Path(__file__).parents[3] / "bpf"
BTF = Btf.from_elf(OBJECTS / "lb.bpf.o")
LINE = int(BTF.enum("maglev_limits")["MAGLEV_LINE"])

Array = np.ndarray[Any, Any]


@cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "program.so"
        flags = ["-O1", "-shared", "-fPIC", "-std=gnu11", "-Wno-unused", "-Werror"]
        subprocess.run(
            ["clang", *flags, "-I", str(HEADERS), str(SOURCE), "-o", str(output)], check=True
        )
        library = ctypes.CDLL(str(output))
    pointer, word, long = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    for name, result, arguments in (
        ("service", word, [pointer, ctypes.c_char_p]),
        ("handle", word, [pointer, pointer, word, pointer, word, word]),
        ("server", word, [pointer, word, word, long]),
        ("hash_vip", long, [ctypes.c_char_p]),
        ("hash_flow", long, [ctypes.c_char_p, long]),
    ):
        function = getattr(library, f"program_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class Index(ctypes.Structure):
    """``struct index`` of program.c: the tables that a destination is looked up in."""

    _fields_ = (
        ("vips", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("pages", ctypes.c_void_p),
        ("vips_len", ctypes.c_uint32),
        ("pages_len", ctypes.c_uint32),
    )


def service_of(vips: Array, lengths: Array, pages: Array, key: bytes) -> int:
    """The service that the program finds for a destination (a struct vip_key), 0 if none."""
    index = Index(vips.ctypes.data, lengths.ctypes.data, pages.ctypes.data, len(vips), len(pages))
    return int(_library().program_service(ctypes.byref(index), key))


def handle_of(service: Array, slots: Array, backends: Array, hash32: int) -> int:
    """The handle that a flow's hash leads to in a service (one record), 0 if none."""
    arguments = slots.ctypes.data, len(slots) // LINE, backends.ctypes.data, len(backends), hash32
    return int(_library().program_handle(service.ctypes.data, *arguments))


def server_of(slots: Array, service: int, number: int) -> int:
    """The handle of whoever has a server's id in a service, 0 if nobody has it."""
    return int(_library().program_server(slots.ctypes.data, len(slots), service, number))


def hash_vip(key: bytes) -> int:
    """The hash of a struct vip_key."""
    return int(_library().program_hash_vip(key))


def hash_flow(key: bytes, seed: int) -> int:
    """The hash of a struct flow_key."""
    return int(_library().program_hash_flow(key, seed))
