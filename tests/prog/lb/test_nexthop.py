# SPDX-License-Identifier: Apache-2.0
"""The way to a backend: the kernel's routes and neighbours decide, and are followed at once."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.network import (
    BEHIND_GATEWAY,
    FAR,
    FAR_UNRESOLVED,
    HOST,
    IN,
    MACS,
    MTU,
    NEAR,
    NEAR_UNRESOLVED,
    NO_ROUTE,
    OUT,
    OWN,
    REFUSED,
    THIRD,
    THIRDS,
    Network,
    ip,
    neighbour_mac,
    network,
    told_mtu,
)
from tests.prog.lb.oracle import (
    HANDOFF,
    LOCAL,
    NO_BACKEND,
    OUTER_HEADER,
    REDIRECT,
    TOO_BIG,
    TOO_LARGE,
    TX,
    Way,
)

from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.kernel.net import interfaces, sysctl
from towpath.kernel.net.netns import new_netns
from towpath.model import Backend, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.oracle_parse import Address

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
FAMILY: dict[int, sysctl.Family] = {4: "ipv4", 6: "ipv6"}


@pytest.fixture(scope="module", params=["without a rule", "with a rule"])
def net(request: pytest.FixtureRequest) -> Iterator[Network]:
    """A network of the module's own. The first rule ever changes how the kernel looks things up."""
    with network() as made:
        if request.param == "with a rule":
            ip("rule add to 203.0.113.0/24 lookup main priority 100")
            ip("rule add to 2001:db8:f::/48 lookup main priority 100", version=6)
        yield made


def serve(rig: Rig, inside: int, *backends: Address | Backend) -> None:
    """The usual VIP of a family, with these backends."""
    rig.serve(service(VIPS[inside], *backends))


# ---- Which device ------------------------------------------------------------------------------


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_out_of_the_same_device_or_another(rig: Rig, inside: int, outside: int) -> None:
    """The route decides, for each device that packets come in on."""
    for backends, at_home in ((NEAR, IN), (FAR, OUT), (THIRDS, None)):
        serve(rig, inside, *backends[outside])
        for device in (IN, OUT):
            rig.expect(frame(inside), TX if device == at_home else REDIRECT, device)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_behind_a_gateway(rig: Rig, inside: int, outside: int) -> None:
    """The gateway's MAC address, the backend's IP address."""
    serve(rig, inside, BEHIND_GATEWAY[outside])
    outcome = rig.expect(frame(inside), TX)
    assert outcome.frame[:6] == neighbour_mac(IN, 0xFE)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_devices_take_turns_within_a_jiffy(rig: Rig, inside: int, outside: int) -> None:
    """What is kept of a look-up holds for the device that it was made for."""
    serve(rig, inside, NEAR[outside][0])
    for _ in range(50):
        rig.expect(frame(inside), TX, IN)
        rig.expect(frame(inside), REDIRECT, OUT)


# ---- No way ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
@pytest.mark.parametrize("device", [IN, OUT])
def test_an_unresolved_next_hop_is_the_kernels_to_resolve(
    rig: Rig, inside: int, outside: int, device: str
) -> None:
    """Encapsulated, with the egress device noted in front of it, and no MAC address yet."""
    for backends in (NEAR_UNRESOLVED, FAR_UNRESOLVED):
        serve(rig, inside, backends[outside])
        for _ in range(3):
            rig.expect(frame(inside), HANDOFF, device)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_routes_that_lead_nowhere(rig: Rig, inside: int, outside: int) -> None:
    """Each kind is dropped with its own reason; so is an address of this very node."""
    for addresses, verdict in (*REFUSED.values(), (NO_ROUTE, "drop_no_route")):
        serve(rig, inside, addresses[outside])
        rig.expect(frame(inside), verdict)
    serve(rig, inside, OWN[IN][outside])
    rig.expect(frame(inside), LOCAL)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_route_that_encapsulates(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, inside: int, outside: int
) -> None:
    """Only the kernel's stack can do that: it has a reason of its own."""
    target, near = NO_ROUTE[outside], NEAR[outside][0]
    host = f"{target}/{HOST[outside]}"
    ip(f"route add {host} encap ip id 1 dst {NEAR[4][1]} via {near} dev {IN}")
    monkeypatch.setitem(rig.world.ways, target, Way(refused="drop_lwt"))
    serve(rig, inside, target)
    rig.expect(frame(inside), "drop_lwt")
    ip(f"route delete {host}")


