# SPDX-License-Identifier: Apache-2.0
"""Two load balancers that tell each other nothing treat every flow as one would."""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.packet import Raw
from tests.lab.harness_group import (
    DISCOVER_DO,
    GROUP,
    HOPS,
    KEEPING,
    MTU_DISCOVER,
    VIPS,
    Ends,
    Group,
    Stream,
    Told,
    datagram_client,
    group,
    ip,
    other,
)
from tests.lab.harness_transfer import FAMILIES, PORT, transfer_servers
from tests.lab.test_path_mtu import learned, mtu

from towpath.kernel.net.netns import in_netns
from towpath.lab import Lab
from towpath.lab.topology import CLIENT, ROUTER, VIP4, VIP6
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSIONS = [4, 6]
MANY = 24
DOWNLOAD = 4 << 20
NARROW = 1400
LARGE = b"x" * 1450
WHOLE = bytes(range(250)) * 16
ERRORS = {
    "nobody listens": {4: Told(3, 3, 0), 6: Told(1, 4, 0)},
    "too many hops": {4: Told(11, 0, 0), 6: Told(3, 0, 0)},
    "too large": {4: Told(3, 4, NARROW), 6: Told(2, 0, NARROW)},
}


@pytest.fixture(scope="module")
def made() -> Iterator[Group]:
    """The lab with a second load balancer."""
    with Lab.up(3) as lab, transfer_servers(lab), group(lab) as made:
        yield made


@pytest.fixture
def both(made: Group) -> Iterator[Group]:
    """With routes to both; nothing may be dropped that the test doesn't speak of."""
    made.share()
    before = dropped(made)
    yield made
    assert dropped(made) == before


