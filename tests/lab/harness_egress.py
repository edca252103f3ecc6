# SPDX-License-Identifier: Apache-2.0
"""A load balancer with one wire to its clients, and devices of many kinds by which packets leave.

What leaves is read where it arrives: at the far end of a wire, or from the file of a tap device.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Literal

from pyroute2.ethtool.ioctl import IoctlEthtool
from tests.lab.harness_handoff import BALANCER, MACS, NEAR, PORT, TIMEOUT, VIPS, WIRE, run

from towpath.datapath.balancer import Balancer
from towpath.kernel.bpf import bpffs
from towpath.kernel.bpf.fragments import taking_fragments
from towpath.kernel.bpf.links import attach_xdp
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.netns import in_netns
from towpath.model import Backend, Device, Limits, Protocol, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from tests.lab.harness_handoff import Mode

    Address = IPv4Address | IPv6Address

Peer = Literal["nothing", "gro", "program"]
"""What has a veth's peer take frames from XDP."""

BACKENDS = "tph-be"  # the namespace at the other end
PINS = bpffs.ROOT / "towpath-egress"
OUT = "out0"  # the load balancer's device towards it
SMALL = Limits(services=4, backends=16, flows=4096, table_slots=4096)
NET = {4: "10.5.0.{}/24", 6: "fd05::{}/64"}
BACKEND = {4: ip_address("10.5.0.2"), 6: ip_address("fd05::2")}
NEAR_NET = {4: "10.6.0.{}/24", 6: "fd06::{}/64"}
NEAR_BACKEND = {4: ip_address("10.6.0.2"), 6: ip_address("fd06::2")}
BACKEND_MAC, NEAR_MAC = "02:00:00:00:05:02", "02:00:00:00:00:11"
_SOL_PACKET, _PACKET_AUXDATA, _VLAN_VALID = 263, 8, 1 << 4
_AUXDATA = struct.Struct("IIIHHHH")  # struct tpacket_auxdata
_TUNSETIFF, _IFF_TUN, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 1, 2, 0x1000


@contextmanager
def wire(peer: Peer = "program") -> Iterator[None]:
    """The namespaces, and the clients' wire between two of them."""
    with ExitStack() as undo:
        for name in (BALANCER, NEAR, BACKENDS):
            run("ip", "netns", "add", name)
            undo.callback(run, "ip", "netns", "delete", name)
        pair(NEAR, WIRE, NEAR, NEAR_NET, mac=NEAR_MAC)
        # Nobody has to be asked for, so that every packet is XDP's to send if it can.
        for address in NEAR_BACKEND.values():
            run("ip", "-n", BALANCER, "neigh", "add", str(address), "lladdr", NEAR_MAC, "dev", NEAR)
        undo.enter_context(taking(NEAR, WIRE, peer))
        yield


def pair(name: str, far: str, where: str, net: dict[int, str] | None, *, mac: str) -> None:
    """A pair of veth devices: one of the load balancer's, the other in another namespace."""
    own = MACS[NEAR] if name == NEAR else "02:00:00:00:05:01"
    link = ("link", "add", name, "address", own, "netns", BALANCER, "type", "veth")
    run("ip", *link, "peer", "name", far, "address", mac, "netns", where)
    addressed(BALANCER, name, net, 1)
    addressed(where, far, net, 2)


def addressed(where: str, device: str, net: dict[int, str] | None, host: int) -> None:
    """Set a device up, with its addresses on a network."""
    run("ip", "-n", where, "link", "set", device, "up", "addrgenmode", "none")
    for address in (net or {}).values():
        nodad = ("nodad",) if ":" in address else ()
        run("ip", "-n", where, "address", "add", address.format(host), "dev", device, *nodad)


@contextmanager
def taking(where: str, device: str, peer: Peer) -> Iterator[None]:
    """Have a device take what comes by XDP, or not."""
    with ExitStack() as undo:
        with in_netns(where):
            if peer == "gro":
                set_gro(device, on=True)
            elif peer == "program":
                loaded = undo.enter_context(taking_fragments(BpfObject.packaged("lab_pass")))
                loaded.load()
                index = socket.if_nametoindex(device)
                undo.enter_context(attach_xdp(loaded.programs["pass"], index, "native"))
        yield


def set_gro(device: str, *, on: bool) -> None:
    """Switch a device's GRO, in this namespace."""
    with closing(IoctlEthtool(device)) as control:
        control.set_offload_flag("generic-receive-offload", int(on))


# ---- Devices by which packets leave --------------------------------------------------------------


def known(device: str = OUT, mac: str = BACKEND_MAC) -> None:
    """Give the backend's addresses their MAC address on a device of the load balancer's."""
    for address in BACKEND.values():
        run("ip", "-n", BALANCER, "neigh", "add", str(address), "lladdr", mac, "dev", device)


@contextmanager
def veth(peer: Peer = "program") -> Iterator[Callable[[int], bytes]]:
    """Another wire; gives a function that returns the next packet of a protocol at its far end."""
    pair(OUT, WIRE, BACKENDS, NET, mac=BACKEND_MAC)
    known()
    with taking(BACKENDS, WIRE, peer), received(BACKENDS, WIRE) as read:
        yield read


