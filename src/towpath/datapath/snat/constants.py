# SPDX-License-Identifier: Apache-2.0
"""Source NAT's addresses, ports and times, as the program's constants have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import pack
from towpath.kernel.jiffies import per_second, units

if TYPE_CHECKING:
    from towpath.model.snat import Snat

# Seconds. RFC 5382 asks for 4 minutes of a connection that isn't established or is at its end;
# here, unlike in a home gateway, such an entry costs a port of a few that many clients share.
TCP_NEW = 60
TCP_CLOSING = 30
UDP_NEW = 30
_KNOWN_BITS = 64


def constants(snat: Snat, dtype: Any, *, per_family: int, shift: int) -> dict[str, Any]:
    """Return what ``bpf/snat/maps.h`` wants to know of the configuration.

    ``dtype``: of an array of addresses, IPv6's from element ``per_family`` on. ``shift``: a unit
    of time is that power of two of jiffies. Without an address there are no ports either, and the
    program has no source NAT in it at all.
    """
    addresses = np.zeros(2 * per_family, dtype)
    known = 0
    for first, version in ((0, 4), (per_family, 6)):
        for number, address in enumerate(snat.addresses(version)):
            addresses[first + number]["word"] = np.frombuffer(pack(address), ">u4")
            known |= 1 << int(address) % _KNOWN_BITS
    first_port, last_port = snat.ports
    hz = per_second()
    seconds = {
        "nat_tcp_open": snat.tcp_timeout,
        "nat_tcp_new": TCP_NEW,
        "nat_tcp_closing": TCP_CLOSING,
        "nat_udp_open": snat.udp_timeout,
        "nat_udp_new": min(UDP_NEW, snat.udp_timeout),
    }
    return {
        "nat_addresses": addresses,
        "nat_known": known,
        "nat_sources4": len(snat.ipv4),
        "nat_sources6": len(snat.ipv6),
        "nat_port_first": first_port,
        "nat_ports": last_port - first_port + 1 if known else 0,
        "nat_learn": max(snat.rate // hz, 1),
    } | {name: units(each, hz, shift) for name, each in seconds.items()}
