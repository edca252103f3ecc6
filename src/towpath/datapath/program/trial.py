# SPDX-License-Identifier: Apache-2.0
"""Whether a device takes frames from XDP, found out by sending it one.

For kernels that don't tell (before 6.3). The frame comes in on a tap device that exists for some
milliseconds, where a program redirects it. It is addressed to the device that it leaves by, from
that very device, and of an EtherType for experiments (IEEE 802, 9.2.3): a switch drops it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import struct
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np

from towpath.kernel.bpf.libbpf import lib
from towpath.kernel.bpf.links import attach_xdp
from towpath.kernel.bpf.programs import Program, ProgramType
from towpath.kernel.errors import KernelError
from towpath.kernel.net import interfaces

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from towpath.datapath.observe.refused import Refusals
    from towpath.datapath.program.program import LoadedProgram

log = logging.getLogger(__name__)

_TUN = "/dev/net/tun"
_NAME = b"towpath-trial"
# <linux/if_tun.h>
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 2, 0x1000
_IFREQ = struct.Struct("16sH22x")
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_EXPERIMENTAL = b"\x88\xb5"
_FRAME_BYTES = 60
_MOV, _CALL, _EXIT = 0xB7, 0x85, 0x95
_REDIRECT = 23  # BPF_FUNC_redirect


class Trial:
    """Tries devices of the calling thread's network namespace.

    What is queued for a device may still be refused by its driver. Only ``refusals`` tell, if they
    are counted; without them nothing is taken for granted.
    """

    def __init__(self, program: LoadedProgram, refusals: Refusals) -> None:
        self._table = program.maps["egress_devices"]
        self._ours = int(program.btf.enum("egress_flags")["EGRESS_OURS"])
        self._refusals = refusals

    def takes_frames(self, index: int) -> bool:
        """Whether a device took the frame. False also if that can't be found out."""
        if self._refusals.missing:
            return False
        try:
            with ExitStack() as undo:
                file, tap = undo.enter_context(_tap())
                undo.enter_context(self._ours_too(tap))
                with _redirecting(index) as program, attach_xdp(program, tap, "native"):
                    before = self._refusals.counts()
                    with suppress(OSError):  # told as a refusal, too
                        os.write(file, _frame(interfaces.mac(index)))
                    taken = self._refused(index) == _of(before, index)
                    self._refusals.uncount(index, before)
                    return taken
        except (KernelError, OSError) as error:
            log.info("device %d: whether it takes frames from XDP can't be tried: %s", index, error)
            return False

    @contextmanager
    def _ours_too(self, tap: int) -> Iterator[None]:
        """Have what comes in on the tap counted."""
        way = np.zeros((), self._table.value_dtype)
        way["flags"] = self._ours
        self._table.update(tap, way)
        try:
            yield
        finally:
            self._table.delete(tap, missing_ok=True)

    def _refused(self, index: int) -> int:
        return _of(self._refusals.counts(), index)


def _of(counts: Mapping[tuple[int, int], int], index: int) -> int:
    return sum(frames for (device, _), frames in counts.items() if device == index)


@contextmanager
def _tap() -> Iterator[tuple[int, int]]:
    """A tap device that is up, for the block: its file and index. OSError: there can be none."""
    # Only what doesn't wait is given to native XDP (`tun_can_build_skb`).
    file = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(file, _TUNSETIFF, _IFREQ.pack(_NAME, _IFF_TAP | _IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(_NAME, _IFF_UP))
        yield file, socket.if_nametoindex(_NAME.decode())
    finally:
        os.close(file)


@contextmanager
def _redirecting(index: int) -> Iterator[Program]:
    """A program that redirects whatever comes to a device. KernelError."""
    instructions = ((_MOV, 1, index), (_MOV, 2, 0), (_CALL, 0, _REDIRECT), (_EXIT, 0, 0))
    code = b"".join(struct.pack("=BBhi", each, to, 0, imm) for each, to, imm in instructions)
    fd = lib.bpf_prog_load(ProgramType.XDP, b"trial", b"GPL", code, len(instructions), None)
    if fd < 0:
        raise KernelError("load a program for a trial", -fd)
    with Program(fd, name="trial") as program:
        yield program


def _frame(mac: bytes) -> bytes:
    return (mac + mac + _EXPERIMENTAL).ljust(_FRAME_BYTES, b"\0")
