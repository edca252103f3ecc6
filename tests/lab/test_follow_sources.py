# SPDX-License-Identifier: Apache-2.0
"""Outer sources as addresses and routes change: never a VIP, on kernels of all kinds.

Where the look-up in the FIB tells the source, tests see it in a trace. What older kernels use is
in the program's settings, which are compared with what the kernel itself would take.
"""

from __future__ import annotations

import json
import subprocess
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.harness_balancer import DEVICE, PINS, SECOND, SMALL, add_second, device, ip

from towpath import LoadBalancer
from towpath.datapath.address import unpack
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.probe_fib import fib_lookup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.address import Address

VIPS = {4: "203.0.113.10", 6: "2001:db8:4::10"}
OWN = {4: "192.0.2.1", 6: "2001:db8:1::1"}
BACKENDS = {4: "192.0.2.11", 6: "2001:db8:1::11"}
FAR = {4: "198.18.0.11", 6: "2001:db8:18::11"}
CLIENTS = {4: "198.51.100.7", 6: "2001:db8:3::7"}
FAMILIES = {4: 2, 6: 10}
ETHER = "lladdr 02:00:00:00:00:11"


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with device():
        add_second()
        ip(f"address add {OWN[6]}/64 dev {DEVICE} nodad")
        ip(f"neighbour replace {BACKENDS[6]} {ETHER} dev {DEVICE}")
        yield
    remove_pins(PINS)


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest) -> int:
    """The family that is looked at."""
    return int(request.param)


def serve(lb: LoadBalancer, version: int, *backends: str) -> None:
    """One service."""
    lb.add_service("web", vip=VIPS[version], port=80, backends=backends, table_size=251)


def chosen(lb: LoadBalancer, version: int) -> tuple[bool, Address]:
    """Whether the route's source is taken, and the one that else is: of the program's settings."""
    record: Any = lb._balancer._maps.maps["settings"].lookup(0)
    source = unpack(record[f"source{version}"].tobytes(), FAMILIES[version])
    return bool(record[f"fib_source{version}"]), source


def sent_from(lb: LoadBalancer, version: int) -> Address | None:
    """The outer source that a packet has."""
    host, vip = ({4: text, 6: f"[{text}]"}[version] for text in (CLIENTS[version], VIPS[version]))
    return lb.trace(f"{host}:40000 -> {vip}:80 tcp").outer_source


def kernels_own(towards: str) -> str:
    """The source that the kernel takes for packets of this node's own."""
    shown = subprocess.run(
        ["ip", "-json", "route", "get", towards], check=True, capture_output=True
    ).stdout
    return str(json.loads(shown)[0]["prefsrc"])


def add_far(version: int) -> None:
    """Give the second device an address, and a backend behind it."""
    own, bits = {4: ("198.18.0.1", 24), 6: ("2001:db8:18::1", 64)}[version]
    nodad = "nodad" if version == 6 else ""
    ip(f"address add {own}/{bits} dev {SECOND} {nodad}")
    # Its next hop may be known already as one that is wanted.
    ip(f"neighbour replace {FAR[version]} {ETHER} dev {SECOND}")


def test_a_vip_that_is_put_on_the_device_is_no_source(version: int) -> None:
    """Although the kernel lists IPv6 addresses newest first, and would take it itself."""
    bits = {4: 32, 6: 128}[version]
    with LoadBalancer(DEVICE, limits=SMALL) as lb:
        serve(lb, version, BACKENDS[version])
        assert sent_from(lb, version) == ip_address(OWN[version])
        for _ in range(2):
            nodad = "nodad" if version == 6 else ""
            ip(f"address add {VIPS[version]}/{bits} dev {DEVICE} {nodad}")
            lb.follow()
            assert chosen(lb, version)[1] == ip_address(OWN[version])
            assert sent_from(lb, version) == ip_address(OWN[version])
            ip(f"address del {VIPS[version]}/{bits} dev {DEVICE}")
            lb.follow()
            assert chosen(lb, version) == (True, ip_address(OWN[version]))


def test_a_route_that_prefers_a_vip_is_not_asked(version: int) -> None:
    """Another address is taken, before the first packet."""
    bits = {4: 32, 6: 128}[version]
    nodad = "nodad" if version == 6 else ""
    ip(f"address add {VIPS[version]}/{bits} dev {DEVICE} {nodad}")
    ip(f"route add {FAR[version]} via {BACKENDS[version]} src {VIPS[version]}")
    assert kernels_own(FAR[version]) == VIPS[version]
    with LoadBalancer(DEVICE, limits=SMALL) as lb:
        serve(lb, version, FAR[version])
        assert chosen(lb, version) == (False, ip_address(OWN[version]))
        assert sent_from(lb, version) == ip_address(OWN[version])
        ip(f"route change {FAR[version]} via {BACKENDS[version]} src {OWN[version]}")
        lb.follow()
        assert chosen(lb, version) == (True, ip_address(OWN[version]))


