# SPDX-License-Identifier: Apache-2.0
"""The way of health checks, when others take it away, and as addresses and devices change."""

from __future__ import annotations

from contextlib import closing
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from tests.lab import harness_balancer as plain
from tests.lab.harness_balancer import SMALL
from tests.lab.test_follow_devices import detach
from tests.lab.test_health_path import ask, backend, shell

from towpath.datapath.balancer import Balancer
from towpath.datapath.errors import DatapathError
from towpath.datapath.health.asked import Asked
from towpath.kernel.bpf import probe
from towpath.kernel.net import sysctl
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import in_netns
from towpath.lab import Lab
from towpath.lab.topology import BALANCER, DEVICE, VIP4, VIP6
from towpath.model import Device

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKEND = ip_address("192.0.2.11")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The lab with a backend."""
    with Lab.up(1) as lab:
        yield lab


@pytest.fixture(params=["best", "filter"])
def _attached(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "filter":
        monkeypatch.setattr(probe, "tcx", lambda: False)


@pytest.fixture
def balancer(lab: Lab, _attached: None) -> Iterator[Balancer]:
    """A load balancer that is ready for checks, of no services."""
    assert lab
    with in_netns(BALANCER), Balancer([Device(DEVICE)], limits=SMALL) as balancer:
        balancer.health.open([VIP4, VIP6])
        yield balancer


def assert_checks_pass(lab: Lab, balancer: Balancer) -> None:
    """Of both families."""
    for vip in (VIP4, VIP6):
        assert ask(balancer.health, vip, backend(lab, 0, vip.version)) == "be1"


@pytest.mark.parametrize(
    "removes",
    [
        "ip rule del priority 747",
        "ip -6 rule del priority 747",
        "ip rule flush && ip rule add priority 32766 table main",
        "ip route flush table 29808",
        "ip -6 route flush table 29808",
    ],
)
def test_routing_by_mark_is_put_back(lab: Lab, balancer: Balancer, removes: str) -> None:
    """A network manager removes rules that it doesn't know."""
    assert_checks_pass(lab, balancer)
    shell(BALANCER, removes)
    balancer.follow()
    assert balancer.followed.checks == 1
    assert_checks_pass(lab, balancer)
    balancer.follow()
    assert balancer.followed.checks == 1
    assert balancer.troubles == ()


def test_a_program_that_was_detached_is_put_back(lab: Lab, balancer: Balancer) -> None:
    """From the loopback device's egress."""
    attached = balancer.health._attached
    assert attached is not None
    detach(attached)
    balancer.follow()
    assert balancer.followed.checks == 1
    assert_checks_pass(lab, balancer)


def test_a_vip_that_this_node_gets_is_still_checked(lab: Lab, balancer: Balancer) -> None:
    """Answers come from an address of its own then; and no longer when it loses it."""
    before = sysctl.ACCEPT_LOCAL.read(DEVICE), sysctl.RP_FILTER.read(DEVICE)
    assert before[0] == "0"
    shell(BALANCER, f"ip address add {VIP4}/32 dev lo")
    try:
        balancer.follow()
        assert sysctl.ACCEPT_LOCAL.read(DEVICE) == "1"
        assert_checks_pass(lab, balancer)
    finally:
        shell(BALANCER, f"ip address del {VIP4}/32 dev lo")
    balancer.follow()
    assert (sysctl.ACCEPT_LOCAL.read(DEVICE), sysctl.RP_FILTER.read(DEVICE)) == before
    assert_checks_pass(lab, balancer)


def test_checks_are_asked_from_the_address_that_there_is() -> None:
    """Where no route to the backend tells one: that of the device, as it is now."""
    with plain.device(), Balancer([Device(plain.DEVICE)], limits=SMALL) as balancer:
        health = balancer.health
        health.open([plain.VIP])
        health._own = {}  # nothing that open() found
        plain.ip(f"address add 198.18.0.1/24 dev {plain.DEVICE}")
        plain.ip(f"address del 192.0.2.1/24 dev {plain.DEVICE}")
        balancer.follow()
        assert str(health._own[4]) == "198.18.0.1"
        plain.ip(f"address add {plain.VIP}/32 dev {plain.DEVICE}")
        plain.ip(f"address del 198.18.0.1/24 dev {plain.DEVICE}")
        balancer.follow()
        assert health._own[4] is None


def test_checks_go_out_as_from_the_first_device_that_is_there() -> None:
    """By its index as it is now. Without any this node can't make them, which blames nobody."""
    with plain.device():
        plain.add_second()
        devices = [Device(plain.DEVICE), Device(plain.SECOND)]
        with Balancer(devices, limits=SMALL) as balancer:
            balancer.health.open([plain.VIP])

            def goes_by() -> int:
                with closing(balancer.health.connection(Asked(plain.VIP, BACKEND))) as connection:
                    port = connection.getsockname()[1]
                    probes = balancer._maps.maps["health_probes"].items()
                    (found,) = (int(v["ifindex"]) for k, v in probes if k["port"] == port)
                return found

            assert goes_by() == device_index(plain.DEVICE)
            plain.ip(f"link delete {plain.DEVICE}\naddress add 192.0.2.1/24 dev {plain.SECOND}")
            balancer.follow()
            assert goes_by() == device_index(plain.SECOND)
            plain.ip(f"address del 192.0.2.1/24 dev {plain.SECOND}")
            plain.ip(plain.NETWORK)
            balancer.follow()
            assert goes_by() == device_index(plain.DEVICE)
            plain.ip(f"link delete {plain.DEVICE}\nlink delete {plain.SECOND}")
            plain.ip("link add tp-else type veth peer name tp-else1\nlink set tp-else up")
            plain.ip("link set tp-else1 up\naddress add 192.0.2.1/24 dev tp-else")
            balancer.follow()
            with pytest.raises(DatapathError, match="none of the load balancer's devices is there"):
                goes_by()