@contextmanager
def bridge() -> Iterator[Callable[[int], bytes]]:
    """A bridge on top of another wire."""
    pair("port0", WIRE, BACKENDS, None, mac=BACKEND_MAC)
    addressed(BACKENDS, WIRE, NET, 2)
    run("ip", "-n", BALANCER, "link", "add", OUT, "type", "bridge")
    run("ip", "-n", BALANCER, "link", "set", "port0", "master", OUT)
    addressed(BALANCER, OUT, NET, 1)
    known()
    with received(BACKENDS, WIRE) as read:
        yield read


@contextmanager
def macvlan() -> Iterator[Callable[[int], bytes]]:
    """A macvlan on top of another wire."""
    pair("port0", WIRE, BACKENDS, None, mac=BACKEND_MAC)
    addressed(BACKENDS, WIRE, NET, 2)
    run("ip", "-n", BALANCER, "link", "add", OUT, "link", "port0", "type", "macvlan")
    addressed(BALANCER, OUT, NET, 1)
    known()
    with received(BACKENDS, WIRE) as read:
        yield read


@contextmanager
def vxlan() -> Iterator[Callable[[int], bytes]]:
    """A VXLAN tunnel through another wire: it has Ethernet frames of its own."""
    pair("port0", WIRE, BACKENDS, {4: "10.7.0.{}/24"}, mac=BACKEND_MAC)
    options = ("type", "vxlan", "id", "7", "dstport", "4789")
    for where, name, own, other in ((BALANCER, OUT, 1, 2), (BACKENDS, OUT, 2, 1)):
        ends = ("local", f"10.7.0.{own}", "remote", f"10.7.0.{other}")
        mac = f"02:00:00:00:07:0{own}"
        run("ip", "-n", where, "link", "add", name, "address", mac, *options, *ends)
        addressed(where, name, NET, own)
    known(mac="02:00:00:00:07:02")
    with received(BACKENDS, OUT) as read:
        yield read


@contextmanager
def tap() -> Iterator[Callable[[int], bytes]]:
    """A tap device, whose frames come out of its file."""
    with _opened(_IFF_TAP) as file:
        run("ip", "-n", BALANCER, "link", "set", OUT, "address", "02:00:00:00:05:01")
        addressed(BALANCER, OUT, NET, 1)
        known()
        yield lambda protocol: _from_file(file, protocol, 14)


@contextmanager
def tun() -> Iterator[Callable[[int], bytes]]:
    """A tun device: packets without frames."""
    with _opened(_IFF_TUN) as file:
        addressed(BALANCER, OUT, NET, 1)
        yield lambda protocol: _from_file(file, protocol, 0)


@contextmanager
def _opened(kind: int) -> Iterator[int]:
    with in_netns(BALANCER):
        file = os.open("/dev/net/tun", os.O_RDWR)
    try:
        with in_netns(BALANCER):
            fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", OUT.encode(), kind | _IFF_NO_PI))
        yield file
    finally:
        os.close(file)


def _from_file(file: int, protocol: int, header: int) -> bytes:
    while True:
        ready, _, _ = select.select([file], [], [], TIMEOUT)
        assert ready, "nothing more came"
        packet = os.read(file, 1 << 16)[header:]
        if carries(packet, protocol):
            return packet


def carries(packet: bytes, protocol: int) -> bool:
    """Whether an IP packet has that protocol next."""
    return (packet[9] if packet[0] >> 4 == 4 else packet[6]) == protocol


@contextmanager
def received(where: str, device: str) -> Iterator[Callable[[int], bytes]]:
    """Gives a function that returns the next IP packet of a protocol that a device receives."""
    with in_netns(where):
        capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with capture:
        capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        with in_netns(where):
            capture.bind((device, 3))
        capture.settimeout(TIMEOUT)
        yield lambda protocol: _from_socket(capture, protocol)


@contextmanager
def frames_to(where: str, device: str) -> Iterator[Callable[[], bytes]]:
    """Gives a function that returns the next frame that is for a device, its tag in it."""
    with in_netns(where):
        capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with capture:
        capture.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        with in_netns(where):
            capture.bind((device, 3))
        capture.settimeout(TIMEOUT)
        yield lambda: _frame_from(capture)


def _frame_from(capture: socket.socket) -> bytes:
    while True:
        frame, ancillary, _, sender = capture.recvmsg(1 << 16, 256)
        if sender[2] != socket.PACKET_HOST:
            continue
        (data,) = (each for level, kind, each in ancillary if kind == _PACKET_AUXDATA)
        status, _, _, _, _, tag, protocol = _AUXDATA.unpack(data)
        tagged = struct.pack("!HH", protocol, tag) if status & _VLAN_VALID else b""
        return frame[:12] + tagged + frame[12:]


def _from_socket(capture: socket.socket, protocol: int) -> bytes:
    while True:
        frame, sender = capture.recvfrom(1 << 16)
        packet = frame[14:]
        if sender[2] != socket.PACKET_OUTGOING and carries(packet, protocol):
            return packet


# ---- The load balancer ---------------------------------------------------------------------------


@contextmanager
def balancing(inside: int, backend: Address, *, mode: Mode = "native") -> Iterator[Balancer]:
    """The load balancer on the clients' wire alone, with one service."""
    service = Service(
        "web",
        VIPS[inside],
        PORT,
        Protocol.UDP,
        (Backend(backend),),
        table_size=251,
    )
    with in_netns(BALANCER), Balancer([Device(NEAR, mode)], limits=SMALL) as balancer:
        balancer.apply([service])
        yield balancer
