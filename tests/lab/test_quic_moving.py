# SPDX-License-Identifier: Apache-2.0
"""Real connections of QUIC stay with their backend while the client moves."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.harness_lan import (
    BACKENDS,
    BALANCERS,
    CLIENT,
    DEVICE,
    TIMEOUT,
    VIPS,
    balancing,
    client_addresses,
    lan,
    own,
)
from tests.lab.quic_moving import CONFIG, PORT

from towpath import Backend
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath import LoadBalancer
    from towpath.documents import ServiceCounters

END = str(Path(__file__).with_name("quic_moving.py"))
MOVES = 100
SERVER_IDS = (1000, 2, 65535)
BY_OTHER = 100
"""A table of routes: half of the client's addresses are by the second load balancer."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate and its key."""
    directory = tmp_path_factory.mktemp("certificate")
    at, key = directory / "cert.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=quic", "-keyout", str(key), "-out", str(at)]
    subprocess.run(command, capture_output=True, check=True)
    return str(at), str(key)


@contextmanager
def serving(version: int, certificate: tuple[str, str]) -> Iterator[None]:
    """A server on each backend, whose ids name it."""
    with ExitStack() as undo:
        servers = []
        for name, server_id in zip(BACKENDS, SERVER_IDS, strict=True):
            words = [END, "server", str(VIPS[version]), *certificate, str(server_id)]
            with in_netns(name):
                made = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
            undo.enter_context(made)
            undo.callback(made.kill)
            servers.append(made)
        for each in servers:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        yield


@contextmanager
def two_ways(version: int) -> Iterator[None]:
    """Packets from every other address of the client's, which is new, go to the second balancer."""
    others = client_addresses(version)[::2]
    vip, other = VIPS[version], own(BALANCERS[1], version)
    commands = [f"rule add from {address} lookup {BY_OTHER}" for address in others]
    commands += [f"route add {vip} via {other} dev {DEVICE} table {BY_OTHER}"]
    batch = ["ip", "-n", CLIENT, f"-{version}", "-batch", "-"]
    subprocess.run(batch, input="\n".join(commands), text=True, check=True)
    yield


def serve(balancers: list[LoadBalancer], version: int, *, by_id: bool = True) -> None:
    """The same service on all of them."""
    fields: dict[str, Any] = {"quic": CONFIG} if by_id else {}
    backends = [
        Backend(own(name, version), server_id=(server_id,) if by_id else ())
        for name, server_id in zip(BACKENDS, SERVER_IDS, strict=True)
    ]
    for each in balancers:
        each.add_service(
            "quic",
            vip=VIPS[version],
            port=PORT,
            protocol="udp",
            backends=backends,
            forwarding="l2",
            table_size=251,
            **fields,
        )


def broken(version: int, moves: int) -> int:
    """How many of so many moves broke a connection."""
    addresses = map(str, client_addresses(version))
    words = [END, "client", str(VIPS[version]), str(moves), *addresses]
    with in_netns(CLIENT):
        done = subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT + 4 * moves,
        )
    return int(done.stdout)


def counted(balancer: LoadBalancer) -> ServiceCounters:
    """Of the service."""
    (found,) = balancer.counters().services
    return found


@pytest.mark.parametrize("version", [4])
def test_connections_outlive_moves(version: int, certificate: tuple[str, str]) -> None:
    """To other ports and addresses, and to the other load balancer; none is broken."""
    with (
        lan(),
        serving(version, certificate),
        two_ways(version),
        balancing(*BALANCERS) as balancers,
    ):
        serve(balancers, version)
        assert broken(version, MOVES) == 0
        for each in balancers:
            found = counted(each)
            assert found.quic["named"] > MOVES / 2
            assert found.quic["unknown"] == found.quic["down"] == found.drops == 0
            # The flow table knows of whom a backend has connections, wherever they are by now.
            assert sum(backend.flows for backend in found.backends) > MOVES / 4
