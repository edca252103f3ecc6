# SPDX-License-Identifier: Apache-2.0
"""Qdiscs of devices: what is there, put in place, taken away; and the options of fq.

By messages of our own: pyroute2 0.9.7 has no options for fq and sends none, without a word, and
what was there before has to be put back byte for byte, whatever its kind.
"""

from __future__ import annotations

import errno as errnos
import struct
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from towpath.kernel.errors import CAP_NET_ADMIN, KernelError, permission_hint
from towpath.kernel.net.messages import DUMP, REPLACE, ROUTE, Netlink, attribute, attributes, text
from towpath.kernel.net.netns import new_netns

ROOT = 0xFFFFFFFF  # TC_H_ROOT
FQ, MQ = "fq", "mq"
MARK = 0x7470
"""Major number of the qdiscs that are put in place: whose they are."""

_NEW, _DELETE, _GET = 36, 37, 38  # RTM_*QDISC
_TCMSG = struct.Struct("=BxxxiIII")  # family, device, handle, parent, info
_KIND, _OPTIONS, _STATS2 = 1, 2, 7  # TCA_*
_QUEUE, _APP = 3, 4  # TCA_STATS_*
_QUEUED = struct.Struct("=5I")  # struct gnet_stats_queue: packets, bytes, drops, ...
_INGRESS_PARENT = 0xFFFFFFF1  # of an ingress or clsact qdisc
_LOOPBACK = 1
_GONE = frozenset((errnos.ENOENT, errnos.EINVAL, errnos.ENODEV))

# TCA_FQ_*
_PLIMIT, _FLOW_PLIMIT, _RATE_ENABLE, _HORIZON, _HORIZON_DROP = 1, 2, 5, 14, 15
_FLOWS_PLIMIT_AT, _HORIZON_DROPS_AT, _BAND_DROPS_AT, _BANDS = 32, 96, 120, 3
"""struct tc_fq_qd_stats; it has grown, and ends where the kernel's does."""


class Qdisc(NamedTuple):
    """One of a device's qdiscs."""

    ifindex: int
    handle: int
    """0: the kernel has put it there by itself."""
    parent: int
    kind: str
    options: bytes
    """As the kernel takes and gives them: attributes, or a struct, of its kind."""
    packets: int = 0
    """In it now."""
    drops: int = 0
    app: bytes = b""
    """Statistics of its kind."""

    @property
    def ours(self) -> bool:
        """It was put there by `replace` with a handle of MARK."""
        return self.handle >> 16 == MARK


class FqOptions(NamedTuple):
    """What fq is put in place with. Packets."""

    limit: int
    """In it at one time."""
    flow_limit: int
    """Of one flow."""

    def packed(self) -> bytes:
        """As attributes."""
        return attribute(_PLIMIT, self.limit) + attribute(_FLOW_PLIMIT, self.flow_limit)

    @classmethod
    def of(cls, qdisc: Qdisc) -> FqOptions:
        """Read those of a qdisc of that kind."""
        found = attributes(qdisc.options)
        return cls(*(int.from_bytes(found[each], "little") for each in (_PLIMIT, _FLOW_PLIMIT)))


@dataclass(frozen=True, slots=True)
class FqDrops:
    """What fq has dropped by itself, by cause: none of it should ever move."""

    flow_limit: int
    horizon: int
    bands: int
    """The limit of packets in all, where there are bands (6.7)."""

    @classmethod
    def of(cls, qdisc: Qdisc) -> FqDrops:
        """Read them from a qdisc's statistics. What the kernel doesn't tell is 0."""
        bands = (_number(qdisc.app, _BAND_DROPS_AT + 8 * each) for each in range(_BANDS))
        return cls(
            _number(qdisc.app, _FLOWS_PLIMIT_AT), _number(qdisc.app, _HORIZON_DROPS_AT), sum(bands)
        )


def all_qdiscs() -> list[Qdisc]:
    """Those of all devices, also what filters hang on. KernelError."""
    return _list("list qdiscs", 0)


def qdiscs(ifindex: int) -> list[Qdisc]:
    """A device's qdiscs, without those that filters hang on. KernelError."""
    found = _list(f"list the qdiscs of device {ifindex}", ifindex)
    return [each for each in found if each.ifindex == ifindex and each.parent != _INGRESS_PARENT]


def _list(what: str, ifindex: int) -> list[Qdisc]:
    try:
        with Netlink(ROUTE) as netlink:
            answers = netlink.ask(_GET, _TCMSG.pack(0, ifindex, 0, 0, 0), DUMP)
    except OSError as error:
        raise _error(what, error) from error
    return [_read(body) for body in answers]


def root(ifindex: int) -> Qdisc | None:
    """A device's root qdisc; None: it has none, or is gone. KernelError."""
    return next((each for each in qdiscs(ifindex) if each.parent == ROOT), None)


def replace(ifindex: int, parent: int, handle: int, kind: str, options: bytes = b"") -> None:
    """Put a qdisc in place of another, or change its options if it is that already.

    KernelError: ENOENT when the kernel has none of that kind.
    """
    body = _TCMSG.pack(0, ifindex, handle, parent, 0) + attribute(_KIND, text(kind))
    if options:
        body += attribute(_OPTIONS, options)
    what = f"put {kind} in place on device {ifindex}"
    try:
        with Netlink(ROUTE) as netlink:
            netlink.ask(_NEW, body, REPLACE)
    except OSError as error:
        raise _error(what, error) from error


def delete(ifindex: int, parent: int, handle: int) -> None:
    """Remove a qdisc; the kernel puts its default one there. None is fine. KernelError."""
    try:
        with Netlink(ROUTE) as netlink:
            netlink.ask(_DELETE, _TCMSG.pack(0, ifindex, handle, parent, 0))
    except OSError as error:
        if error.errno not in _GONE:
            raise _error(f"remove a qdisc of device {ifindex}", error) from error


@cache
def has_fq() -> bool:
    """Whether the kernel has fq, tried on the loopback of a namespace.

    Where none may be made (CAP_SYS_ADMIN) it is taken to have it: `replace` says ENOENT if not.
    KernelError: it can't be tried for another reason.
    """
    try:
        with new_netns():
            replace(_LOOPBACK, ROOT, MARK << 16, FQ)
    except KernelError as error:
        if error.errno == errnos.ENOENT:
            return False
        if error.errno != errnos.EPERM:
            raise
    return True


def _read(body: bytes) -> Qdisc:
    _, ifindex, handle, parent, _ = _TCMSG.unpack_from(body)
    found = attributes(body[_TCMSG.size :])
    stats = attributes(found.get(_STATS2, b""))
    queue = stats.get(_QUEUE, b"").ljust(_QUEUED.size, b"\0")
    packets, _, drops, _, _ = _QUEUED.unpack_from(queue)
    kind = found.get(_KIND, b"").rstrip(b"\0").decode()
    options, app = found.get(_OPTIONS, b""), stats.get(_APP, b"")
    return Qdisc(ifindex, handle, parent, kind, options, packets, drops, app)


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8].ljust(8, b"\0"), "little")


def _error(what: str, error: OSError) -> KernelError:
    number = error.errno or 0
    hint = permission_hint(CAP_NET_ADMIN) if number == errnos.EPERM else ""
    return KernelError(what, number, hint)
