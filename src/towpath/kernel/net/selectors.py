# SPDX-License-Identifier: Apache-2.0
"""What the rules of policy routing look at, of the calling thread's network namespace."""

from __future__ import annotations

import errno as errnos
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from towpath.kernel.errors import KernelError
from towpath.kernel.net.messages import DUMP, each_attribute

if TYPE_CHECKING:
    from towpath.kernel.net.messages import Netlink

# <linux/fib_rules.h>
_GET_RULE = 34
_RULE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, -, -, action, flags
_SRC, _IP_PROTO, _SPORT_RANGE, _DPORT_RANGE, _DSCP, _FLOWLABEL = 2, 22, 23, 24, 25, 26
_FIELDS = frozenset({_IP_PROTO, _SPORT_RANGE, _DPORT_RANGE, _DSCP, _FLOWLABEL})
# A kernel that was started without IPv6.
_NO_FAMILY = (errnos.EAFNOSUPPORT, errnos.EOPNOTSUPP)


class Selectors(NamedTuple):
    """What any of a family's rules looks at."""

    fields: bool
    """Protocol, ports, DSCP (or type of service) or flow label."""
    sources: bool
    """Source addresses."""


def dump(netlink: Netlink) -> dict[int, Selectors]:
    """Those of IPv4 and IPv6, by version. KernelError: the kernel refuses to tell."""
    return {4: _family(netlink, socket.AF_INET), 6: _family(netlink, socket.AF_INET6)}


def _family(netlink: Netlink, family: int) -> Selectors:
    try:
        found = netlink.ask(_GET_RULE, _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), DUMP)
    except OSError as error:
        if error.errno in _NO_FAMILY:
            return Selectors(fields=False, sources=False)
        raise KernelError("list rules", error.errno or 0) from error
    # Before 4.20 all families' rules came, whatever was asked for.
    kinds = [_read(each) for each in found if each[0] == family]
    return Selectors(
        fields=any(each.fields for each in kinds), sources=any(each.sources for each in kinds)
    )


def _read(body: bytes) -> Selectors:
    _, _, source_bits, tos, *_ = _RULE.unpack_from(body)
    kinds = {kind for kind, _ in each_attribute(body[_RULE.size :])}
    return Selectors(
        fields=bool(tos or kinds & _FIELDS), sources=bool(source_bits or _SRC in kinds)
    )