def test_an_address_that_becomes_a_vip_is_no_source_any_more(version: int) -> None:
    """From the change on that makes it one."""
    bits = {4: 32, 6: 128}[version]
    nodad = "nodad" if version == 6 else ""
    ip(f"address add {VIPS[version]}/{bits} dev {DEVICE} {nodad}")
    ip(f"route add {FAR[version]} via {BACKENDS[version]} src {VIPS[version]}")
    vip = {4: "203.0.113.11", 6: "2001:db8:4::11"}[version]
    with LoadBalancer(DEVICE, limits=SMALL) as lb:
        lb.add_service("first", vip=vip, port=80, backends=[FAR[version]], table_size=251)
        assert chosen(lb, version) == (True, ip_address(VIPS[version]))
        serve(lb, version, FAR[version])
        assert chosen(lb, version) == (False, ip_address(OWN[version]))


def test_what_the_kernel_would_take_is_taken(version: int) -> None:
    """Towards the backends that there are, whichever device they are behind, as routes change."""
    add_far(version)
    with LoadBalancer(DEVICE, SECOND, limits=SMALL) as lb:
        serve(lb, version, FAR[version])
        assert str(chosen(lb, version)[1]) == kernels_own(FAR[version]) != OWN[version]
        lb.set_backends("web", [BACKENDS[version]], force=True)
        lb.follow()
        assert str(chosen(lb, version)[1]) == kernels_own(BACKENDS[version]) == OWN[version]
        nodad = "nodad" if version == 6 else ""
        more = {4: "192.0.2.77/24", 6: "2001:db8:1::77/64"}[version]
        ip(f"address add {more} dev {DEVICE} {nodad}")
        prefix = {4: "192.0.2.0/24", 6: "2001:db8:1::/64"}[version]
        metric = {4: "", 6: "metric 1"}[version]
        verb = {4: "change", 6: "add"}[version]
        ip(f"route {verb} {prefix} dev {DEVICE} src {more.partition('/')[0]} {metric}")
        lb.follow()
        assert str(chosen(lb, version)[1]) == kernels_own(BACKENDS[version])
        assert more.startswith(f"{chosen(lb, version)[1]}/")
        if fib_lookup().source:
            assert sent_from(lb, version) == chosen(lb, version)[1]


def test_a_deprecated_address_is_no_source() -> None:
    """Once it is: the kernel tells when that is."""
    with LoadBalancer(DEVICE, limits=SMALL) as lb:
        serve(lb, 6, BACKENDS[6])
        ip(f"address add 2001:db8:1::77/64 dev {DEVICE} nodad")
        ip(f"address change {OWN[6]}/64 dev {DEVICE} preferred_lft 0")
        lb.follow()
        assert chosen(lb, 6) == (True, ip_address("2001:db8:1::77"))
        ip(f"address change {OWN[6]}/64 dev {DEVICE} preferred_lft forever")
        ip(f"address change 2001:db8:1::77/64 dev {DEVICE} preferred_lft 0")
        lb.follow()
        assert chosen(lb, 6) == (True, ip_address(OWN[6]))


def test_a_device_that_comes_back_has_its_new_address(version: int) -> None:
    """Where it is the only one, and no route tells another."""
    with LoadBalancer(SECOND, limits=SMALL) as lb:
        serve(lb, version, FAR[version])
        assert chosen(lb, version)[1] == ip_address({4: "0.0.0.0", 6: "::"}[version])
        add_far(version)
        lb.follow()
        assert str(chosen(lb, version)[1]) == kernels_own(FAR[version])
        ip(f"link delete {SECOND}")
        lb.follow()
        assert chosen(lb, version)[1] == ip_address({4: "0.0.0.0", 6: "::"}[version])
        add_second()
        add_far(version)
        assert lb.follow() == ()
        assert sent_from(lb, version) is not None
        assert str(sent_from(lb, version)) == kernels_own(FAR[version])


def test_the_next_process_has_packets_come_from_the_same_address(version: int) -> None:
    """From its first moment on: it knows of the backends before it attaches."""
    add_far(version)
    with LoadBalancer(DEVICE, SECOND, limits=SMALL, pins=PINS) as lb:
        serve(lb, version, FAR[version])
        before = chosen(lb, version)
    with LoadBalancer(DEVICE, SECOND, limits=SMALL, pins=PINS) as heir:
        assert chosen(heir, version) == before
        heir.detach()
