# SPDX-License-Identifier: Apache-2.0
"""Connections of health checks in the lab: on the wire, through real tunnels, and afterwards."""

from __future__ import annotations

import socket
import subprocess
from contextlib import closing, contextmanager, suppress
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from tests.lab.harness_balancer import SMALL, assert_gone
from tests.prog.lb.oracle import Way, World
from tests.prog.lb.oracle_parse import parse

from towpath.datapath.balancer import Balancer
from towpath.datapath.errors import DatapathError
from towpath.datapath.health.asked import Asked
from towpath.kernel.bpf import probe
from towpath.kernel.errors import KernelError
from towpath.kernel.net import rules
from towpath.kernel.net.netns import in_netns
from towpath.lab import Lab
from towpath.lab.network import switch_off
from towpath.lab.topology import BALANCER, DEVICE, ROUTER, VIP4, VIP6
from towpath.lab.waiting import wait_until
from towpath.model import Device, Snat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.health.path import HealthPath
    from towpath.model import Address

PORT = 80
TIMEOUT = 60.0
NOBODY = {4: "192.0.2.200", 6: "2001:db8:2:99::1"}
REQUEST = b"GET / HTTP/1.1\r\nHost: towpath\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The lab with three backends."""
    with Lab.up(3) as lab:
        yield lab


