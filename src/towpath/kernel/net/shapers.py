# SPDX-License-Identifier: Apache-2.0
"""Who shapes on a device already: a qdisc at its root, or one of a device that is redirected to.

The CNI bandwidth plugin puts tbf at the root of a pod's device for what the pod receives, and
redirects what it sends to an ifb with another one.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.errors import KernelError
from towpath.kernel.net.messages import DUMP, ROUTE, Netlink, attributes
from towpath.kernel.net.qdiscs import ROOT, Qdisc, all_qdiscs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_GET_FILTER = 46  # RTM_GETTFILTER
_TCMSG = struct.Struct("=BxxxiIII")
_INGRESS = 0xFFFF0000  # handle of the ingress qdisc
_KIND, _OPTIONS = 1, 2  # TCA_*
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2
_MIRRED = struct.Struct("=5I2I")  # struct tc_mirred: generic part, what is done, ifindex
_TBF_PARMS, _TBF_RATE64 = 1, 4
_SHAPERS = frozenset({"tbf", "htb", "hfsc", "cake"})


class Shaped(NamedTuple):
    """What shapes a device's packets, in words; "": nothing."""

    egress: str = ""
    """That leave by it: what a pod receives, if it is a pod's on the node."""
    ingress: str = ""
    """That come in by it."""


def shaped(indexes: Iterable[int]) -> dict[int, Shaped]:
    """Those of these devices that somebody shapes. KernelError."""
    wanted = set(indexes)
    roots: dict[int, Qdisc] = {}
    redirects: set[int] = set()
    for each in all_qdiscs():
        if each.parent == ROOT:
            roots[each.ifindex] = each
        elif each.kind == "ingress" and each.ifindex in wanted:
            redirects.add(each.ifindex)
    found = {}
    for index in wanted:
        to = _redirected(index) if index in redirects else ()
        behind = (text for each in to if (text := _shaper(roots.get(each))))
        made = Shaped(_shaper(roots.get(index)), next(behind, ""))
        if any(made):
            found[index] = made
    return found


def _shaper(root: Qdisc | None) -> str:
    if root is None or root.ours or root.kind not in _SHAPERS:
        return ""
    rate = _tbf_rate(root.options) if root.kind == "tbf" else 0
    return f"{root.kind} of {rate} bit/s" if rate else root.kind


def _tbf_rate(options: bytes) -> int:
    found = attributes(options)
    if wide := found.get(_TBF_RATE64):
        return int.from_bytes(wide[:8], "little") * 8
    parameters = found.get(_TBF_PARMS, b"")
    return int.from_bytes(parameters[8:12], "little") * 8


def _redirected(ifindex: int) -> Iterator[int]:
    """Devices that a device's ingress filters send packets to. KernelError."""
    try:
        with Netlink(ROUTE) as netlink:
            asked = _TCMSG.pack(0, ifindex, 0, _INGRESS, 0)
            answers = netlink.ask(_GET_FILTER, asked, DUMP)
    except OSError as error:
        raise KernelError(f"list the filters of device {ifindex}", error.errno or 0) from error
    for body in answers:
        options = attributes(attributes(body[_TCMSG.size :]).get(_OPTIONS, b""))
        for value in options.values():
            for action in attributes(value).values():
                yield from _mirred(attributes(action))


def _mirred(action: dict[int, bytes]) -> Iterator[int]:
    if action.get(_ACT_KIND) != b"mirred\0":
        return
    parameters = attributes(action.get(_ACT_OPTIONS, b"")).get(_MIRRED_PARMS, b"")
    if len(parameters) >= _MIRRED.size:
        yield _MIRRED.unpack_from(parameters)[6]