@pytest.mark.parametrize("up", [False, True])  # the loopback device, which then has ::1
def test_a_node_without_an_address_sends_nothing_from_nowhere(*, up: bool) -> None:
    """Not from 0.0.0.0 or ::1, which no backend would accept; a source that is given will do."""
    given = Source(IPv4Address("198.51.100.200"), IPv6Address("2001:db8:aa::200"))
    with bare_network(loopback=up) as net:
        for source, verdict in ((Source(), "drop_no_address"), (given, TX)):
            with rigged(net, devices=(IN,), source=source) as rig:
                for inside, outside in COMBINATIONS:
                    way = Way(
                        rig.devices[IN], None, MACS[IN], neighbour_mac(IN, 0x11), told_mtu(IN)
                    )
                    rig.world.ways[NEAR[outside][0]] = replace(
                        way, refused="" if verdict == TX else verdict
                    )
                    serve(rig, inside, NEAR[outside][0])
                    rig.expect(frame(inside), verdict)


@contextmanager
def bare_network(*, loopback: bool) -> Iterator[Network]:
    """A device with routes and neighbours, and no address at all."""
    with new_netns():
        ip(
            f"link set lo {'up' if loopback else 'down'}",
            f"link add {IN} address {MACS[IN].hex(':')} type veth peer name {IN}p",
            f"link set {IN}p addrgenmode none",
            f"link set {IN} addrgenmode none",
            f"link set {IN}p up",
            f"link set {IN} up",
            *(f"route add {NEAR[v][0]}/{HOST[v]} dev {IN}" for v in (4, 6)),
            *(
                f"neigh add {NEAR[v][0]} lladdr {neighbour_mac(IN, 0x11).hex(':')} dev {IN}"
                for v in (4, 6)
            ),
        )
        yield Network({IN: interfaces.device_index(IN)}, {})


@pytest.mark.parametrize("outside", [4, 6])
def test_forwarding_switched_off_on_the_ingress_device(rig: Rig, outside: int) -> None:
    """Of the family of the outer header, whatever is inside."""
    serve(rig, 4, NEAR[outside][0])
    with forwarding(rig, IN, outside, on=False):
        rig.expect(frame(4), "drop_no_forwarding", IN)
        rig.expect(frame(4), REDIRECT, OUT)
        serve(rig, 4, NEAR[10 - outside][0])
        rig.expect(frame(4), TX, IN)
        serve(rig, 4, NEAR[outside][0])
    rig.expect(frame(4), TX, IN)


@contextmanager
def forwarding(rig: Rig, device: str, version: int, *, on: bool) -> Iterator[None]:
    """Switch a device's forwarding, for real and for the oracle."""
    key = (rig.devices[device], version)
    before = interfaces.set_forwarding(device, FAMILY[version], on)
    rig.world.not_forwarding ^= {key}
    rig.forget_ways()
    try:
        yield
    finally:
        interfaces.set_forwarding(device, FAMILY[version], before)
        rig.world.not_forwarding ^= {key}
        rig.forget_ways()


# ---- No backend --------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [4, 6])
def test_no_backend(rig: Rig, inside: int) -> None:
    """None at all, or none that takes new flows: counted with the service."""
    serve(rig, inside)
    rig.expect(frame(inside), NO_BACKEND)
    serve(rig, inside, *(Backend(address, 0) for address in NEAR[inside]))
    rig.expect(frame(inside), NO_BACKEND)
    serve(rig, inside, Backend(NEAR[inside][0], 0), Backend(NEAR[inside][1], 1))
    for sport in range(100):
        assert rig.expect(frame(inside, sport=sport), TX).backend == NEAR[inside][1]


