# SPDX-License-Identifier: Apache-2.0
"""Times XDP programs from within the kernel, by ``bpf/bench/timer.bpf.c``."""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from towpath.bench.errors import BenchError
from towpath.closeable import Closeable
from towpath.kernel.bpf import probe
from towpath.kernel.bpf.fragments import taking_fragments
from towpath.kernel.bpf.object import BpfObject

if TYPE_CHECKING:
    from towpath.kernel.bpf.programs import Program, TestRun

_ETHERNET = 14
_XDP_MD = "6I"  # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue, egress


class Action(IntEnum):
    """``enum xdp_action``."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


@dataclass(frozen=True, slots=True)
class Stimulus:
    """Packets to time a program with: all like ``frame`` but for 32 bits of the source address.

    ``source_offset`` says where in the frame those are, below 64; the bits of ``source_mask``
    (low ones, host order) are changed from packet to packet, so that 0 means one flow.
    """

    frame: bytes
    source_offset: int
    source_mask: int
    ifindex: int
    rewrites: bool = False
    """Whether the program writes into the packet, which is then put back before the next."""

    @property
    def source_word(self) -> int:
        """The 32 bits of the first packet, as a number."""
        return int.from_bytes(self.frame[self.source_offset :][:4], "big")

    def once(self, program: Program, *, repeat: int = 1) -> TestRun:
        """Run a program on the frame as it is."""
        context = struct.pack(_XDP_MD, 0, len(self.frame), 0, self.ifindex, 0, 0)
        return program.test_run(self.frame, repeat=repeat, ctx=context)


class Wrapper(Closeable):
    """The loaded wrapper. ``floor`` is its program that does nothing but return XDP_TX.

    A context manager, which closes. KernelError: it can't be loaded. BenchError: this kernel
    can't run a program as if its packet had come in on a device.
    """

    def __init__(self) -> None:
        if not probe.test_run_context():
            raise BenchError(
                "this kernel runs no program as if its packet had come in on a device, which the"
                " benchmarks need; Linux 5.15 and newer do"
            )
        self._undo = ExitStack()
        with ExitStack() as undo:
            loaded = undo.enter_context(taking_fragments(BpfObject.packaged("bench_timer")))
            loaded.load()
            self._undo = undo.pop_all()
        self.floor = loaded.programs["bench_floor"]
        self.batch = int(loaded.btf.enum("bench_limits")["BENCH_BATCH"])
        self._wrapper = loaded.programs["bench_wrapper"]
        self._slot = loaded.maps["under_test"]
        self._state = loaded.maps[".bss"]

    def time(
        self,
        program: Program,
        stimulus: Stimulus,
        expected: Action,
        *,
        batches: int,
        untimed: int = 0,
    ) -> float:
        """Return the nanoseconds that one packet took, the wrapper's own included.

        Before the ``batches`` that are timed, ``untimed`` others fill the caches.

        BenchError: a packet had another verdict than ``expected``, or came out so that it
        can't be put back as it was.
        """
        self._slot.update(0, program.fd)
        self._prepare(stimulus, expected, untimed)
        stimulus.once(self._wrapper, repeat=untimed + batches)
        result = self._state.lookup(0)["bench"]
        packets, unexpected = int(result["packets"]), int(result["unexpected"])
        if result["broken"] or not packets:
            raise BenchError(f"{program.name}: a packet came out so that it could not be put back")
        if unexpected:
            raise BenchError(
                f"{program.name}: {unexpected} of {packets} packets were not XDP_{expected.name}"
            )
        return int(result["nanoseconds"]) / packets

    def _prepare(self, stimulus: Stimulus, expected: Action, untimed: int) -> None:
        state = self._state.lookup(0)
        record = np.zeros((), state["bench"].dtype)
        record["ethernet"] = np.frombuffer(stimulus.frame[:_ETHERNET], np.uint8)
        record["source_offset"] = stimulus.source_offset
        record["source_base"] = stimulus.source_word
        record["source_mask"] = stimulus.source_mask
        record["frame_length"] = len(stimulus.frame)
        record["expected_verdict"] = expected
        record["untimed"] = untimed
        record["rewrites"] = stimulus.rewrites
        words = record["packet"].nbytes
        record["packet"] = np.frombuffer(
            stimulus.frame[_ETHERNET:][:words].ljust(words, b"\0"), "<u8"
        )
        record["sequence"] = state["bench"]["sequence"]
        state["bench"] = record
        self._state.update(0, state)

    def close(self) -> None:
        """Unload it. Twice is once."""
        self._undo.close()

    def __repr__(self) -> str:
        return f"<Wrapper of {self.batch} packets a batch>"
