# SPDX-License-Identifier: Apache-2.0
"""Objects whose XDP programs take frames in fragments (5.18), larger than a page has room for.

Programs look for headers in the first fragment. Where the kernel can move them there (6.18,
bpf_xdp_pull_data), the programs of ``bpf/net/pull.h`` have it do so. The call is put into them by
hand: libbpf would refuse objects that name a kernel function on kernels without type information.
"""

from __future__ import annotations

import struct
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING

from towpath.kernel.bpf import probe
from towpath.kernel.bpf.libbpf import lib
from towpath.kernel.bpf.patch import functions_of, with_functions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from towpath.kernel.bpf.object import BpfObject


class Kind(Enum):
    """What an XDP program is loaded for. One of another kind can't be put in its place."""

    LINEAR = "linear"
    """Frames in one piece, which is what generic mode makes of all."""
    FRAGMENTS = "fragments"
    """Frames in fragments as well, by a link. The kernel knows from the program's flag."""
    CALLED = "called"
    """The same, called by a dispatcher, which has the flag: extensions and what they call have
    none (xdp-tools, lib/libxdp/protocol.org)."""

    @property
    def fragments(self) -> bool:
        """Whether frames in fragments are taken."""
        return self is not Kind.LINEAR


_PULL, _KERNEL_FUNCTION = "pull_linear", b"bpf_xdp_pull_data"
_KIND_FUNC = 12  # BTF_KIND_FUNC
_MOV_R0, _CALL, _EXIT = 0xB7, 0x85, 0x95
_PSEUDO_KFUNC_CALL = 2


def taking_fragments(
    obj: BpfObject,
    functions: Mapping[str, Callable[[int], bytes]] | None = None,
    *,
    marked: bool = True,
) -> BpfObject:
    """Return an object, which isn't loaded, such that its XDP programs take frames in fragments.

    It is the one that is given, or another in its place. Where the kernel has no such frames its
    programs are as ever. ``functions``: other functions to replace, see `with_functions`.
    ``marked``: as of `BpfObject.take_fragments`.
    """
    replaced = dict(functions or {})
    taken = probe.fragments()
    if taken and (number := _pull_data()) and _PULL in functions_of(obj.path):
        replaced[_PULL] = lambda room: _calling(number, room)
    if replaced:
        with obj:
            path = obj.path
        obj = with_functions(type(obj), path, replaced)
    if taken:
        obj.take_fragments(marked=marked)
    return obj


def of_kind(
    obj: BpfObject,
    kind: Kind,
    functions: Mapping[str, Callable[[int], bytes]] | None = None,
    *,
    slots: bool = False,
) -> BpfObject:
    """Return an object, which isn't loaded, with XDP programs of a kind: as `taking_fragments`.

    ``slots``: programs that take frames in one piece are such as a dispatcher may call, too.
    """
    if kind.fragments:
        obj = taking_fragments(obj, functions, marked=kind is Kind.FRAGMENTS)
    elif functions:
        with obj:
            path = obj.path
        obj = with_functions(type(obj), path, functions)
    if kind is Kind.CALLED or (slots and kind is Kind.LINEAR):
        obj.for_slots()
    return obj


def _calling(number: int, room: int) -> bytes:
    """A function that hands its arguments on to one of the kernel's, and returns what that does."""
    # What is left over comes first: code behind the end would be unreachable, and refused.
    nothing = struct.pack("=BBhi", _MOV_R0, 0, 0, 0)
    call = struct.pack("=BBhi", _CALL, _PSEUDO_KFUNC_CALL << 4, 0, number)
    return nothing * (room - 2) + call + struct.pack("=BBhi", _EXIT, 0, 0, 0)


@cache
def _pull_data() -> int:
    """The number of bpf_xdp_pull_data() among the kernel's types, 0 if it isn't there."""
    types = lib.btf__load_vmlinux_btf()
    if not types:
        return 0
    try:
        found: int = lib.btf__find_by_name_kind(types, _KERNEL_FUNCTION, _KIND_FUNC)
        return max(found, 0)
    finally:
        lib.btf__free(types)


def pulls() -> bool:
    """Whether headers that don't lie in the first fragment are moved there."""
    return probe.fragments() and bool(_pull_data())