# ---- MTU ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
@pytest.mark.parametrize(("backends", "device"), [(NEAR, IN), (FAR, OUT), (THIRDS, THIRD)])
def test_exactly_the_mtu_and_a_byte_more(
    rig: Rig,
    inside: int,
    outside: int,
    backends: dict[int, list[Address]],
    device: str,
) -> None:
    """What counts is the packet with its outer header, without the link layer and padding.

    A kernel that doesn't tell the MTU leaves it to the device to drop what is too large.
    """
    serve(rig, inside, backends[outside][0])
    verdict = TX if device == IN else REDIRECT
    bare = len(frame(inside, payload=b"")) - 14
    room = MTU[device] - OUTER_HEADER[outside] - bare
    told = inside == 4 or len(frame(inside, payload=bytes(room + 1))) - 14 > 1280
    large = TOO_BIG if told else TOO_LARGE
    above = large if fib_lookup().mtu else verdict
    rig.expect(frame(inside, payload=bytes(room)), verdict)
    rig.expect(frame(inside, payload=bytes(room)) + bytes(100), verdict)
    rig.expect(frame(inside, payload=bytes(room + 1)), above)
    rig.forget_ways()
    rig.expect(frame(inside, payload=bytes(room + 1)), above)
    rig.expect(frame(inside, payload=bytes(room)), verdict)


# ---- Changes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", [4, 6])
def test_a_route_that_changes_is_followed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, outside: int
) -> None:
    """Within moments, and without being told: MTU, device, gateway and end of a route."""
    target, near, far = NO_ROUTE[outside], NEAR[outside][0], FAR[outside][0]
    unresolved = NEAR_UNRESOLVED[outside]
    host = f"{target}/{HOST[outside]}"
    made = frame(4, payload=bytes(1250))
    small, above = (1280, TOO_BIG) if fib_lookup().mtu else (0, TX)
    serve(rig, 4, target)
    ways = rig.world.ways.copy()
    rig.expect(made, "drop_no_route")
    for command, way, verdict in (
        (f"replace {host} via {near}", ways[near], TX),
        (f"replace {host} via {near} mtu lock 1280", replace(ways[near], mtu=small), above),
        (f"replace {host} via {far}", ways[far], REDIRECT),
        (f"replace {host} via {unresolved}", ways[unresolved], HANDOFF),
        (f"delete {host}", ways[target], "drop_no_route"),
    ):
        ip(f"route {command}")
        monkeypatch.setitem(rig.world.ways, target, way)
        until_as_foretold(rig, made)
        rig.expect(made, verdict)


@pytest.mark.parametrize("outside", [4, 6])
def test_a_neighbour_that_changes_its_mac_address_is_followed(
    rig: Rig, net: Network, monkeypatch: pytest.MonkeyPatch, outside: int
) -> None:
    """As a gateway does that another takes over from."""
    address = NEAR[outside][0]
    serve(rig, 4, address)
    rig.expect(frame(4), TX)
    for mac in (bytes((2, 0, 0, 0, 9, 9)), neighbour_mac(IN, address.packed[-1])):
        ip(f"neigh replace {address} lladdr {mac.hex(':')} dev {IN}")
        way = replace(net.ways[address], next_hop_mac=mac)
        monkeypatch.setitem(rig.world.ways, address, way)
        until_as_foretold(rig, frame(4))
        rig.expect(frame(4), TX)


def until_as_foretold(rig: Rig, made: bytes) -> None:
    """Send a frame again and again for as long as a jiffy can be, until it comes out right."""
    wanted = rig.world.judge(made, rig.devices[IN])
    deadline = time.monotonic() + 0.02
    while time.monotonic() < deadline:
        run = rig.run(made)
        if (run.retval, run.data) == (wanted.action, wanted.frame):
            return
