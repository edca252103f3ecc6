# SPDX-License-Identifier: Apache-2.0
"""Health checks get to backends as clients' packets do: by tunnel devices, through VLANs."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from tests.guest.harness_guest import (
    COMBINATIONS,
    PORT,
    SMALL,
    TIMEOUT,
    TIMES,
    TUNNEL4,
    TUNNEL6,
    VIPS,
    Stream,
    Tcp6,
    addresses,
    ip,
    network,
    passing,
    received,
)
from tests.guest.harness_probes import (
    Frame,
    Joint,
    is_for,
    listening,
    read,
    untranslated,
    wait_for,
)
from tests.guest.test_trunk import BACKENDS, CLIENTS, make_trunk

from towpath import LoadBalancer
from towpath.agent.health.check import check
from towpath.agent.health.target import CheckFailedError, Target
from towpath.datapath.health.asked import Asked
from towpath.kernel.net.netns import in_netns
from towpath.lab.network import switch_off
from towpath.lab.topology import BALANCER, DEVICE, ROUTER
from towpath.model import Backend, CheckType, Device, Health, Protocol, Service, Snat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guest.harness_guest import Address

    from towpath.model.service import Forwarding

OTHER_PORT = PORT + 1
# Of more, which the kernel cuts into segments itself, it counts up the outer IDs; where DF is set,
# as it is here, they mean nothing (RFC 6864).
ONE_SEGMENT = 1000
SIZE = 5000  # several segments, so that the kernel cuts them
OWN_ON_TRUNK: dict[int, Address] = {4: ip_address("10.20.0.2"), 6: ip_address("fd20::2")}
ROUTER_ON_TRUNK: dict[int, Address] = {4: ip_address("10.20.0.1"), 6: ip_address("fd20::1")}
# All in one test: of many sets of parameters a guest tries only some.
# How packets are forwarded, what is inside, what is outside if it is a tunnel.
WAYS: list[tuple[Forwarding, int, int]] = [
    *(("dsr", inside, outside) for inside, outside in COMBINATIONS),
    ("l2", 4, 0),
    ("l2", 6, 0),
    ("snat", 4, 0),
    ("snat", 6, 0),
]


# What VLANs change is the same for all.
WAYS_OF_VLANS: list[tuple[Forwarding, int, int]] = [*WAYS[:2], ("l2", 6, 0)]


@pytest.fixture(scope="module", params=["wire", "trunk", "on VLAN devices"])
def joint(request: pytest.FixtureRequest) -> Iterator[Joint]:
    """One backend behind the kernel's ipip and ip6tnl devices, with VLANs on the way or without.

    The load balancer is on the trunk, or on the VLANs' own devices.
    """
    with network() as topology:
        link = topology.balancer
        wire = Joint(
            topology,
            (Device(DEVICE, "native"),),
            own={4: link.node4[0].ip, 6: link.node6[0].ip},
            beside={4: link.router4.ip, 6: link.router6.ip},
        )
        if request.param != "wire":
            make_trunk(topology)
            wire = replace(
                wire,
                own=OWN_ON_TRUNK,
                beside=ROUTER_ON_TRUNK,
                from_clients=CLIENTS,
                to_backends=BACKENDS,
            )
        if request.param == "on VLAN devices":
            names = (f"{DEVICE}.{vlan}" for vlan in (CLIENTS, BACKENDS))
            wire = replace(wire, devices=tuple(Device(name, "generic") for name in names))
        switch_off(BALANCER, DEVICE, "tx-checksumming")
        with passing(link.port):
            yield wire


@dataclass(frozen=True)
class Checked:
    """A service of one backend, and how that is broken and mended."""

    service: Service
    node: str
    breaks: str
    mends: str

    @property
    def target(self) -> Target:
        """Its check."""
        return Target.of(self.service, self.service.backends[0])

    @contextmanager
    def broken(self) -> Iterator[None]:
        """The backend takes nothing, or can't answer, in the block."""
        ip(self.node, self.breaks)
        try:
            yield
        finally:
            ip(self.node, self.mends)


@contextmanager
def backend(joint: Joint, forwarding: Forwarding, inside: int, outside: int) -> Iterator[Checked]:
    """Somebody who answers, and the service that he is the backend of."""
    (vip,) = (each for each in VIPS if each.version == inside)
    node = joint.topology.backend_links[0].node
    if forwarding == "dsr":
        (address,) = addresses(joint.topology, outside)
        device = {4: TUNNEL4, 6: TUNNEL6}[outside]
        service = _service(vip, address, forwarding, PORT)
        yield Checked(service, node, f"link set {device} down", f"link set {device} up")
    elif forwarding == "snat":
        (address,) = addresses(joint.topology, inside)
        service = _service(vip, address, forwarding, OTHER_PORT)
        way = f"blackhole {joint.own[inside]}"
        with answering(node):
            yield Checked(service, node, f"route add {way}", f"route del {way}")
    else:
        # The router is on the link with the load balancer, and plays the backend.
        service = _service(vip, joint.beside[inside], forwarding, OTHER_PORT)
        has = f"{vip}/{vip.max_prefixlen} dev lo"
        ip(ROUTER, f"address add {has}")
        try:
            with answering(ROUTER):
                yield Checked(service, ROUTER, f"address del {has}", f"address add {has}")
        finally:
            ip(ROUTER, f"address del {has}")


