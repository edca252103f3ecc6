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

from towpath.kernel.bpf import probe
from towpath.kernel.bpf.object import BpfObject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.program.program import LoadedProgram
    from towpath.kernel.bpf.programs import Program, TestRun

SOURCES = {
    "lb": Path(__file__).with_name("told.bpf.c"),
    "recorder": Path(__file__).parents[1] / "recorder" / "told.bpf.c",
}
STILL = Path(__file__).with_name("still.bpf.c")
STILL_JIFFIES = 1 << 24
"""When it always is to what is compiled of that."""


@contextmanager
def tellable() -> Iterator[None]:
    """Load balancers that are loaded in the block can be told the device."""
    if probe.test_run_context():
        yield
        return
    packaged = BpfObject.packaged

    def compiled(name: str) -> BpfObject:
        return BpfObject(_compiled(SOURCES[name])) if name in SOURCES else packaged(name)

    with patch.object(BpfObject, "packaged", compiled):
        yield


@contextmanager
def standing_still() -> Iterator[None]:
    """Load balancers that are loaded in the block are `still.bpf.c`."""
    packaged = BpfObject.packaged

    def compiled(name: str) -> BpfObject:
        return BpfObject(_compiled(STILL)) if name == "lb" else packaged(name)

    with patch.object(BpfObject, "packaged", compiled):
        yield


def note_length() -> int:
    """Bytes in front of a frame that is handed to the kernel, as a test run gives it back.

    Kernels that take no context give nothing but the frame.
    """
    return 32 if probe.test_run_context() else 0


@cache
def _compiled(source: Path) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="towpath-test-"))
    return compile_bpf(source, directory / source.with_suffix(".o").name)


def run_on(
    program: LoadedProgram,
    frame: bytes,
    ifindex: int,
    *,
    way: str = "towpath_lb",
    metadata: bytes = b"",
    linear: int | None = None,
) -> TestRun:
    """Run on a frame that comes in on a device, with its driver's metadata in front of it.

    ``linear``: so many bytes of it are in the first fragment (6.18), as many as there is room for
    if nothing is said. ``way``: another program, of an object that stands still. KernelError: this
    kernel gives no metadata.
    """
    balancer = program.object.programs[way]
    return run_program_on(
        program.object, balancer, frame, ifindex, metadata=metadata, linear=linear
    )


def tell(obj: BpfObject, ifindex: int) -> None:
    """Tell an object that was loaded as `tellable` the device, if this kernel's context doesn't."""
    if ".bss" in obj.maps:
        with obj.maps[".bss"].mmap() as variables:
            variables.array["told_ifindex"] = ifindex


def run_program_on(
    obj: BpfObject,
    program: Program,
    frame: bytes,
    ifindex: int,
    *,
    metadata: bytes = b"",
    linear: int | None = None,
) -> TestRun:
    """The same of any program of an object that was loaded as `tellable`."""
    tell(obj, ifindex)
    if not probe.test_run_context() and not metadata:
        return program.test_run(frame)
    end = len(metadata) + (len(frame) if linear is None else min(linear, len(frame)))
    context = struct.pack("=6I", len(metadata), end, 0, ifindex, 0, 0)
    return program.test_run(metadata + frame, ctx=context)
