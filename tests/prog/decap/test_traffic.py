# SPDX-License-Identifier: Apache-2.0
"""Encapsulated packets on a real device reach real sockets."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import UDP
from scapy.packet import Raw
from tests.prog.decap import harness
from tests.prog.decap.harness import ADDRESSES, CLIENTS, COMBINATIONS, VIPS
from tests.prog.decap.oracle import CE, ECT_0
from tests.prog.decap.wire import (
    BACKEND,
    BALANCER,
    FAMILIES,
    TIMEOUT,
    WIRE,
    listening,
    relay,
    tunnel,
    until,
    wire,
)

from towpath.datapath.decap.decap import Decap, Mode
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 40000
MEGABYTE = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def ends() -> Iterator[None]:
    """The namespaces, once for the module."""
    with wire():
        yield


@pytest.fixture(params=["native", "generic"])
def decap(request: pytest.FixtureRequest) -> Iterator[Decap]:
    """The backend's end, in either mode."""
    mode: Mode = request.param
    with in_netns(BACKEND), Decap(WIRE, ADDRESSES, mode) as decap:
        assert decap.mode == mode
        yield decap


def datagram(inside: int, port: int, payload: bytes, *, traffic_class: int = 0) -> bytes:
    """A client's UDP packet to the VIP."""
    header = harness.ip(inside, CLIENTS[inside], VIPS[inside], traffic_class=traffic_class)
    return bytes(header / UDP(sport=PORT, dport=port) / Raw(payload))


@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_a_datagram_is_received_and_the_answer_goes_straight_back(
    decap: Decap, outside: int, inside: int
) -> None:
    """The server sees the client's address; the client gets the answer from the VIP."""
    with in_netns(BALANCER):
        client = socket.socket(FAMILIES[inside], socket.SOCK_DGRAM)
    server = listening(inside, socket.SOCK_DGRAM)
    raw = tunnel(outside, inside)
    with closing(client), closing(server), closing(raw):
        client.settimeout(TIMEOUT)
        client.bind((CLIENTS[inside], PORT))
        port = server.getsockname()[1]
        raw.send(datagram(inside, port, b"question"))
        question, sender = server.recvfrom(2048)
        assert (question, *sender[:2]) == (b"question", CLIENTS[inside], PORT)
        server.sendto(b"answer", sender)
        answer, responder = client.recvfrom(2048)
        assert (answer, *responder[:2]) == (b"answer", VIPS[inside], port)
    assert decap.counters().verdicts["unwrapped"] == 1


@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_congestion_on_the_way_is_told_to_the_socket(
    decap: Decap, outside: int, inside: int
) -> None:
    """Outer CE, inner ECT(0): the kernel takes the rewritten header and hands CE up."""
    level, want, got = {
        4: (socket.IPPROTO_IP, socket.IP_RECVTOS, socket.IP_TOS),
        6: (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, socket.IPV6_TCLASS),
    }[inside]
    server, raw = listening(inside, socket.SOCK_DGRAM), tunnel(outside, inside, traffic_class=CE)
    with closing(server), closing(raw):
        server.setsockopt(level, want, 1)
        port = server.getsockname()[1]
        raw.send(datagram(inside, port, b"marked", traffic_class=46 << 2 | ECT_0))
        payload, ancillary, _, _ = server.recvmsg(2048, 64)
    fields = {(kind, name): value for kind, name, value in ancillary}
    assert payload == b"marked"
    assert fields[level, got][0] == 46 << 2 | CE
    assert decap.counters().verdicts["drop_ecn"] == 0


@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_a_connection_carries_megabytes_both_ways(decap: Decap, outside: int, inside: int) -> None:
    """Every segment of the client's goes through the tunnel, none of the server's."""
    sent, returned = os.urandom(MEGABYTE), os.urandom(4 * MEGABYTE)
    server = listening(inside, socket.SOCK_STREAM)
    server.listen()

    def serve() -> bytes:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            received = read_all(connection)
            connection.sendall(returned)
            return received

    with closing(server), relay(outside, inside), ThreadPoolExecutor() as pool:
        served = pool.submit(serve)
        with in_netns(BALANCER):
            client = socket.create_connection(server.getsockname()[:2], timeout=TIMEOUT)
        with client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == returned
        assert served.result() == sent
    counters = decap.counters()
    assert sum(one.bytes for one in counters.addresses.values()) > MEGABYTE
    assert all(counters.verdicts[name] == 0 for name in counters.verdicts if "drop" in name)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other end has said that it is done."""
    chunks = []
    while chunk := connection.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


@pytest.mark.parametrize("outside", [4, 6])
def test_outer_fragments_are_counted_and_left_to_the_kernel(decap: Decap, outside: int) -> None:
    """3000 bytes make three fragments on a wire of 1500."""
    with closing(tunnel(outside, 4)) as raw:
        raw.send(datagram(4, 9, bytes(3000)))
    until(lambda: decap.counters().verdicts["pass_fragment"] == 3)
    assert decap.counters().verdicts["unwrapped"] == 0


def test_each_device_of_a_process_has_its_own() -> None:
    """Two devices, two sets of addresses and counters; closing one leaves the other."""
    with in_netns(BACKEND):
        second = Decap("lo", ["192.0.2.99"], "generic")
        with Decap(WIRE, ADDRESSES) as first:
            second.close()
            with closing(tunnel(4, 4)) as raw, closing(listening(4, socket.SOCK_DGRAM)) as server:
                raw.send(datagram(4, server.getsockname()[1], b"still here"))
                assert server.recv(2048) == b"still here"
            assert first.counters().verdicts["unwrapped"] == 1
