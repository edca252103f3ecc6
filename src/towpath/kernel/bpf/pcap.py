# SPDX-License-Identifier: Apache-2.0
"""The system's libpcap, by ctypes: tcpdump's language to classic BPF."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_uint, c_uint8, c_uint16, c_uint32, c_void_p
from functools import cache
from typing import TYPE_CHECKING, Any

from towpath.core.recorder.cbpf import Instruction
from towpath.errors import Error
from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SONAMES = ("libpcap.so.0.8", "libpcap.so.1")  # Debian's, everybody else's
_ETHERNET = 1
_SNAPLEN = 65535
_NETMASK_UNKNOWN = 0xFFFFFFFF


class ExpressionError(Error, ValueError):
    """libpcap doesn't understand the expression; the message has its reason."""


class _Instruction(ctypes.Structure):
    """struct bpf_insn."""

    _fields_ = (("code", c_uint16), ("jt", c_uint8), ("jf", c_uint8), ("k", c_uint32))


class Program(ctypes.Structure):
    """struct bpf_program."""

    _fields_ = (("length", c_uint), ("instructions", POINTER(_Instruction)))

    def __iter__(self) -> Iterator[Instruction]:
        for at in range(self.length):
            each = self.instructions[at]
            yield Instruction(each.code, each.jt, each.jf, each.k)


@cache
def library() -> Any:
    """The library. KernelError: it isn't installed."""
    for name in _SONAMES:
        try:
            loaded = ctypes.CDLL(name)
        except OSError:
            continue
        for function, result, arguments in (
            ("pcap_open_dead", c_void_p, (c_int, c_int)),
            ("pcap_close", None, (c_void_p,)),
            ("pcap_geterr", c_char_p, (c_void_p,)),
            ("pcap_compile", c_int, (c_void_p, POINTER(Program), c_char_p, c_int, c_uint32)),
            ("pcap_freecode", None, (POINTER(Program),)),
            ("pcap_lib_version", c_char_p, ()),
        ):
            getattr(loaded, function).restype = result
            getattr(loaded, function).argtypes = arguments
        return loaded
    raise KernelError(
        f"open {_SONAMES[0]}, which expressions need", hint="install the package libpcap0.8"
    )


def version() -> str:
    """What the library says of itself. KernelError: it isn't installed."""
    said: bytes = library().pcap_lib_version()
    return said.decode(errors="replace")


def compile_expression(expression: str) -> tuple[Instruction, ...]:
    """Compile an expression for Ethernet frames. ExpressionError; KernelError: no libpcap."""
    shared = library()
    handle = shared.pcap_open_dead(_ETHERNET, _SNAPLEN)
    if not handle:
        raise MemoryError("no memory for libpcap")
    program = Program()
    try:
        failed = shared.pcap_compile(
            handle, ctypes.byref(program), expression.encode(), 1, _NETMASK_UNKNOWN
        )
        if failed:
            reason = shared.pcap_geterr(handle).decode(errors="replace")
            raise ExpressionError(
                f"{expression!r}: {reason}; allowed: what pcap-filter(7) describes"
            )
        made = tuple(program)
        shared.pcap_freecode(ctypes.byref(program))
        return made
    finally:
        shared.pcap_close(handle)
