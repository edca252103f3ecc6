# SPDX-License-Identifier: Apache-2.0
"""Services for lists and ranges of ports, for any port, and for prefixes of VIPs."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import product
from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import frame
from tests.prog.lb.harness import Rig, service
from tests.prog.lb.network import NEAR
from tests.prog.lb.oracle import NO_VIP, TX

from towpath.model import Backend, Protocol
from towpath.model.kinds import ANY_PORT, Ports

if TYPE_CHECKING:
    from tests.prog.lb.oracle_parse import Address


VIP = {4: ip_address("203.0.113.77"), 6: ip_address("2001:db8:4::77")}
NET = {4: ip_network("203.0.113.64/26"), 6: ip_network("2001:db8:4::/64")}
WIDE = {4: ip_network("203.0.112.0/21"), 6: ip_network("2001:db8::/33")}
BESIDE = {4: ip_address("203.0.113.65"), 6: ip_address("2001:db8:4::1:0")}
FAR_AWAY = {4: ip_address("203.0.119.255"), 6: ip_address("2001:db8:7fff::1")}
OUTSIDE = {4: ip_address("203.0.120.0"), 6: ip_address("2001:db8:8000::1")}
LIST = Ports.of([(80, 80), (443, 443), (8000, 8999)])
EDGES = (1, 79, 80, 81, 442, 443, 444, 7999, 8000, 8191, 8192, 8999, 9000, 65535)


def probe(rig: Rig, family: int, addresses: tuple[Address, ...]) -> set[str]:
    """Have packets to every edge of some addresses judged; the verdicts there were."""
    return {
        rig.check(frame(family, protocol.number, vip=vip, dport=port)).verdict
        for vip, port, protocol in product(addresses, EDGES, Protocol)
    }


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("ports", [LIST, ANY_PORT, Ports.of([(8000, 8999)])], ids=str)
def test_ports_of_one_address(rig: Rig, family: int, protocol: Protocol, ports: Ports) -> None:
    """Its ports and no others, of its protocol and not the other."""
    rig.serve(service(VIP[family], *NEAR[family], port=ports, protocol=protocol))
    assert probe(rig, family, (VIP[family], BESIDE[family])) == {TX, NO_VIP}


@pytest.mark.parametrize("family", [4, 6])
def test_the_more_exact_service_has_the_packet(rig: Rig, family: int) -> None:
    """One port of one address before a set, a longer prefix before a shorter one."""
    first, second, third, fourth = NEAR[family][:4]
    rig.serve(
        service(VIP[family], first, port=443),
        service(VIP[family], second, port=LIST),
        service(NET[family], third, port=Ports.of([(1, 500)])),
        service(WIDE[family], fourth, port=ANY_PORT),
    )
    addresses = VIP[family], BESIDE[family], FAR_AWAY[family], OUTSIDE[family]
    assert probe(rig, family, addresses) == {TX, NO_VIP}
    chosen = {
        (vip, port): rig.check(frame(family, vip=vip, dport=port)).backend
        for vip, port in product(addresses, (443, 80, 499, 501))
    }
    assert chosen == {
        (VIP[family], 443): first,
        (VIP[family], 80): second,
        (VIP[family], 499): third,
        (VIP[family], 501): fourth,
        **dict.fromkeys(product([BESIDE[family]], (443, 80, 499)), third),
        (BESIDE[family], 501): fourth,
        **dict.fromkeys(product([FAR_AWAY[family]], (443, 80, 499, 501)), fourth),
        **dict.fromkeys(product([OUTSIDE[family]], (443, 80, 499, 501)), None),
    }


@pytest.mark.parametrize("family", [4, 6])
def test_flows_stay_when_ports_come_and_go(rig: Rig, family: int) -> None:
    """Those of ports that stay keep their backend, though the table has changed."""
    before = service(VIP[family], *NEAR[family][:2], port=LIST)
    rig.serve(before)
    frames = [frame(family, vip=VIP[family], sport=n, dport=8080) for n in range(2000, 2100)]
    chosen = [rig.expect(each, TX).backend for each in frames]
    remembered = rig.world.remembered
    for ports in (Ports.of([(8080, 8080)]), ANY_PORT, LIST):
        drained = (Backend(address, 0) for address in NEAR[family][:2])
        after = service(VIP[family], *drained, NEAR[family][2], port=ports.plain)
        old = next(iter(rig.world.services))
        rig.balancer.apply([after])
        rig.told([after])
        (new,) = rig.world.services
        rig.world.remembered = {(new, flow): to for (key, flow), to in remembered.items() if key}
        remembered = rig.world.remembered
        assert old[0] == new[0]
        outcomes = [rig.expect(each, TX) for each in frames]
        assert [each.backend for each in outcomes] == chosen
        assert not any(each.fresh for each in outcomes)
