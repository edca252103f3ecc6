# SPDX-License-Identifier: Apache-2.0
"""Telling a test run on which device its packet came in, on every kernel.

Newer kernels are told in the run's context. Older ones take none, and there the load balancer is
compiled once more, with that one word read from a variable.
"""

from __future__ import annotations

import struct
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from tests.unit.kernel.harness_clang import compile_bpf

from towpath.kernel import probe
from towpath.kernel.object import BpfObject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.program import LoadedProgram
    from towpath.kernel.programs import TestRun

SOURCE = Path(__file__).with_name("told.bpf.c")


@contextmanager
def tellable() -> Iterator[None]:
    """Load balancers that are loaded in the block can be told the device."""
    if probe.test_run_context():
        yield
        return
    packaged = BpfObject.packaged

    def compiled(name: str) -> BpfObject:
        return BpfObject(_compiled()) if name == "xdp" else packaged(name)

    with patch.object(BpfObject, "packaged", compiled):
        yield


def note_length() -> int:
    """Bytes in front of a frame that is handed to the kernel, as a test run gives it back.

    Kernels that take no context give nothing but the frame.
    """
    return 32 if probe.test_run_context() else 0


@cache
def _compiled() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="towpath-test-"))
    return compile_bpf(SOURCE, directory / "told.bpf.o")


def run_on(program: LoadedProgram, frame: bytes, ifindex: int, *, metadata: bytes = b"") -> TestRun:
    """Run on a frame that comes in on a device, with its driver's metadata in front of it.

    KernelError: this kernel gives no metadata.
    """
    balancer = program.object.programs["towpath_lb"]
    if not probe.test_run_context():
        program.rows(".bss")["told_ifindex"] = ifindex
        if not metadata:
            return balancer.test_run(frame)
    end = len(metadata) + len(frame)
    context = struct.pack("=6I", len(metadata), end, 0, ifindex, 0, 0)
    return balancer.test_run(metadata + frame, ctx=context)
