# SPDX-License-Identifier: Apache-2.0
"""/proc/net/ip_vs: numbers in hexadecimal, times in jiffies."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from towpath.core.imports.imported import Place
from towpath.core.imports.lvs import Method, RealServer, VirtualServer

if TYPE_CHECKING:
    from towpath.core.imports.imported import Collected
    from towpath.model.kinds import Address

HEADER = "IP Virtual Server version"
_COLUMNS = ("Prot LocalAddress:Port", "  -> RemoteAddress:Port")
_END = r"(?:([0-9A-F]{8})|\[([0-9a-f]{4}(?::[0-9a-f]{4}){7})\]):([0-9A-F]{4})"
_SERVICE = re.compile(
    rf"(?:(TCP|UDP|SCTP)\s+{_END}|FWM\s+([0-9A-F]{{8}}))\s+(\S+)(\s+ops)?"
    r"(?:\s+persistent\s+(\d{1,10})\s+([0-9A-F]{8}))?\s*",
    re.ASCII,
)
_SERVER = re.compile(
    rf"\s*->\s+{_END}\s+(Masq|Local|Tunnel|Route|Bypass)\s+(-?\d{{1,10}})\s+\d+\s+\d+\s*", re.ASCII
)
_METHODS = {"Masq": Method.NAT, "Local": Method.LOCAL, "Tunnel": Method.TUNNEL}
_ALL_ONES = 0xFFFFFFFF
_ALLOWED = (
    "allowed: lines of /proc/net/ip_vs, such as `TCP  CB00710A:0050 wlc` and "
    "`  -> C000020B:0050      Route   1      0          0`"
)


def read_table(text: str, file: str, hz: int, into: Collected) -> list[VirtualServer]:
    """Return the virtual servers of a table; what is wrong is refused."""
    found: list[VirtualServer] = []
    for number, line in enumerate(text.splitlines(), 1):
        place = Place(file, number)
        if not line.strip() or line.startswith((HEADER, *_COLUMNS)):
            continue
        if match := _SERVICE.fullmatch(line):
            found.append(_service(match, place, hz))
        elif (match := _SERVER.fullmatch(line)) and found:
            real = _server(match, place)
            found[-1] = replace(found[-1], reals=(*found[-1].reals, real))
        elif match:
            into.refuse(place, f"a server without a service before it; {_ALLOWED}")
        else:
            into.refuse(place, f"{_wrong(line)}; {_ALLOWED}")
    return found


def _wrong(line: str) -> str:
    if re.match(r"(TCP|UDP|SCTP|FWM|\s*->)\s", line):
        return "not as /proc shows it; is it of `ipvsadm -Ln`? `ipvsadm -Sn` prints what is taken"
    return "not a line of the table"


def _service(match: re.Match[str], place: Place, hz: int) -> VirtualServer:
    protocol, v4, v6, port, mark, scheduler, ops, jiffies, mask = match.groups()
    vip = _address(v4, v6) if protocol else None
    return VirtualServer(
        place=place,
        protocol=(protocol or "").lower(),
        vip=vip,
        port=int(port or "0", 16),
        mark=int(mark or "0", 16),
        scheduler=scheduler,
        flags=None,
        persistence=None if jiffies is None else round(int(jiffies) / hz),
        granularity=_granularity(vip, int(mask or "0", 16)) if jiffies else "",
        one_packet=ops is not None,
    )


def _granularity(vip: Address | None, mask: int) -> str:
    if isinstance(vip, IPv6Address):
        # The length of a prefix, and shown with its bytes turned round.
        length = int.from_bytes(mask.to_bytes(4, "little"), "big")
        return "" if length == vip.max_prefixlen else f"/{length}"
    return "" if mask == _ALL_ONES else str(IPv4Address(mask))


def _server(match: re.Match[str], place: Place) -> RealServer:
    v4, v6, port, method, weight = match.groups()
    return RealServer(
        address=_address(v4, v6),
        port=int(port, 16),
        method=_METHODS.get(method, Method.ROUTE),
        weight=max(int(weight), 0),
        place=place,
    )


def _address(v4: str | None, v6: str | None) -> Address:
    return IPv4Address(int(v4, 16)) if v4 else IPv6Address(v6 or "")
