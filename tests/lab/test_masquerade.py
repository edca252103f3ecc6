# SPDX-License-Identifier: Apache-2.0
"""Pods' traffic through a node that masquerades it."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_masquerade import (
    FAR,
    NEAR,
    NEAR6,
    PINS,
    POD,
    RULE,
    SECTION,
    Lab,
    checksum,
    ip,
    lab,
    moved,
    transfer,
    wait,
)

from towpath.datapath.masquerade.follower import Follower
from towpath.kernel.bpf import links
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.hooks import Tc
from towpath.kernel.errors import KernelError
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

MEGABYTES = 16


@pytest.fixture
def net() -> Iterator[Lab]:
    """A pod, a node, a world."""
    with lab() as made:
        yield made


@pytest.fixture
def masq(net: Lab) -> Iterator[Follower]:
    """Masquerade on the node."""
    assert net
    made = Follower(SECTION, PINS)
    yield made
    made.detach()


@pytest.mark.parametrize("at", [NEAR, FAR, NEAR6])
def test_a_connection_carries_what_is_sent_both_ways(net: Lab, masq: Follower, at: str) -> None:
    """From the address that the way there has: the case of the talk. Large segments included."""
    since = moved(masq)
    listener = net.listening(at, 80)
    ours, theirs, seen = net.connect(at, 80, listener)
    assert seen == {NEAR: "192.168.0.1", FAR: "10.0.0.1", NEAR6: "2001:db8:1::1"}[at]
    transfer(ours, theirs, MEGABYTES << 20)
    transfer(theirs, ours, MEGABYTES << 20)
    counted = since()
    assert counted["from_pod.bound"] == 1
    assert not any("drop" in name for name in counted), counted
    assert not any(name.startswith("to_net.stack") for name in counted), counted


@pytest.mark.parametrize("size", [1, 1400, 9000, 60000])
@pytest.mark.parametrize("at", [NEAR, NEAR6])
def test_datagrams_of_any_size_come_and_are_answered(
    net: Lab, masq: Follower, at: str, size: int
) -> None:
    """Also such as come in fragments."""
    since = moved(masq)
    server = net.socket(net.world, socket.SOCK_DGRAM, at, 53)
    client = net.socket(net.pod, socket.SOCK_DGRAM, "::" if ":" in at else "")
    data = os.urandom(size)
    for _ in range(3):
        client.sendto(data, (at, 53))
        got, whom = server.recvfrom(1 << 16)
        assert got == data
        assert whom[0] in {"192.168.0.1", "2001:db8:1::1"}
        assert 61000 <= whom[1] <= 65535
        server.sendto(data[::-1], whom)
        assert client.recvfrom(1 << 16)[0] == data[::-1]
    assert not any("drop" in name for name in since()), since()


def test_a_ping_is_answered(net: Lab, masq: Follower) -> None:
    """Its identifier comes back as it was."""
    assert masq
    with in_netns(net.pod):
        raw = net.undo.enter_context(
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        )
    raw.settimeout(60)
    body = struct.pack("!BBHHH", 8, 0, 0, 4711, 1) + b"0123456789"
    request = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    raw.sendto(request, (NEAR, 0))
    answer = raw.recv(1500)
    assert answer[20:21] == b"\0"
    assert answer[24:] == request[4:]
    assert checksum(answer[20:]) == 0


def test_each_hop_says_that_it_is_one(net: Lab, masq: Follower) -> None:
    """The node, and what is behind it."""
    assert masq
    client = net.socket(net.pod, socket.SOCK_DGRAM)
    client.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    hops = []
    for ttl in (1, 2):
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        client.sendto(b"x", (NEAR, 33434))
        poll = select.poll()
        poll.register(client, select.POLLERR)
        assert poll.poll(60_000)
        _, [(_, _, data)], _, _ = client.recvmsg(1, 512, socket.MSG_ERRQUEUE)
        kind = data[5]
        hops.append((kind, socket.inet_ntoa(data[20:24])))
    assert hops == [(11, "10.244.0.1"), (3, NEAR)]


def test_a_path_with_a_smaller_mtu_is_found(net: Lab, masq: Follower) -> None:
    """The kernel says what fits, by the node's route."""
    assert masq
    ip("route add 10.0.0.100/32 dev eth1 mtu lock 1300")
    client = net.socket(net.pod, socket.SOCK_DGRAM)
    client.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, DO
    client.connect((FAR, 53))
    client.send(bytes(1350))

    def told() -> bool:
        try:
            client.send(bytes(1350))
        except OSError as error:
            return error.errno == errno.EMSGSIZE
        return False

    wait(told, "the pod to be told")
    assert client.getsockopt(socket.IPPROTO_IP, 14) == 1300  # IP_MTU


