# SPDX-License-Identifier: Apache-2.0
"""Translated IPv4 packets by IPv6 next hops (RFC 8950), to the backend and back to the client."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.prog.lb.frames import CLIENTS
from tests.prog.lb.network import FAR, FAR_UNRESOLVED, IN, NEAR, OUT, Network, ip, neighbour_mac
from tests.prog.lb.oracle import HANDOFF, REDIRECT, TX
from tests.prog.lb.test_ways_by_flow import TARGET
from tests.prog.snat.harness import answer, client_frame, client_ways, snat_service

if TYPE_CHECKING:
    from tests.prog.snat.harness import NatRig

BEHIND, CLIENT = TARGET[4], CLIENTS[4]
FAR_GATEWAY, NEAR_GATEWAY, LOST = FAR[6][0], NEAR[6][0], FAR_UNRESOLVED[6]


def test_there_and_back(net: Network, nat: NatRig) -> None:
    """To the gateways' MAC addresses; one that isn't resolved is the kernel's to find."""
    ip(
        f"route add {BEHIND}/32 via inet6 {FAR_GATEWAY} dev {OUT}",
        f"route replace {CLIENT}/32 via inet6 {NEAR_GATEWAY} dev {IN}",
    )
    there, back = net.ways[FAR[4][0]], net.ways[NEAR[4][0]]
    mac = neighbour_mac(OUT, FAR_GATEWAY.packed[-1])
    nat.world.ways[BEHIND] = replace(there, next_hop_mac=mac)
    mac = neighbour_mac(IN, NEAR_GATEWAY.packed[-1])
    nat.world.ways[CLIENT] = replace(back, next_hop_mac=mac)
    nat.forget_ways()
    nat.serve(snat_service(4, BEHIND))
    sent = nat.expect(client_frame(), REDIRECT)
    assert sent.frame[12:14] == b"\x08\x00"
    nat.expect(answer(sent), TX)
    nat.expect(client_frame(flags="A"), REDIRECT)
    ip(f"route replace {CLIENT}/32 via inet6 {LOST} dev {OUT}")
    nat.world.ways[CLIENT] = net.ways[FAR_UNRESOLVED[4]]
    nat.forget_ways()
    nat.expect(answer(sent), HANDOFF)
    ip(f"route del {BEHIND}/32")
    nat.world.ways |= client_ways(net)
    nat.forget_ways()
