# SPDX-License-Identifier: Apache-2.0
"""Classic BPF, which packet filters are compiled to, as eBPF.

The result is a whole function of an XDP program: its argument is the context, it returns 0 for
a packet that the filter rejects. It loads from the frame itself; what lies beyond its end
rejects, as in classic BPF (McCanne and Jacobson, 1993; libpcap's bpf_filter.c).

    A -> r8, X -> r9, frame -> r6, its end -> r7, M[i] -> the stack

Of a frame in fragments only the first one is between r6 and r7. What lies behind it is read by a
helper, and its length told by another; the context is on the stack for them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from towpath.errors import Error

if TYPE_CHECKING:
    from collections.abc import Sequence

_MEMORY = 16
_MAX_FRAME = 0xFFFF
_MAX_OFFSET = 0x7FFF
_WORD_BITS = 32
_SIZES = {0x00: 4, 0x08: 2, 0x10: 1}
"""Bytes by the size bits of an instruction, which are the same in both."""

# Classes, sources and operations that both kinds have in common.
_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
_K, _X = 0x00, 0x08
_IMM, _ABS, _IND, _MEM, _LEN, _MSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0
_ADD, _SUB, _MUL, _DIV, _OR, _AND, _LSH, _RSH, _NEG, _MOD, _XOR = (n << 4 for n in range(11))
_JA, _JEQ, _JGT, _JGE, _JSET = 0x00, 0x10, 0x20, 0x30, 0x40
_TXA = 0x80
_RET_A = 0x10

# eBPF only.
_JMP32, _ALU64 = 6, 7
_MOV, _TO_BE, _JNE, _EXIT = 0xB0, 0xD0, 0x50, 0x90
_R0, _CTX, _AT, _END, _FRAME, _FRAME_END, _A, _XR, _STACK = 0, 1, 2, 3, 6, 7, 8, 9, 10
_DATA, _DATA_END = 0, 4  # in struct xdp_md
_ARG2, _ARG3, _ARG4 = 2, 3, 4
_CALL, _DW = 0x80, 0x18
_GET_BUFF_LEN, _LOAD_BYTES = 188, 189  # BPF_FUNC_xdp_*, since 5.18
_CTX_AT, _LOADED_AT = -72, -80  # below M[15]


class Instruction(NamedTuple):
    """One of classic BPF, ``struct bpf_insn``: jumps are so many instructions forward."""

    code: int
    jt: int
    jf: int
    k: int


class TranslationError(Error, ValueError):
    """The program can't be translated; the message says why."""


class _Jump(NamedTuple):
    """An instruction whose offset is known when all are written."""

    at: int
    target: int