@pytest.mark.parametrize("by", ["fib", "routes"])
def test_a_routes_source_and_a_secondary_address(net: Lab, by: str) -> None:
    """As the kernel's routes say, whether its FIB tells it or they are read."""
    masq = Follower(SECTION, PINS, named_sources=by == "fib")
    net.undo.callback(masq.detach)
    server = net.socket(net.world, socket.SOCK_DGRAM, FAR, 53)

    def seen() -> str:
        with net.socket(net.pod, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", (FAR, 53))
            return str(server.recvfrom(10)[1][0])

    assert seen() == "10.0.0.1"
    ip("addr add 10.0.0.7/24 dev eth1")
    ip("route replace 10.0.0.100/32 dev eth1 src 10.0.0.7")
    wait(lambda: known(masq, "10.0.0.7"), "the address")
    wait(lambda: seen() == "10.0.0.7", "the route's source")
    ip("route del 10.0.0.100/32 dev eth1")
    ip("nexthop add id 7 dev eth1")
    ip("route replace 10.0.0.100/32 nhid 7 src 10.0.0.7")
    wait(lambda: seen() == "10.0.0.7", "the source of a route by a nexthop object")
    ip("route del 10.0.0.100/32 nhid 7")
    wait(lambda: seen() == "10.0.0.1", "the network's source")


def test_rules_that_look_at_ports_are_followed(net: Lab, masq: Follower) -> None:
    """Then each flow's way is asked for; before and after that one does for all to a remote."""
    state = masq.asked(lambda node: node.program.maps["masq_states"])
    assert int(state.lookup(0)["alike"]) == 15
    servers = {port: net.socket(net.world, socket.SOCK_DGRAM, FAR, port) for port in (53, 54)}
    client = net.socket(net.pod, socket.SOCK_DGRAM)

    def seen(port: int) -> str:
        client.sendto(b"x", (FAR, port))
        return str(servers[port].recvfrom(10)[1][0])

    assert [seen(53), seen(54)] == ["10.0.0.1"] * 2
    ip("route add 10.0.0.100/32 via 192.168.0.100 table 100")
    ip("rule add ipproto udp dport 54 lookup 100")
    wait(lambda: seen(54) == "192.168.0.1", "the rule")
    masq.asked(lambda node: node.sync())
    assert int(state.lookup(0)["alike"]) == 10
    assert [seen(53), seen(54), seen(53)] == ["10.0.0.1", "192.168.0.1", "10.0.0.1"]
    ip("rule del ipproto udp dport 54 lookup 100")
    masq.asked(lambda node: node.sync())
    assert int(state.lookup(0)["alike"]) == 15
    ip("route add 10.99.0.0/16 nexthop via 10.0.0.100 nexthop via 192.168.0.100")
    wait(lambda: int(state.lookup(0)["alike"]) == 0, "a route with two ways")
    masq.asked(lambda node: node.sync())
    assert int(state.lookup(0)["alike"]) == 10


def test_rules_that_look_at_sources_are_followed(net: Lab, masq: Follower) -> None:
    """Then each pod's way is asked for, though both send to one remote."""
    state = masq.asked(lambda node: node.program.maps["masq_states"])
    other = "10.244.0.3"
    ip(f"addr add {other}/24 dev eth0", net.pod)
    server = net.socket(net.world, socket.SOCK_DGRAM, FAR, 53)
    clients = {pod: net.socket(net.pod, socket.SOCK_DGRAM, pod) for pod in (POD, other)}

    def seen(pod: str) -> str:
        clients[pod].sendto(b"x", (FAR, 53))
        return str(server.recvfrom(10)[1][0])

    assert [seen(POD), seen(other)] == ["10.0.0.1"] * 2
    ip("route add 10.0.0.100/32 via 192.168.0.100 table 100")
    ip(f"rule add from {other} lookup 100")
    wait(lambda: seen(other) == "192.168.0.1", "the rule")
    masq.asked(lambda node: node.sync())
    assert int(state.lookup(0)["alike"]) == 11
    assert [seen(pod) for pod in (POD, other) * 20] == ["10.0.0.1", "192.168.0.1"] * 20


def test_several_prefixes_of_ipv6(net: Lab, masq: Follower) -> None:
    """The source is the one that the kernel would choose: near, and not deprecated."""
    other = "2001:db8:7::100"
    ip(f"addr add {other}/64 dev eth0 nodad", net.world)
    ip(
        "addr add 2001:db8:7::1/64 dev eth0 nodad\n"
        "addr add 2001:db8:7::5/64 dev eth0 nodad preferred_lft 0\n"
        "addr add 2001:db8:1::5/64 dev eth0 nodad preferred_lft 0"
    )
    wait(lambda: known(masq, "2001:db8:1::5"), "the addresses")
    for at, source in ((NEAR6, "2001:db8:1::1"), (other, "2001:db8:7::1")):
        listener = net.listening(at, 80)
        assert net.connect(at, 80, listener)[2] == source
    ip("addr del 2001:db8:7::1/64 dev eth0")
    wait(lambda: not known(masq, "2001:db8:7::1"), "the address to go")
    # RFC 6724: rather another prefix than a deprecated address.
    assert net.connect(other, 80, listener)[2] == "2001:db8:1::1"


def test_rules_that_there_is_no_room_for_change_nothing(net: Lab, masq: Follower) -> None:
    """Those of before hold."""
    many = tuple(ip_network(f"10.{n >> 8}.{n & 255}.0/24") for n in range(1 << 14))
    wanted = replace(SECTION, rules=(RULE, replace(RULE, prefixes=many[::2])))
    with pytest.raises(KernelError, match="masq_"):
        masq.replace_rules(wanted)
    listener = net.listening(FAR, 80)
    ours, theirs, seen = net.connect(FAR, 80, listener)
    assert seen == "10.0.0.1"
    transfer(ours, theirs, 1 << 20)


def test_an_address_that_goes_takes_its_connections_along(net: Lab, masq: Follower) -> None:
    """They get an error, at once; nothing leaves as it is."""
    ip("addr add 10.0.0.7/24 dev eth1")
    ip("route replace 10.0.0.100/32 dev eth1 src 10.0.0.7")
    wait(lambda: known(masq, "10.0.0.7"), "the address")
    listener = net.listening(FAR, 80)
    ours, theirs, seen = net.connect(FAR, 80, listener)
    assert seen == "10.0.0.7"
    transfer(ours, theirs, 1 << 20)
    with in_netns(net.world):
        sniffer = net.undo.enter_context(
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        )
    sniffer.settimeout(0)
    ip("route del 10.0.0.100/32 dev eth1")
    ip("addr del 10.0.0.7/24 dev eth1")

    def broken() -> bool:
        try:
            ours.send(b"x")
        except OSError as error:
            return error.errno in (errno.ECONNRESET, errno.EPIPE)
        return False

    wait(broken, "the connection to end")
    assert not any(socket.inet_aton(POD) in frame for frame in frames(sniffer))


def known(masq: Follower, address: str) -> bool:
    """Whether there is a number for an address."""
    return ip_address(address) in masq.asked(lambda node: dict(node.sources.by_address))


def frames(sniffer: socket.socket) -> Iterator[bytes]:
    """What has come."""
    while True:
        try:
            yield sniffer.recv(2000)
        except BlockingIOError:
            return


def test_connections_outlive_the_process(net: Lab) -> None:
    """They go on without it, and with the next one."""
    first = Follower(SECTION, PINS)
    listener = net.listening(FAR, 80)
    ours, theirs, _ = net.connect(FAR, 80, listener)
    transfer(ours, theirs, 1 << 20)
    first.close()
    transfer(ours, theirs, 1 << 20)
    second = Follower(SECTION, PINS)
    since = moved(second)
    transfer(ours, theirs, 1 << 20)
    transfer(theirs, ours, 1 << 20)
    assert "from_pod.bound" not in since()
    second.close()
    larger = replace(SECTION, flows=65536)
    third = Follower(larger, PINS)
    transfer(ours, theirs, 1 << 20)
    transfer(theirs, ours, 1 << 20)
    third.detach()
    assert not PINS.exists()


def test_devices_that_come_and_go_are_followed(net: Lab, masq: Follower) -> None:
    """A way out that wasn't there, and another pod."""
    with in_netns(net.world):
        ip(
            f"link add eth2 type veth peer name eth2 netns /proc/{os.getpid()}/fd/{net.node}\n"
            "addr add 172.16.0.100/24 dev eth2\nlink set eth2 up"
        )
    ip("addr add 172.16.0.1/24 dev eth2\nlink set eth2 up")
    index = socket.if_nametoindex("eth2")
    wait(
        lambda: masq.asked(
            lambda node: (
                index in node.roles and bool(node.program.maps["masq_devices"].lookup(index))
            )
        ),
        "the device",
    )
    listener = net.listening("172.16.0.100", 80)
    ours, theirs, seen = net.connect("172.16.0.100", 80, listener)
    assert seen == "172.16.0.1"
    transfer(ours, theirs, 1 << 20)
    ip("link del eth2")
    wait(lambda: masq.asked(lambda node: index not in node.roles), "the device to go")
    assert masq.asked(lambda node: node.program.maps["masq_devices"].lookup(index)) is None


def test_what_comes_in_to_a_pod_is_answered_as_it_is(net: Lab, masq: Follower) -> None:
    """Where the world has a route to pods."""
    since = moved(masq)
    ip("route add 10.244.0.0/24 via 10.0.0.1", net.world)
    with in_netns(net.pod):
        server = net.undo.enter_context(socket.create_server((POD, 80)))
    ours = net.socket(net.world, socket.SOCK_STREAM, FAR)
    ours.connect((POD, 80))
    theirs, peer = server.accept()
    net.undo.enter_context(theirs)
    assert peer[0] == FAR
    transfer(ours, theirs, 1 << 20)
    transfer(theirs, ours, 1 << 20)
    assert "from_pod.bound" not in since()


def test_through_the_stack(net: Lab) -> None:
    """Netfilter sees all of it."""
    made = Follower(replace(SECTION, through_stack=True), PINS)
    try:
        since = moved(made)
        listener = net.listening(FAR, 80)
        ours, theirs, seen = net.connect(FAR, 80, listener)
        assert seen == "10.0.0.1"
        transfer(ours, theirs, MEGABYTES << 20)
        transfer(theirs, ours, MEGABYTES << 20)
        counted = since()
        assert counted["to_net.stack"] > 0
        assert counted["from_net.stack"] > 0
        assert "from_pod.sent" not in counted
    finally:
        made.detach()


def test_excluded_destinations_see_the_pod(net: Lab) -> None:
    """And the rule can change while it is there."""
    rule = replace(RULE, exclude=(ip_network("10.0.0.0/24"),))
    made = Follower(replace(SECTION, rules=(rule,)), PINS)
    try:
        ip("route add 10.244.0.0/24 via 10.0.0.1", net.world)
        listener = net.listening(FAR, 80)
        _, _, seen = net.connect(FAR, 80, listener)
        assert seen == POD
        made.replace_rules(SECTION)
        # What a CPU knows of rules holds until its next jiffy.
        wait(lambda: net.connect(FAR, 80, listener)[2] == "10.0.0.1", "the other rules")
    finally:
        made.detach()


def test_a_socket_that_takes_a_port_is_seen(net: Lab, masq: Follower) -> None:
    """It gets what is sent to it, and no new flow gets its port."""
    own = net.socket(net.node, socket.SOCK_DGRAM, "", 61234)
    wait(lambda: masq.asked(lambda node: 61234 in node.taken[17]), "the socket to be seen")
    other = net.socket(net.world, socket.SOCK_DGRAM, FAR, 53)
    other.sendto(b"for the node", ("10.0.0.1", 61234))
    assert own.recv(100) == b"for the node"
    own.close()
    wait(lambda: masq.asked(lambda node: 61234 not in node.taken[17]), "it to be gone")


def test_a_way_out_without_frames(net: Lab, masq: Follower) -> None:
    """A tunnel's, whose packets have no link-layer header: by the stack, and translated."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    net.undo.callback(os.close, tun)
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))  # TUNSETIFF
    ip("addr add 172.16.0.1/24 dev tun0\nlink set tun0 up")
    index = socket.if_nametoindex("tun0")
    wait(lambda: masq.asked(lambda node: index in node.roles), "the device")
    client = net.socket(net.pod, socket.SOCK_DGRAM)
    got: list[bytes] = []

    def came() -> bool:
        client.sendto(b"question", ("172.16.0.9", 53))
        got.extend(each for each in packets(tun) if each.endswith(b"question"))
        return bool(got)

    wait(came, "a packet")
    assert socket.inet_ntoa(got[0][12:16]) == "172.16.0.1"
    (port,) = struct.unpack_from("!H", got[0], 20)
    assert 61000 <= port <= 65535
    body = struct.pack("!HHHH", 53, port, 14, 0) + b"answer"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 34, 0, 0, 64, 17, 0)
    ends = socket.inet_aton("172.16.0.9") + socket.inet_aton("172.16.0.1")
    check = struct.pack("!H", checksum(head + ends))
    os.write(tun, head[:10] + check + ends + body)
    assert client.recv(100) == b"answer"


def packets(tun: int) -> Iterator[bytes]:
    """What has been sent by a tunnel."""
    while True:
        try:
            yield os.read(tun, 2000)
        except BlockingIOError:
            return


def test_what_somebody_undoes_is_done_again(net: Lab, masq: Follower) -> None:
    """A program that is detached, pins that are removed."""
    index = socket.if_nametoindex("eth1")
    links.from_pin(PINS / "links" / f"{index}-egress").detach()
    wait(lambda: bool(Tc(index, "egress").programs()), "the program to be back")
    for directory in ("links", "maps"):
        remove_pins(PINS / directory)
    PINS.rmdir()
    wait((PINS / "maps" / "masq_flows").exists, "the pins to be back")
    wait(lambda: len(list((PINS / "links").iterdir())) == 6, "the links' pins to be back")
    assert masq
    assert net.connect(FAR, 80, net.listening(FAR, 80))[2] == "10.0.0.1"


@pytest.mark.parametrize("named", ["cni0", "veth*"])
def test_pods_on_a_bridge(net: Lab, named: str) -> None:
    """Whether the rule names the bridge or its ports; answers go by the bridge."""
    ip(
        "link add cni0 type bridge\naddr flush dev veth1\nlink set veth1 master cni0\n"
        "addr add 10.244.0.1/24 dev cni0\naddr add fd00:1::1/64 dev cni0 nodad\nlink set cni0 up"
    )
    made = Follower(replace(SECTION, rules=(replace(RULE, devices=(named,)),)), PINS)
    try:
        since = moved(made)
        for at in (FAR, NEAR6):
            listener = net.listening(at, 80)
            ours, theirs, seen = net.connect(at, 80, listener)
            assert seen == {FAR: "10.0.0.1", NEAR6: "2001:db8:1::1"}[at]
            transfer(ours, theirs, MEGABYTES << 20)
            transfer(theirs, ours, MEGABYTES << 20)
        counted = since()
        assert counted["from_pod.bound"] == 2
        assert not any("drop" in name for name in counted), counted
    finally:
        made.detach()


def test_a_client_fetches_a_page(net: Lab, masq: Follower) -> None:
    """With curl, from a server that says who has asked."""
    assert masq
    with in_netns(net.world):
        server = HTTPServer((FAR, 80), Telling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    net.undo.callback(server.server_close)
    net.undo.callback(server.shutdown)
    with in_netns(net.pod):
        ran = subprocess.run(
            ["curl", "--silent", "--fail", "--max-time", "60", f"http://{FAR}/"],
            capture_output=True,
            text=True,
            check=True,
        )
    assert ran.stdout == "10.0.0.1"


class Telling(BaseHTTPRequestHandler):
    """Answers with the address of who asks."""

    def do_GET(self) -> None:
        """Answer."""
        body = str(self.client_address[0]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
