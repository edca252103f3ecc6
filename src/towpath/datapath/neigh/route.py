# SPDX-License-Identifier: Apache-2.0
"""What the datapath would do with a packet for an address: the kernel's answer to its look-up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.datapath.address import FAMILY_V4, FAMILY_V6, family, pack, unpack
from towpath.documents import Route
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net import interfaces, link_state

if TYPE_CHECKING:
    from towpath.datapath.address import Address

_SUCCESS, _NO_NEIGH = 0, 7  # BPF_FIB_LKUP_RET_*
_STACK = -1  # as the datapath takes SUCCESS for a device without frames
RESULTS = {
    _SUCCESS: ("sent", "the next hop is resolved"),
    1: ("drop_blackhole", "the route is blackhole"),
    2: ("drop_unreachable", "the route is unreachable"),
    3: ("drop_prohibited", "the route is prohibit"),
    4: ("drop_no_route", "no route, or it is an address of this node"),
    5: ("drop_no_forwarding", "forwarding is off on the device that it comes in on"),
    6: ("drop_lwt", "the route encapsulates, which only the kernel's stack can do"),
    _NO_NEIGH: ("handoff", "the next hop isn't resolved: the kernel does that, and sends it"),
    8: ("drop_mtu", "it is larger than the path's MTU"),
    _STACK: ("handoff", "the device isn't Ethernet: the kernel's stack sends it"),
    9: ("drop_no_address", "the device that it goes out of has no address to send from"),
}
"""By ``BPF_FIB_LKUP_RET_*``: the verdict on the packet, and why."""
# IPPROTO_IPIP, IPPROTO_IPV6: as `route_find` of bpf/lb/route.h asks.
_TUNNELS = {FAMILY_V4: 4, FAMILY_V6: 41}


def ask(to: Address, device: str, source: Address | None = None) -> Route:
    """Ask for a packet in a tunnel that comes in on a device, in the calling thread's namespace.

    ``source``: what it is sent from; None: the address that the kernel prefers. KernelError: there
    is no such device, or no program can be loaded.
    """
    with BpfObject.packaged("neigh_route") as asker:
        asker.load()
        question = np.zeros((), asker.btf.dtype("route_question"))
        question["family"] = family(to)
        question["protocol"] = _TUNNELS[family(to)]
        question["to"]["word"] = np.frombuffer(pack(to), ">u4")
        question["from"]["word"] = np.frombuffer(pack(source) if source else bytes(16), ">u4")
        question["name_source"] = source is None
        question["ifindex"] = interfaces.device_index(device)
        run = asker.programs["ask_route"].test_run(question.tobytes())
        return _route(to, device, np.frombuffer(run.data, question.dtype)[0])


def _route(to: Address, device: str, answer: Any) -> Route:
    result = int(answer["result"])
    if result == _SUCCESS and not _is_ethernet(int(answer["ifindex"])):
        result = _STACK
    verdict, why = RESULTS.get(result, ("drop_fib", f"the kernel answers {result}"))
    found = result in (_SUCCESS, _NO_NEIGH, _STACK)
    return Route(
        destination=to,
        came_in=device,
        verdict=verdict,
        why=why,
        device=interfaces.device_name(int(answer["ifindex"])) if found else None,
        next_hop=_address(answer["next"], int(answer["next_family"])) if found else None,
        mac=bytes(answer["dmac"]).hex(":") if result == _SUCCESS else None,
        source=_address(answer["from"], family(to)),
        mtu=int(answer["mtu"]) or None if found else None,
    )


def _is_ethernet(index: int) -> bool:
    device = link_state.devices().get(index)
    return device is None or device.ethernet


def _address(record: Any, of_family: int) -> Address | None:
    found = unpack(record["word"].tobytes(), of_family)
    return None if int(found) == 0 else found