class _Writer:
    """eBPF instructions, with jumps to instructions of the classic program."""

    def __init__(self, *, fragments: bool) -> None:
        self.fragments = fragments
        self.code: list[tuple[int, int, int, int]] = []
        self.jumps: list[_Jump] = []

    def put(self, code: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> None:
        self.code.append((code, dst | src << 4, offset, imm & 0xFFFFFFFF))

    def jump(self, code: int, dst: int, src: int, imm: int, target: int) -> None:
        self.jumps.append(_Jump(len(self.code), target))
        self.put(code, dst, src, 0, imm)

    def forward(self, code: int, dst: int = 0, src: int = 0) -> int:
        """Put a jump whose target comes later: to be told to `land`."""
        self.put(code, dst, src)
        return len(self.code) - 1

    def land(self, jump: int) -> None:
        """Have a jump end here."""
        code, registers, _, imm = self.code[jump]
        self.code[jump] = code, registers, len(self.code) - jump - 1, imm

    def alu(self, operation: int, dst: int, imm: int) -> None:
        """32 bits, the rest becomes 0."""
        self.put(_ALU | operation | _K, dst, 0, 0, imm)

    def alu_register(self, operation: int, dst: int, src: int) -> None:
        self.put(_ALU | operation | _X, dst, src)

    def move(self, dst: int, src: int) -> None:
        """64 bits: a pointer."""
        self.put(_ALU64 | _MOV | _X, dst, src)


def translate(program: Sequence[Instruction], room: int, *, fragments: bool = False) -> bytes:
    """Return the function, exactly ``room`` instructions of 8 bytes, in this machine's order.

    ``fragments``: the program takes frames in fragments. TranslationError: it has no room, or an
    instruction isn't known.
    """
    writer = _Writer(fragments=fragments)
    # What is left over of the room has to be reachable, and may not cost anything: behind a
    # jump of which the verifier knows that it is never taken, and so takes the rest away.
    reject, filler = len(program), len(program) + 1
    writer.alu(_MOV, _R0, 0)
    for end in (reject, filler):
        writer.jump(_JMP32 | _JNE | _K, _R0, 0, 0, end)
    writer.put(_LDX | _MEM, _FRAME, _CTX, _DATA)
    writer.put(_LDX | _MEM, _FRAME_END, _CTX, _DATA_END)
    if fragments:
        writer.put(_STX | _MEM | _DW, _STACK, _CTX, _CTX_AT)
    writer.alu(_MOV, _A, 0)
    writer.alu(_MOV, _XR, 0)
    for slot in _slots(program):
        writer.put(_ST | _MEM, _STACK, 0, _slot(slot), 0)

    starts = []
    reached = _reached(program)
    for at, each in enumerate(program):
        starts.append(len(writer.code))
        if at in reached:
            _translate(writer, at, each, reject)
    starts.append(len(writer.code))
    writer.alu(_MOV, _R0, 0)
    writer.put(_JMP | _EXIT)
    starts.append(len(writer.code))
    _fill(writer, room)
    return _assemble(writer, starts)


def _reached(program: Sequence[Instruction]) -> set[int]:
    """The instructions that can be reached: the verifier refuses others."""
    reached = {0}
    for at, each in enumerate(program):
        if at not in reached or each.code & 0x07 == _RET:
            continue
        if each.code & 0x07 != _JMP:
            following = {at + 1}
        elif each.code & 0xF0 == _JA:
            following = {at + 1 + each.k}
        else:
            following = {at + 1 + each.jt, at + 1 + each.jf}
        if max(following) >= len(program):
            raise TranslationError(
                "the filter has a loop (protochain makes one) or no end; allowed: jumps forward"
            )
        reached |= following
    return reached


def _slots(program: Sequence[Instruction]) -> list[int]:
    """The words of memory that the program uses."""
    found = set()
    for each in program:
        kind = each.code & 0x07
        if kind in (_ST, _STX) or (kind in (_LD, _LDX) and each.code & 0xE0 == _MEM):
            if each.k >= _MEMORY:
                raise TranslationError(f"M[{each.k}]; allowed: M[0] to M[{_MEMORY - 1}]")
            found.add(each.k)
    return sorted(found)


def _slot(number: int) -> int:
    return -4 * (number + 1)


def _fill(writer: _Writer, room: int) -> None:
    left = room - len(writer.code)
    if left < 1:
        raise TranslationError(
            f"the filter takes {len(writer.code) + 1} instructions; allowed: {room}, so a "
            "shorter one"
        )
    for _ in range(left - 1):
        writer.alu(_MOV, _R0, 0)
    writer.put(_JMP | _EXIT)


def _assemble(writer: _Writer, starts: Sequence[int]) -> bytes:
    for at, target in writer.jumps:
        code, registers, _, imm = writer.code[at]
        writer.code[at] = code, registers, starts[target] - at - 1, imm
    return b"".join(struct.pack("=BBhI", *each) for each in writer.code)


def _translate(writer: _Writer, at: int, each: Instruction, reject: int) -> None:
    kind = each.code & 0x07
    if kind == _LD:
        _load(writer, each, _A, reject)
    elif kind == _LDX:
        _load(writer, each, _XR, reject)
    elif kind in (_ST, _STX):
        register = _A if kind == _ST else _XR
        writer.put(_STX | _MEM, _STACK, register, _slot(each.k))
    elif kind == _ALU:
        _arithmetic(writer, each, reject)
    elif kind == _JMP:
        _branch(writer, at, each)
    elif kind == _RET:
        _return(writer, each)
    elif each.code & 0xF8 == _TXA:
        writer.alu_register(_MOV, _A, _XR)
    else:
        writer.alu_register(_MOV, _XR, _A)


def _return(writer: _Writer, each: Instruction) -> None:
    if each.code & 0x18 == _RET_A:
        writer.alu_register(_MOV, _R0, _A)
    else:
        writer.alu(_MOV, _R0, int(each.k != 0))
    writer.put(_JMP | _EXIT)


# ---- Loads ---------------------------------------------------------------------------------------


def _load(writer: _Writer, each: Instruction, register: int, reject: int) -> None:
    mode, size = each.code & 0xE0, each.code & 0x18
    if mode == _IMM:
        writer.alu(_MOV, register, each.k)
    elif mode == _MEM:
        writer.put(_LDX | _MEM, register, _STACK, _slot(each.k))
    elif mode == _LEN:
        _length(writer, register)
    elif mode == _MSH:
        _absolute(writer, each.k, 0x10, register, reject)
        writer.alu(_AND, register, 0x0F)
        writer.alu(_LSH, register, 2)
    elif mode == _ABS and size in _SIZES:
        _absolute(writer, each.k, size, register, reject)
    elif mode == _IND and size in _SIZES:
        _indirect(writer, each.k, size, register, reject)
    else:
        raise TranslationError(f"instruction {each.code:#04x} is not known")


def _length(writer: _Writer, register: int) -> None:
    if writer.fragments:
        writer.put(_LDX | _MEM | _DW, _CTX, _STACK, _CTX_AT)
        writer.put(_JMP | _CALL, imm=_GET_BUFF_LEN)
        writer.alu_register(_MOV, register, _R0)
        return
    writer.move(_AT, _FRAME_END)
    writer.put(_ALU64 | _SUB | _X, _AT, _FRAME)
    writer.alu_register(_MOV, register, _AT)


def _give_up(writer: _Writer, reject: int) -> None:
    """Reject in any case; but to the verifier what follows has to be reachable."""
    writer.alu(_MOV, _R0, 0)
    writer.jump(_JMP32 | _JEQ | _K, _R0, 0, 0, reject)


def _absolute(writer: _Writer, k: int, size: int, register: int, reject: int) -> None:
    end = k + _SIZES[size]
    if end > _MAX_FRAME:
        _give_up(writer, reject)
        return
    writer.move(_AT, _FRAME)
    writer.move(_END, _FRAME)
    writer.put(_ALU64 | _ADD | _K, _END, 0, 0, end)
    _fetch(writer, k, size, register, reject)


def _indirect(writer: _Writer, k: int, size: int, register: int, reject: int) -> None:
    end = k + _SIZES[size]
    if end > _MAX_FRAME:
        _give_up(writer, reject)
        return
    # So that the verifier knows how far it goes; no frame is longer.
    writer.jump(_JMP | _JGT | _K, _XR, 0, _MAX_FRAME - end, reject)
    writer.move(_AT, _FRAME)
    writer.put(_ALU64 | _ADD | _X, _AT, _XR)
    writer.move(_END, _AT)
    writer.put(_ALU64 | _ADD | _K, _END, 0, 0, end)
    _fetch(writer, k, size, register, reject, indirect=True)


def _fetch(
    writer: _Writer, k: int, size: int, register: int, reject: int, *, indirect: bool = False
) -> None:
    """Load what is ``k`` bytes behind r2 and ends at r3, and put it in this machine's order.

    ``indirect``: r2 is as far into the frame as X says.
    """
    if writer.fragments:
        behind = writer.forward(_JMP | _JGT | _X, _END, _FRAME_END)
        _fetch_here(writer, k, size, register)
        loaded = writer.forward(_JMP | _JA)
        writer.land(behind)
        _fetch_by_helper(writer, k, size, register, reject, indirect=indirect)
        writer.land(loaded)
    else:
        writer.jump(_JMP | _JGT | _X, _END, _FRAME_END, 0, reject)
        _fetch_here(writer, k, size, register)
    if _SIZES[size] > 1:
        writer.put(_ALU | _TO_BE | _X, register, 0, 0, 8 * _SIZES[size])


def _fetch_here(writer: _Writer, k: int, size: int, register: int) -> None:
    if k > _MAX_OFFSET:
        writer.put(_ALU64 | _ADD | _K, _AT, 0, 0, k)
        k = 0
    writer.put(_LDX | _MEM | size, register, _AT, k)


def _fetch_by_helper(
    writer: _Writer, k: int, size: int, register: int, reject: int, *, indirect: bool
) -> None:
    writer.put(_LDX | _MEM | _DW, _CTX, _STACK, _CTX_AT)
    writer.alu(_MOV, _ARG2, k)
    if indirect:
        writer.alu_register(_ADD, _ARG2, _XR)
    writer.move(_ARG3, _STACK)
    writer.put(_ALU64 | _ADD | _K, _ARG3, 0, 0, _LOADED_AT)
    writer.alu(_MOV, _ARG4, _SIZES[size])
    writer.put(_JMP | _CALL, imm=_LOAD_BYTES)
    writer.jump(_JMP | _JNE | _K, _R0, 0, 0, reject)
    writer.put(_LDX | _MEM | size, register, _STACK, _LOADED_AT)


# ---- Arithmetic ----------------------------------------------------------------------------------


def _arithmetic(writer: _Writer, each: Instruction, reject: int) -> None:
    operation, from_x = each.code & 0xF0, each.code & _X
    if operation > _XOR:
        raise TranslationError(f"instruction {each.code:#04x} is not known")
    if operation == _NEG:
        writer.put(_ALU | _NEG, _A)
    elif operation in (_LSH, _RSH):
        _shift(writer, operation, each)
    elif from_x:
        if operation in (_DIV, _MOD):
            writer.jump(_JMP32 | _JEQ | _K, _XR, 0, 0, reject)
        writer.alu_register(operation, _A, _XR)
    elif operation in (_DIV, _MOD) and not each.k:
        _give_up(writer, reject)
    else:
        writer.alu(operation, _A, each.k)


def _shift(writer: _Writer, operation: int, each: Instruction) -> None:
    """Shifted by 32 or more nothing is left; eBPF would shift by the low five bits."""
    if each.code & _X:
        writer.put(_JMP32 | _JGT | _K, _XR, 0, 2, _WORD_BITS - 1)
        writer.alu_register(operation, _A, _XR)
        writer.put(_JMP | _JA, 0, 0, 1)
        writer.alu(_MOV, _A, 0)
    elif each.k < _WORD_BITS:
        writer.alu(operation, _A, each.k)
    else:
        writer.alu(_MOV, _A, 0)


# ---- Jumps ---------------------------------------------------------------------------------------


def _branch(writer: _Writer, at: int, each: Instruction) -> None:
    operation = each.code & 0xF0
    if operation == _JA:
        writer.jump(_JMP | _JA, 0, 0, 0, at + 1 + each.k)
        return
    if operation not in (_JEQ, _JGT, _JGE, _JSET):
        raise TranslationError(f"instruction {each.code:#04x} is not known")
    source = each.code & _X
    writer.jump(
        _JMP32 | operation | source,
        _A,
        _XR if source else 0,
        0 if source else each.k,
        at + 1 + each.jt,
    )
    if each.jf:
        writer.jump(_JMP | _JA, 0, 0, 0, at + 1 + each.jf)
