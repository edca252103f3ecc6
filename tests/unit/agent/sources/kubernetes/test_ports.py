# SPDX-License-Identifier: Apache-2.0
"""Ports of the node that Services have: who holds them, and what health checks are answered."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from ipaddress import ip_address

import pytest

from towpath.agent.sources.kubernetes.health import HealthPorts
from towpath.agent.sources.kubernetes.ports import HeldPorts
from towpath.core.kubernetes.cluster import NodePort
from towpath.core.kubernetes.translate import Health, Here
from towpath.model.service import Protocol

AT = (ip_address("127.0.0.1"), ip_address("::1"))
HERE = Here("n1", node_ports=AT)
_KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}


def holding(protocol: Protocol, address: str) -> socket.socket:
    """A process that has a port there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, _KINDS[protocol])
    made.bind((address, 0))
    if protocol is Protocol.TCP:
        made.listen()
    return made


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::"])
@pytest.mark.parametrize("protocol", Protocol)
def test_a_process_that_holds_a_node_port(protocol: Protocol, address: str) -> None:
    """At an address that has node ports, or at all; it is told of the Service, and by whom."""
    held = HeldPorts()
    with holding(protocol, address) as process:
        port = process.getsockname()[1]
        held.look([NodePort(port, protocol, "default", "web")], HERE)
        assert {(each.reason, each.namespace, each.name) for each in held.refusals} == {
            ("NodePortInUse", "default", "web")
        }
        said = held.refusals[0].message
        assert f"nodePort {port}/{protocol}" in said
        assert "node n1 listens at" in said
    held.look([NodePort(port, protocol, "default", "web")], HERE)
    assert held.refusals == ()


@pytest.mark.parametrize("protocol", Protocol)
def test_others_ports_are_theirs(protocol: Protocol) -> None:
    """Of the other protocol, at other addresses, connected ones; and without any nobody asks."""
    other = Protocol.UDP if protocol is Protocol.TCP else Protocol.TCP
    held = HeldPorts()
    with holding(protocol, "127.0.0.2") as process, holding(protocol, "127.0.0.1") as own:
        port = process.getsockname()[1]
        held.look([NodePort(port, protocol, "default", "web")], HERE)
        assert held.refusals == ()
        held.look([NodePort(own.getsockname()[1], other, "default", "web")], HERE)
        assert held.refusals == ()
        if protocol is Protocol.UDP:
            own.connect(("127.0.0.1", port))
            held.look([NodePort(own.getsockname()[1], protocol, "default", "web")], HERE)
            assert held.refusals == ()
    held.look([], HERE)
    assert held.refusals == ()


@pytest.fixture
def port() -> int:
    """One that is free."""
    with holding(Protocol.TCP, "127.0.0.1") as found:
        number: int = found.getsockname()[1]
    return number


def asked(port: int) -> tuple[int, dict[str, object]]:
    """What a load balancer gets."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_health_follows_the_endpoints(port: int) -> None:
    """200 while this node has some, 503 while it has none, nothing when the Service is gone."""

    async def run() -> None:
        ports = HealthPorts()
        for local, status in ((1, 200), (0, 503), (2, 200)):
            await ports.serve({port: Health(port, "default", "web", {4: local, 6: 5})}, AT[:1])
            got, said = await asyncio.to_thread(asked, port)
            assert got == status
            assert said["localEndpoints"] == local
            assert said["service"] == {"namespace": "default", "name": "web"}
        await ports.serve({}, AT[:1])
        with pytest.raises(OSError, match="refused"):
            await asyncio.to_thread(asked, port)
        await ports.close()

    asyncio.run(run())


def test_a_health_port_that_is_taken(port: int) -> None:
    """It is told, tried again, and answered when it is free."""

    async def run() -> None:
        ports = HealthPorts()
        with socket.create_server(("127.0.0.1", port)):
            await ports.serve({port: Health(port, "default", "web", {4: 1})}, AT[:1])
            (told,) = ports.refusals()
            assert (told.reason, told.namespace, told.name) == (
                "HealthCheckPortInUse",
                "default",
                "web",
            )
            await ports.again()
            assert ports.refusals() == [told]
        await ports.again()
        assert ports.refusals() == []
        assert (await asyncio.to_thread(asked, port))[0] == 200
        await ports.close()

    asyncio.run(run())