def dropped(group: Group) -> int:
    """Packets that were dropped by either."""
    return sum(
        packets
        for verdicts in group.verdicts().values()
        for verdict, packets in verdicts.items()
        if verdict.startswith("drop")
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_connections_outlive_a_load_balancer(both: Group, version: int) -> None:
    """When its route is withdrawn, and when it is back: each stays with its backend."""
    with ExitStack() as undo:
        before = both.flows(f"tcp{version}")
        streams = [undo.enter_context(closing(Stream(version))) for _ in range(MANY)]
        after = both.flows(f"tcp{version}")
        assert all(after[name] > before[name] for name in GROUP)
        assert len({stream.name for stream in streams}) == 3
        for routes in (GROUP[1:], GROUP[:1], GROUP):
            both.share(*routes)
            packets = both.packets(f"tcp{version}")
            assert [stream.get(1 << 16) for stream in streams] == [each.name for each in streams]
            now = both.packets(f"tcp{version}")
            assert {name for name in GROUP if now[name] > packets[name]} == set(routes)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("carrier", GROUP)
def test_a_download_whose_router_tells_the_other(both: Group, carrier: str, version: int) -> None:
    """That packets are too large: the backend that sends them learns of it, and it completes."""
    both.share(carrier)
    both.icmp_to(other(carrier))
    lab, vip = both.lab, VIPS[version]
    with closing(Stream(version)) as stream:
        before = both.packets(f"tcp{version}")[other(carrier)]
        forget(lab)
        with mtu((ROUTER, "client", NARROW, 1500)):
            assert stream.get(DOWNLOAD) == stream.name
        assert both.packets(f"tcp{version}")[other(carrier)] > before
        hosts = {
            link.port: learned(link.node, stream.client, vip) for link in lab.topology.backend_links
        }
    assert hosts.pop(stream.name) == NARROW
    assert set(hosts.values()) == {1500}
    forget(lab)


def forget(lab: Lab) -> None:
    """Nobody has learned anything of a path."""
    for link in lab.topology.backend_links:
        for version in VERSIONS:
            ip(link.node, f"-{version}", "route", "flush", "cache")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("carrier", GROUP)
def test_errors_that_come_to_the_other(both: Group, carrier: str, version: int) -> None:
    """Get to the backend whose datagram they are about, and to nobody else."""
    both.share(carrier)
    both.icmp_to(other(carrier))
    with Ends(both.lab, VIPS[version], PORT) as ends:
        for what, told in ERRORS.items():
            with datagram_client(version) as client:
                client.send(what.encode())
                name, said, sender = ends.receive()
                assert said == what.encode()
                backend = ends.datagrams[name]
                backend.sendto(b"answer", sender)
                assert client.recv(100) == b"answer"
                if what == "nobody listens":
                    client.close()
                expected = both.packets(f"udp{version}")
                expected[other(carrier)] += 1
                with provoked(what, backend, version):
                    backend.sendto(LARGE, sender)
                    assert ends.told(name) == told[version]
            assert {each: ends.errors_of(each) for each in ends.errors} == {
                each: int(each == name) for each in ends.errors
            }
            # The backend was told only after the other had counted.
            assert both.packets(f"udp{version}") == expected
            forget(both.lab)


@contextmanager
def provoked(what: str, backend: socket.socket, version: int) -> Iterator[None]:
    """What makes a router, or the client, send the error."""
    if what == "too many hops":
        usual = backend.getsockopt(*HOPS[version])
        backend.setsockopt(*HOPS[version], 1)
        yield
        backend.setsockopt(*HOPS[version], usual)
    elif what == "too large":
        backend.setsockopt(*MTU_DISCOVER[version], DISCOVER_DO)
        with mtu((ROUTER, "client", NARROW, 1500)):
            yield
    else:
        yield


@pytest.mark.parametrize("version", VERSIONS)
def test_clients_keep_their_backend_at_both(both: Group, version: int) -> None:
    """By affinity: all flows of a client go to one backend, whoever carries them."""
    link = both.lab.topology.client
    sources = [str(each.ip) for each in (link.node4 if version == 4 else link.node6)]
    with Ends(both.lab, VIPS[version], KEEPING) as ends:
        before = both.flows(f"keeping{version}")
        found: dict[str, set[str]] = {source: set() for source in sources}
        for source in sources * MANY:
            with datagram_client(version, KEEPING, source) as client:
                client.send(b"hello")
                found[source].add(ends.receive()[0])
        after = both.flows(f"keeping{version}")
    assert all(after[name] - before[name] > MANY for name in GROUP)
    assert all(len(names) == 1 for names in found.values()), found


@pytest.mark.parametrize("version", VERSIONS)
def test_datagrams_in_fragments(both: Group, version: int) -> None:
    """Arrive whole, at the backend of the flow's others: routers send all parts one way."""
    with Ends(both.lab, VIPS[version], PORT) as ends:
        for number in range(MANY):
            with datagram_client(version) as client:
                names = set()
                for size in (10, 5000):
                    client.send(bytes([number]) * size)
                    name, said, _ = ends.receive()
                    names.add(name)
                    assert said == bytes([number]) * size
            assert len(names) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_a_part_that_comes_to_the_other_is_dropped(made: Group, version: int) -> None:
    """Where it goes only the load balancer knows that has had the first one."""
    with Ends(made.lab, VIPS[version], PORT) as ends:
        for identification, name in enumerate(GROUP, start=4711):
            first, *later = parts(made, version, identification)
            made.share(name)
            before = dropped_parts(made, other(name))
            send(version, first)
            made.share(other(name))
            for part in later:
                send(version, part)

            expected = before + len(later)
            wait_until(
                partial(has_dropped, made, other(name), expected), seconds=120, what="the drops"
            )
            # The two are one: with the same parts at the same one it arrives.
            for part in (first, *later):
                send(version, part)
            assert ends.receive()[1] == WHOLE


def dropped_parts(group: Group, name: str) -> int:
    """How many fragments one of them has dropped."""
    return group.verdicts()[name].get("drop_fragment", 0)


def has_dropped(group: Group, name: str, count: int) -> bool:
    """Whether that is how many."""
    return dropped_parts(group, name) == count


def parts(group: Group, version: int, identification: int) -> list[bytes]:
    """A datagram in fragments, each an IP packet."""
    link = group.lab.topology.client
    datagram = UDP(sport=5000, dport=PORT) / Raw(WHOLE)
    if version == 4:
        packet = IP(src=str(link.node4[0].ip), dst=str(VIP4), id=identification) / datagram
        return [bytes(each) for each in fragment(packet, 1400)]
    header = IPv6(src=str(link.node6[0].ip), dst=str(VIP6)) / IPv6ExtHdrFragment(id=identification)
    return [bytes(each) for each in fragment6(header / datagram, 1400)]


def send(version: int, packet: bytes) -> None:
    """Send an IP packet from the client, as it is."""
    with (
        in_netns(CLIENT),
        socket.socket(FAMILIES[version], socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
    ):
        raw.sendto(packet, (str(VIPS[version]), 0))
