# SPDX-License-Identifier: Apache-2.0
"""A network namespace in which every backend is behind one gateway that is always resolved."""

from __future__ import annotations

from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Any

from towpath.bench.errors import BenchError
from towpath.bench.frames import GATEWAY, GATEWAY_MAC, IPV6
from towpath.kernel.bpf.programs import Program
from towpath.kernel.net import interfaces
from towpath.kernel.net.netns import new_netns
from towpath.model.settings import Source
from towpath.model.snat import Snat

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE = "tpbench0"
_PEER = "tpbench1"
_NODAD = 0x02  # IFA_F_NODAD: nobody is there to have the address already
_PERMANENT = 0x80  # NUD_PERMANENT
SNAT = Snat(ipv4=(IPv4Address("192.0.2.1"),), rate=1 << 30)
"""Every new flow is translated, however many there are in a moment."""
_ROUTES = (
    # address of the device, prefix length, gateway, where the backends are
    ("192.0.2.1", 24, str(GATEWAY), "198.51.100.0/24"),
    ("2001:db8:1::1", 64, "2001:db8:1::fe", "2001:db8:2::/64"),
)
_CLIENTS = "10.0.0.0/8"
SOURCE = Source(*(ip_address(address) for address, *_ in _ROUTES))  # type: ignore[arg-type]


@contextmanager
def bench_network() -> Iterator[int]:
    """Run the block in a namespace of its own; gives the index of the device in it.

    The namespace is gone after the block, with all that is in it.
    """
    with new_netns(), interfaces.connected() as wire:
        wire.link("add", ifname=DEVICE, kind="veth", peer={"ifname": _PEER})
        index = interfaces.device_index(DEVICE)
        for each in (index, interfaces.device_index(_PEER)):
            wire.link("set", index=each, state="up")
        for route in _ROUTES:
            _add_route(wire, index, *route)
        wire.route("add", dst=_CLIENTS, gateway=_ROUTES[0][2], oif=index)
        yield index


def _add_route(
    wire: Any, index: int, address: str, length: int, gateway: str, backends: str
) -> None:
    flags = _NODAD if ip_address(address).version == IPV6 else 0
    wire.addr("add", index=index, address=address, prefixlen=length, flags=flags)
    wire.neigh("add", ifindex=index, dst=gateway, lladdr=GATEWAY_MAC.hex(":"), state=_PERMANENT)
    wire.route("add", dst=backends, gateway=gateway, oif=index)


def attached_program(index: int) -> Program:
    """The XDP program on a device. BenchError: there is none."""
    with interfaces.connected() as wire:
        found = wire.link("get", index=index)[0].get_nested("IFLA_XDP", "IFLA_XDP_PROG_ID")
    if not found:
        raise BenchError(f"no XDP program is attached to {interfaces.device_name(index)}")
    return Program.from_id(found)
