# SPDX-License-Identifier: Apache-2.0
"""Links with an MTU of 9000: native mode, and frames that XDP has in fragments."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab import harness_lan as lan
from tests.lab.harness_balancer import SMALL
from tests.lab.harness_jumbo import JUMBO, assert_large, ip, needs_fragments, widen
from tests.lab.harness_transfer import (
    PORT,
    SIZE,
    datagrams,
    download,
    pattern_digest,
    ping,
    transfer_servers,
    upload,
)

from towpath import Device, LoadBalancer
from towpath.kernel.bpf.links import xdp_mode
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import in_netns
from towpath.lab import Lab
from towpath.lab.topology import BALANCER, DEVICE, VIP4, VIP6

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.lab.traffic import Address

pytestmark = needs_fragments

VIPS: dict[int, Address] = {4: VIP4, 6: VIP6}
COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three backends behind a router."""
    with Lab.up(3) as lab, transfer_servers(lab, VIP4, VIP6):
        widen(lab)
        yield lab


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_transfers_in_tunnels(lab: Lab, inside: int, outside: int, mode: Any) -> None:
    """Streams both ways, datagrams and pings, every byte of them."""
    vip = VIPS[inside]
    links = lab.topology.backend_links
    backends = [(each.node4 if outside == 4 else each.node6)[0].ip for each in links]
    with in_netns(BALANCER), LoadBalancer(Device(DEVICE, mode), limits=SMALL) as balancer:
        assert xdp_mode(device_index(DEVICE)) == mode
        for protocol in ("tcp", "udp"):
            fields: dict[str, Any] = {"vip": vip, "port": PORT, "protocol": protocol}
            balancer.add_service(protocol, backends=backends, table_size=251, **fields)
        assert upload(vip)[2] == pattern_digest(SIZE)
        assert download(vip)[2] == pattern_digest(SIZE)
        assert_large(balancer.service_counters("tcp"))
        sizes = range(8000, 8800, 40)
        answers = datagrams(vip, [bytes(at % 251 for at in range(size)) for size in sizes])
        assert len({name for name, _ in answers}) == 1
        assert_large(balancer.service_counters("udp"))
        assert ping(vip, 80) == [bytes(at % 251 for at in range(100 * n)) for n in range(80)]
        counted = balancer.counters().verdicts
        assert not any(n for verdict, n in counted.items() if verdict.startswith("drop"))


@pytest.fixture(scope="module")
def link() -> Iterator[None]:
    """Load balancers, backends and a client on one link."""
    with lan.lan():
        for host in lan.HOSTS:
            ip(lan.SWITCH, "link", "set", host.removeprefix("tpn-"), "mtu", str(JUMBO))
            ip(host, "link", "set", lan.DEVICE, "mtu", str(JUMBO))
        ip(lan.SWITCH, "link", "set", "br0", "mtu", str(JUMBO))
        yield


@pytest.mark.usefixtures("link")
@pytest.mark.parametrize(("version", "known_by"), COMBINATIONS)
def test_transfers_on_a_link(version: int, known_by: int) -> None:
    """Up to the MTU itself, since nothing is put in front."""
    first = lan.BALANCERS[0]
    with ExitStack() as undo:
        undo.enter_context(in_netns(first))
        balancer = undo.enter_context(LoadBalancer(Device(lan.DEVICE, "native"), limits=SMALL))
        backends = [lan.own(name, known_by) for name in lan.BACKENDS]
        fields: dict[str, Any] = {"vip": lan.VIPS[version], "port": lan.PORT}
        balancer.add_service("web", backends=backends, forwarding="l2", table_size=251, **fields)
        for source in lan.client_addresses(version)[:4]:
            assert lan.ask(lan.VIPS[version], source, 2 << 20) in lan.BACKENDS
        assert_large(balancer.service_counters("web"))