@pytest.fixture(params=["best", "filter"])
def attached(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a tc program is attached: as this kernel can, or as one without TCX would."""
    if request.param == "filter":
        monkeypatch.setattr(probe, "tcx", lambda: False)
    return str(request.param)


@pytest.fixture
def balancer(lab: Lab, attached: str) -> Iterator[Balancer]:
    """A load balancer of no services on the balancer's device."""
    assert lab, attached
    with in_netns(BALANCER), Balancer([Device(DEVICE)], limits=SMALL) as balancer:
        balancer.health.open([VIP4, VIP6])
        yield balancer


@pytest.fixture
def path(balancer: Balancer) -> HealthPath:
    """Its way of health checks."""
    return balancer.health


def backend(lab: Lab, number: int, version: int) -> Address:
    """The address of a backend, from 0."""
    link = lab.topology.backend_links[number]
    return link.node4[0].ip if version == 4 else link.node6[0].ip


def ask(path: HealthPath, vip: Address, to: Address) -> str:
    """Who answers at the VIP. OSError if nobody does."""
    with closing(path.connection(Asked(vip, to))) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect((str(vip), PORT))
        connection.sendall(REQUEST)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    return answer.rpartition(b"\r\n\r\n")[2].decode()


def shell(where: str, command: str) -> str:
    """What a command in a namespace says."""
    full = ["ip", "netns", "exec", where, "sh", "-c", command]
    return subprocess.run(full, check=True, capture_output=True, text=True).stdout


COMBINATIONS: list[tuple[Address, int]] = [(VIP4, 4), (VIP4, 6), (VIP6, 6)]  # and what is outside


@pytest.mark.parametrize(("vip", "outside"), COMBINATIONS)
def test_each_connection_reaches_its_backend(
    lab: Lab, path: HealthPath, vip: Address, outside: int
) -> None:
    """By way of its tunnel, whoever the load balancer would have chosen."""
    for number, link in enumerate(lab.topology.backend_links):
        assert ask(path, vip, backend(lab, number, outside)) == link.port
    counters = path.counters()
    assert counters.pop("sent") > 6
    assert not any(counters.values())


@pytest.mark.parametrize(("vip", "outside"), COMBINATIONS)
def test_a_datagram_reaches_its_backend_and_is_answered(
    lab: Lab, path: HealthPath, vip: Address, outside: int
) -> None:
    """From the VIP; and where nobody listens, the backend's kernel says so."""
    family = socket.AF_INET if vip.version == 4 else socket.AF_INET6
    asked = Asked(vip, backend(lab, 1, outside), datagrams=True)
    with closing(path.connection(asked)) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect((str(vip), 5353))
        connection.send(b"question")
        with pytest.raises(ConnectionRefusedError):
            connection.recv(100)
        with in_netns(lab.topology.backend_links[1].node):
            server = socket.socket(family, socket.SOCK_DGRAM)
        with closing(server):
            server.bind((str(vip), 5353))
            connection.send(b"question")
            server.settimeout(TIMEOUT)
            question, asker = server.recvfrom(100)
            server.sendto(b"answer", asker)
            assert (question, connection.recv(100)) == (b"question", b"answer")


@pytest.mark.parametrize(("vip", "outside"), COMBINATIONS)
def test_every_byte_on_the_wire(lab: Lab, balancer: Balancer, vip: Address, outside: int) -> None:
    """What comes out of the device is what the load balancer would have sent for a client."""
    to = backend(lab, 0, outside)
    with in_netns(ROUTER):
        seen = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        seen.bind(("lb", 0))
    with closing(seen):
        switch_off(BALANCER, DEVICE, "tx-checksumming")
        assert ask(balancer.health, vip, to) == "be1"
        seen.settimeout(0)
        frames = list(_frames(seen))
    link = lab.topology.balancer
    own: dict[int, Address] = {4: link.node4[0].ip, 6: link.node6[0].ip}
    sent = [frame for frame in frames if _is_from(frame, own[outside])]
    assert len(sent) >= 4  # SYN, ACK, request, reset
    program = balancer._program
    macs = _macs()
    world = World(program.tables.seeds["hash_seed"], program.cookie)
    for frame in sent:
        inner = frame[:14] + frame[14 + (20 if outside == 4 else 40) :]
        packet = parse(inner[:12] + (b"\x08\x00" if vip.version == 4 else b"\x86\xdd") + inner[14:])
        outer = world._outer_header(packet, to, Way(source=own[outside]))
        assert frame[:12] == macs
        assert frame[14:].startswith(outer)
        assert (packet.flow.source, packet.flow.destination) == (own[vip.version], vip)
        _assert_checksums(inner[14:], vip.version)


def _frames(seen: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            yield seen.recv(65536)
        except BlockingIOError:
            return


def _is_from(frame: bytes, own: Address) -> bool:
    """Whether a frame is a tunnel packet of ours."""
    where = slice(26, 30) if own.version == 4 else slice(22, 38)
    ethertype = b"\x08\x00" if own.version == 4 else b"\x86\xdd"
    carried = frame[23] if own.version == 4 else frame[20]
    return frame[12:14] == ethertype and frame[where] == own.packed and carried in {4, 41}


def _macs() -> bytes:
    """Both link addresses, as a frame from the balancer to the router has them."""
    router = shell(ROUTER, "ip -br link show lb").split()[2]
    own = shell(BALANCER, f"ip -br link show {DEVICE}").split()[2]
    return bytes.fromhex((router + own).replace(":", ""))


def _assert_checksums(inner: bytes, version: int) -> None:
    """The segment's own checksum is right: scapy makes the same packet without being told."""
    packet = IP(inner) if version == 4 else IPv6(inner)
    again = packet.copy()
    del again[TCP].chksum
    if version == 4:
        del again.chksum
    assert bytes(again) == inner


@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_l2_is_the_packet_itself_in_a_frame_for_the_backend(
    lab: Lab, balancer: Balancer, vip: Address
) -> None:
    """Here for the router, which is on the link: to its MAC address, with a right checksum."""
    link = lab.topology.balancer
    to = link.router4.ip if vip.version == 4 else link.router6.ip
    with in_netns(BALANCER), suppress(ConnectionRefusedError):
        socket.create_connection((str(to), 9), TIMEOUT).close()  # its MAC address is known now
    switch_off(BALANCER, DEVICE, "tx-checksumming")
    with in_netns(ROUTER):
        seen = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        seen.bind(("lb", 0))
    asked = Asked(vip, to, forwarding="l2")
    with closing(seen), closing(balancer.health.connection(asked)) as connection:
        with suppress(BlockingIOError):
            connection.connect((str(vip), PORT))
        port = connection.getsockname()[1]
        seen.settimeout(TIMEOUT)
        frame = next(frame for frame in iter(lambda: seen.recv(2048), b"") if _is_syn(frame, port))
    assert frame[:12] == _macs()
    flow = parse(frame).flow
    own = link.node4[0].ip if vip.version == 4 else link.node6[0].ip
    assert (flow.source, flow.destination, flow.destination_port) == (own, vip, PORT)
    _assert_checksums(frame[14:], vip.version)
    assert (IP(frame[14:]).ttl if vip.version == 4 else IPv6(frame[14:]).hlim) == 64


def _is_syn(frame: bytes, port: int) -> bool:
    """Whether a frame has a segment from that port."""
    packet = Ether(frame)
    return TCP in packet and packet[TCP].sport == port


def test_a_backend_without_the_vip_does_not_answer(lab: Lab, path: HealthPath) -> None:
    """Though its own address does."""
    node, to = lab.topology.backend_links[0].node, backend(lab, 0, 4)
    shell(node, f"ip address del {VIP4}/32 dev lo")
    try:
        with in_netns(BALANCER), socket.create_connection((str(to), PORT), TIMEOUT):
            pass
        with closing(path.connection(Asked(VIP4, to))) as connection:
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):
                connection.connect((str(VIP4), PORT))
    finally:
        shell(node, f"ip address add {VIP4}/32 dev lo")
    assert ask(path, VIP4, to) == "be1"


def test_a_vip_that_is_the_load_balancers_own_address_too(lab: Lab, balancer: Balancer) -> None:
    """As for a routing daemon: on lo, with a server on this node, and a strict filter."""
    conf = f"/proc/sys/net/ipv4/conf/{DEVICE}"
    shell(BALANCER, f"echo 1 > {conf}/rp_filter")
    with in_netns(BALANCER), socket.create_server(("0.0.0.0", PORT)):
        for vip, prefix in ((VIP4, 32), (VIP6, 128)):
            shell(BALANCER, f"ip address add {vip}/{prefix} dev lo")
        try:
            balancer.health.open([VIP4, VIP6])
            assert shell(BALANCER, f"cat {conf}/accept_local {conf}/rp_filter") == "1\n2\n"
            for vip, outside in COMBINATIONS:
                assert ask(balancer.health, vip, backend(lab, 1, outside)) == "be2"
            balancer.health.close()
            assert shell(BALANCER, f"cat {conf}/accept_local {conf}/rp_filter") == "0\n1\n"
        finally:
            for vip, prefix in ((VIP4, 32), (VIP6, 128)):
                shell(BALANCER, f"ip address del {vip}/{prefix} dev lo")
            shell(BALANCER, f"echo 0 > {conf}/rp_filter")


def test_a_large_request_is_cut_into_segments_that_fit(lab: Lab, path: HealthPath) -> None:
    """A TLS greeting can be larger than a segment: nothing is too large for the tunnel."""
    for vip, outside in COMBINATIONS:
        with closing(path.connection(Asked(vip, backend(lab, 2, outside)))) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect((str(vip), PORT))
            padding = b"X-Padding: " + b"x" * 6000 + b"\r\n\r\n"
            connection.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\n" + padding))
            assert connection.recv(12) == b"HTTP/1.1 200"
    errors = shell(BALANCER, f"cat /sys/class/net/{DEVICE}/statistics/tx_dropped")
    assert errors == "0\n"


def test_what_cannot_be_routed_is_counted(path: HealthPath) -> None:
    """And nobody on this node answers in the backend's place."""
    before = path.counters()
    shell(BALANCER, "ip route add unreachable 203.0.113.99")
    try:
        with (
            in_netns(BALANCER),
            socket.create_server(("0.0.0.0", PORT)),
            closing(path.connection(Asked(VIP4, IPv4Address("203.0.113.99")))) as connection,
        ):
            connection.settimeout(0.3)
            with pytest.raises(OSError):  # noqa: PT011 -- dropped on the spot, or in vain
                connection.connect((str(VIP4), PORT))
    finally:
        shell(BALANCER, "ip route del unreachable 203.0.113.99")
    after = path.counters()
    assert after["drop_no_route"] > before["drop_no_route"]
    assert after["sent"] == before["sent"]


def test_a_connection_leaves_nothing_at_either_end(lab: Lab, path: HealthPath) -> None:
    """No TIME_WAIT here, and none there."""
    node = lab.topology.backend_links[0].node
    for _ in range(20):
        with closing(path.connection(Asked(VIP4, backend(lab, 0, 4)))) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect((str(VIP4), PORT))
    assert shell(BALANCER, f"ss -Htan dst {VIP4}") == ""
    wait_until(
        lambda: shell(node, "ss -Htan state connected src :80") == "",
        seconds=120,
        what="the backend's ends to go",
    )


def test_a_vip_is_no_address_to_ask_from(lab: Lab, balancer: Balancer) -> None:
    """The answer would be a client's packet. It is asked from the next address."""
    link = lab.topology.balancer
    own, extra = link.node4[0], "198.51.100.200"
    shell(BALANCER, f"ip address add {extra}/32 dev {DEVICE}")
    try:
        balancer.health.open([VIP4, own.ip])
        for outside, to in ((4, backend(lab, 0, 4)), (6, backend(lab, 0, 6))):
            with closing(balancer.health.connection(Asked(VIP4, to))) as connection:
                assert connection.getsockname()[0] == extra, outside
        balancer.health.open([VIP4])
        with closing(balancer.health.connection(Asked(VIP4, backend(lab, 0, 4)))) as connection:
            assert connection.getsockname()[0] == str(own.ip)
    finally:
        shell(BALANCER, f"ip address del {extra}/32 dev {DEVICE}")


def test_a_backend_is_asked_from_what_clients_are_translated_to(lab: Lab) -> None:
    """Itself, without the way of marks; from the route's address while that one is elsewhere."""
    own, extra = lab.topology.balancer.node4[0].ip, IPv4Address("198.51.100.200")
    to = backend(lab, 0, 4)
    with (
        in_netns(BALANCER),
        Balancer([Device(DEVICE)], limits=SMALL, snat=Snat((extra,))) as balancer,
    ):
        balancer.health.open([VIP4])
        assert asked_from(balancer, to) == own
        shell(BALANCER, f"ip address add {extra}/32 dev {DEVICE}")
        shell(ROUTER, f"ip route add {extra} via {own}")
        try:
            assert asked_from(balancer, to) == extra
        finally:
            shell(BALANCER, f"ip address del {extra}/32 dev {DEVICE}")
            shell(ROUTER, f"ip route del {extra}")
        assert not any(balancer.health.counters().values())


def asked_from(balancer: Balancer, to: Address) -> Address:
    """Ask a backend in the way of translated packets: who asks."""
    with closing(balancer.health.connection(Asked(VIP4, to, forwarding="snat"))) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect((str(to), PORT))
        return ip_address(connection.getsockname()[0])


def test_a_beginning_that_fails_leaves_nothing(
    lab: Lab, attached: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next one is whole."""

    def refuse(*_: int) -> None:
        raise KernelError("add the rule")

    assert attached
    before = _state()
    with in_netns(BALANCER), Balancer([Device(DEVICE)], limits=SMALL) as balancer:
        with monkeypatch.context() as patched:
            patched.setattr(rules, "to_loopback", refuse)
            with pytest.raises(KernelError, match="add the rule"):
                balancer.health.open([VIP4])
        assert _state() == before
        balancer.health.open([VIP4])
        assert ask(balancer.health, VIP4, backend(lab, 0, 4)) == "be1"
    assert _state() == before


@contextmanager
def ipv6_only() -> Iterator[None]:
    """The load balancer without its IPv4 address."""
    shown = shell(BALANCER, f"ip -4 -o address show dev {DEVICE}").split()[3]
    routes = shell(BALANCER, "ip -4 route show default").strip()
    shell(BALANCER, f"ip address del {shown} dev {DEVICE}")
    try:
        yield
    finally:
        shell(BALANCER, f"ip address add {shown} dev {DEVICE}; ip route add {routes}")


def test_a_node_without_an_address_of_the_family_is_told(lab: Lab, balancer: Balancer) -> None:
    """An IPv4 VIP over IPv6 needs an IPv4 address to be answered at."""
    with ipv6_only():
        balancer.health.open([VIP4])
        with pytest.raises(DatapathError, match=f"no IPv4 address of this node to check {VIP4}"):
            balancer.health.connection(Asked(VIP4, backend(lab, 0, 6)))
    balancer.health.open([VIP4])
    assert ask(balancer.health, VIP4, backend(lab, 0, 6)) == "be1"


def test_everything_is_as_before_afterwards(lab: Lab, attached: str) -> None:
    """Rules, routes and programs go; what a killed process left is taken over."""
    assert lab
    before = _state()
    for _ in range(2):
        with in_netns(BALANCER), Balancer([Device(DEVICE)], limits=SMALL) as balancer:
            loaded = {each.id for each in balancer._program.object.programs.values()}
            assert _state() == before
            balancer.health.open([VIP4])
            balancer.health.open([VIP4])
            during = _state()
            assert ("towpath_health" in during) == (attached == "filter" or not probe.tcx())
            assert during.count("fwmark") == 2 + before.count("fwmark")
        assert_gone(loaded)
        assert _state() == before
    shell(BALANCER, "ip rule add fwmark 0x74 lookup 29808 priority 747")
    with in_netns(BALANCER), Balancer([Device(DEVICE)], limits=SMALL) as balancer:
        balancer.health.open([VIP4])
        assert _state() == during
    assert _state() == before


def _state() -> str:
    commands = (
        "ip rule",
        "ip -6 rule",
        "ip route show table 29808 2>/dev/null",
        "ip -6 route show table 29808 2>/dev/null",
        "tc qdisc show dev lo",
        "tc filter show dev lo egress | grep -o towpath_health | head -n 1",
    )
    return shell(BALANCER, "; ".join(commands) + "; true")