def _service(vip: Address, address: Address, forwarding: Forwarding, port: int) -> Service:
    return Service(
        "checked",
        vip,
        port,
        Protocol.TCP,
        (Backend(address),),
        table_size=251,
        forwarding=forwarding,
        health=Health(CheckType.TCP, timeout=TIMEOUT),
    )


@contextmanager
def answering(node: str) -> Iterator[None]:
    """A server at all addresses of a node."""
    with in_netns(node):
        server = Tcp6(("::", OTHER_PORT), Stream)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,))
    with server:
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def balancer(joint: Joint) -> Iterator[LoadBalancer]:
    """A load balancer that is ready for checks."""
    snat = Snat((joint.own[4],), (joint.own[6],))  # type: ignore[arg-type]
    with in_netns(BALANCER), LoadBalancer(*joint.devices, limits=SMALL, snat=snat) as balancer:
        balancer._balancer.health.open(VIPS)
        yield balancer


@contextmanager
def checked(
    joint: Joint, balancer: LoadBalancer, forwarding: Forwarding, inside: int, outside: int
) -> Iterator[Checked]:
    """A service to be checked, which the load balancer has, with somebody who answers."""
    with backend(joint, forwarding, inside, outside) as found:
        balancer.apply([replace(found.service, health=None)])
        yield found


def converse(balancer: LoadBalancer, target: Target, size: int) -> None:
    """Connect as a check does, ask and be answered."""
    question, answer = os.urandom(size), b""
    connection = balancer._balancer.health.connection(
        Asked(target.vip, target.backend, forwarding=target.forwarding)
    )
    with closing(connection):
        connection.settimeout(TIMEOUT)
        connection.connect((str(target.to), target.port))
        connection.sendall(question)
        connection.shutdown(1)
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer == question * TIMES


def is_up(balancer: LoadBalancer, target: Target) -> bool:
    """What a check finds."""
    with in_netns(BALANCER):
        try:
            asyncio.run(check(target, balancer._balancer.health))
        except CheckFailedError:
            return False
        return True


def ways(joint: Joint) -> list[tuple[Forwarding, int, int]]:
    """Those that are tried there."""
    return WAYS if not joint.to_backends else WAYS_OF_VLANS


def test_the_frames_of_a_check_are_those_of_a_client(joint: Joint, balancer: LoadBalancer) -> None:
    """What a client's packet becomes is what a check's segment was, tag, tunnel and all."""
    for way in ways(joint):
        compare(joint, balancer, way)


def compare(joint: Joint, balancer: LoadBalancer, way: tuple[Forwarding, int, int]) -> None:
    """Converse as a check does, and have a client send the same."""
    forwarding, inside, outside = way
    with checked(joint, balancer, *way) as found, listening(joint) as wire:
        target = found.target

        def shown(frame: Frame) -> bytes:
            """As it is compared, if it is for the backend. A client's translated port differs."""
            if not is_for(frame.carried(outside), target.to, target.port):
                return b""
            return frame.without_port() if forwarding == "snat" else frame.raw

        # With l2 the packet for which the neighbour has to be found is lost: it is known from here.
        assert is_up(balancer, target)
        assert len(list(wire.sent())) > 0
        converse(balancer, target, ONE_SEGMENT)
        probes = [frame for frame in wire.sent() if shown(frame)]
        assert len(probes) >= 4  # SYN, question, acknowledgements, FIN
        assert {probe.vlan for probe in probes} == {joint.to_backends}
        for probe in probes:
            packet = probe.carried(outside)
            if forwarding == "snat":
                assert read(packet).src == str(joint.own[inside])
                packet = untranslated(packet, client_of(joint, inside), target.vip)
            wire.put(packet)
            wait_for(wire, shown(probe), shown)


def client_of(joint: Joint, version: int) -> Address:
    """A client's address."""
    link = joint.topology.client
    return (link.node4 if version == 4 else link.node6)[0].ip


def test_a_backend_is_up_until_it_takes_nothing(joint: Joint, balancer: LoadBalancer) -> None:
    """Its tunnel's end is gone, or the VIP, or its way back."""
    for way in ways(joint):
        with checked(joint, balancer, *way) as found:
            assert is_up(balancer, found.target), way
            with found.broken():
                impatient = replace(found.target, health=Health(CheckType.TCP, timeout=1.0))
                assert not is_up(balancer, impatient), way
            assert is_up(balancer, found.target), way


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_connection_reaches_the_backend(
    joint: Joint, balancer: LoadBalancer, inside: int, outside: int
) -> None:
    """Each packet that was sent comes out of the tunnel, none with an error."""
    node = joint.topology.backend_links[0].node
    device = TUNNEL4 if outside == 4 else TUNNEL6
    health = balancer._balancer.health
    with checked(joint, balancer, "dsr", inside, outside) as found:
        packets, errors = received(node, device)
        before, verdicts = health.counters(), balancer.counters().verdicts
        converse(balancer, found.target, SIZE)
        moved = {name: now - before[name] for name, now in health.counters().items()}
        assert moved.pop("sent") >= 4
        assert not any(moved.values())
        now = balancer.counters().verdicts
        assert [now[name] for name in ("tx", "redirect")] == [
            verdicts[name] for name in ("tx", "redirect")
        ]
        after, more_errors = received(node, device)
    assert more_errors == errors
    assert after - packets >= SIZE // 1180 + 2
