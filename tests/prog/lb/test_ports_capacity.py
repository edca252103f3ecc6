# SPDX-License-Identifier: Apache-2.0
"""What hundreds of ports take, and what happens where there is no room for them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from tests.prog.lb.frames import frame
from tests.prog.lb.harness import SMALL, rigged, service
from tests.prog.lb.network import NEAR, Network
from tests.prog.lb.oracle import NO_VIP, TX

from towpath.datapath.errors import CapacityError
from towpath.model import FlowTuple, Limits
from towpath.model.kinds import Ports

VIP = {4: ip_address("203.0.113.77")}


def test_hundreds_of_ports_share_one_table(net: Network) -> None:
    """400 ports in front of 1,000 backends: one table, for there is room for no other."""
    room = Limits(services=8, backends=1000, flows=1024, table_slots=200_000)
    backends = [ip_address("10.50.0.0") + n for n in range(1000)]
    with rigged(net, limits=room) as rig:
        ports = Ports.of([(1000 + 7 * n, 1000 + 7 * n) for n in range(400)])
        wish = service(VIP[4], *backends, port=ports, table_size=100_003)
        rig.balancer.apply([wish])
        for port in (1000, 1007):
            flow = FlowTuple.parse(f"198.51.100.7:5 -> {VIP[4]}:{port} tcp")
            assert rig.balancer.trace(flow).table_size == 100_003


def test_ports_for_which_there_is_no_page_are_refused(net: Network) -> None:
    """With what to raise; what was there works on, also in another process."""
    with rigged(net, limits=replace(SMALL, port_pages=3)) as rig:
        fits = service(VIP[4], NEAR[4][0], port=Ports.of([(80, 81), (1000, 1001)]))
        rig.serve(fits)
        more = service(VIP[4], NEAR[4][1], port=Ports.of([(90, 91)]))
        new = service(VIP[4], NEAR[4][1], port=443)
        with pytest.raises(CapacityError, match=r"pages of ports: .*; raise limits\.port_pages"):
            rig.balancer.apply([new, fits, more])
        assert rig.balancer.observed() == (fits,)
        verdicts = {port: rig.check(frame(vip=VIP[4], dport=port)).verdict for port in (80, 90)}
        assert verdicts == {80: TX, 90: NO_VIP}
