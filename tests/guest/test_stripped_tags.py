# SPDX-License-Identifier: Apache-2.0
"""A network card that takes VLAN tags off frames: it doesn't, while packets are balanced."""

from __future__ import annotations

import json
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw
from tests.guest.harness_guest import ip
from tests.lab.harness_egress import frames_to
from tools.kernels.guest import NIC_MACS

from towpath import Device, LoadBalancer
from towpath.datapath.program.tags import Tags
from towpath.kernel.errors import KernelError
from towpath.kernel.net.netns import in_netns
from towpath.kernel.net.offloads import OFF, ON, RX_VLAN, Offload, State
from towpath.lab import namespaces
from towpath.lab.waiting import wait_until
from towpath.model import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator


CARDS = ("tp-card0", "tp-card1")  # the namespaces: the load balancer's, and that of all others
HOST = "/proc/1/ns/net"
SMALL = Limits(services=8, backends=32, flows=4096, table_slots=8192)
VIP, CLIENT, BACKEND, OWN = "203.0.113.10", "198.51.100.7", "192.0.2.11", "192.0.2.1"
SENT = 30
TAG = RX_VLAN[0]


def cards() -> list[str]:
    """The cards' names, where the machine has them."""
    with in_netns(HOST):
        said = subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout
    by_mac = {each["address"]: each["ifname"] for each in json.loads(said)}
    return [by_mac[mac] for mac in NIC_MACS]


@pytest.fixture(scope="module")
def names() -> Iterator[list[str]]:
    """The cards, each in a namespace, with a wire between them; those go back by themselves."""
    found = cards()
    with ExitStack() as undo:
        for where, name in zip(CARDS, found, strict=True):
            namespaces.create(where)
            undo.callback(namespaces.remove, where)
            with in_netns(HOST):
                target = Path("/run/netns", where).resolve()
                subprocess.run(["ip", "link", "set", name, "netns", str(target)], check=True)
            with in_netns(where):
                Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            # It has a filter too, for the VLANs that it has devices for.
            ip(where, f"link set {name} up promisc on")
        ip(
            CARDS[0],
            f"address add {OWN}/24 dev {found[0]}",
            f"neighbour add {BACKEND} lladdr {NIC_MACS[1]} dev {found[0]}",
        )
        yield found


def frame(number: int, vlan: int | None) -> bytes:
    """A client's datagram."""
    link = Ether(src=NIC_MACS[1], dst=NIC_MACS[0])
    packet = IP(src=CLIENT, dst=VIP) / UDP(sport=1024 + number, dport=53) / Raw(b"towpath")
    return bytes((link if vlan is None else link / Dot1Q(vlan=vlan, prio=3)) / packet)


def tags_of(balanced: list[bytes]) -> set[int | None]:
    """The tags of frames."""
    return {Ether(each)[Dot1Q].vlan if Dot1Q in Ether(each) else None for each in balanced}


@contextmanager
def balancing(name: str, mode: Any) -> Iterator[LoadBalancer]:
    """A load balancer on the first card."""
    with in_netns(CARDS[0]), LoadBalancer(Device(name, mode), limits=SMALL) as balancer:
        balancer.add_service(
            "dns", vip=VIP, port=53, protocol="udp", backends=[BACKEND], table_size=251
        )
        yield balancer


def exchange(names: list[str], balancer: LoadBalancer, vlan: int | None) -> list[bytes]:
    """Send datagrams, and wait until each is back."""
    found: list[bytes] = []
    with frames_to(CARDS[1], names[1]) as read:
        for number in range(SENT):
            send(names[1], frame(number, vlan))
            found.append(read())
    wait_until(lambda: bool(balancer.counters().verdicts), seconds=10, what="counters")
    return found


def send(name: str, made: bytes) -> None:
    """Send a frame from the second card."""
    with in_netns(CARDS[1]), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((name, 0))
        sender.send(made)


@pytest.mark.parametrize("mode", ["auto", "generic"])
def test_a_tag_comes_back(names: list[str], mode: str) -> None:
    """What came in a VLAN leaves in it, and the card is as it was in the end."""
    with in_netns(CARDS[0]):
        assert TAG.state(names[0]) == State(on=True, fixed=False)
    with balancing(names[0], mode) as balancer:
        assert not TAG.state(names[0]).on
        for vlan in (10, None, 4094):
            assert tags_of(exchange(names, balancer, vlan)) == {vlan}
    with in_netns(CARDS[0]):
        assert TAG.state(names[0]) == State(on=True, fixed=False)


def test_who_switches_it_on_again_is_undone(names: list[str]) -> None:
    """And counted, as with any other setting."""
    with balancing(names[0], "auto") as balancer, in_netns(CARDS[0]):
        before = balancer._balancer.followed.settings
        TAG.write(names[0], ON)
        balancer._balancer.follow()
        assert TAG.read(names[0]) == OFF
        assert balancer._balancer.followed.settings == before + 1


def test_without_that_tags_are_lost(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The card hands them over beside the frames, and the kernel none to a driver's program.

    In generic mode they stay with the packet, and it is only the program that doesn't know of them.
    """
    monkeypatch.setattr(Tags, "_keep", lambda *_: [])
    with balancing(names[0], "auto") as balancer:
        (device,) = balancer.devices()
        lost = device.mode == "native"
        assert tags_of(exchange(names, balancer, 10)) == {None if lost else 10}


def test_a_card_that_cannot_be_told_so(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its VLANs would be mixed up: with VLAN devices it is refused, without it is told."""
    monkeypatch.setattr(Offload, "state", lambda *_: State(on=True, fixed=True))
    with balancing(names[0], "generic") as balancer:
        assert not balancer._balancer.troubles
        ip(CARDS[0], f"link add {names[0]}.10 link {names[0]} type vlan id 10")
        try:
            with in_netns(CARDS[0]):
                balancer._balancer.follow()
                (trouble,) = balancer._balancer.troubles
                assert f"packets of {names[0]}.10 would be balanced as if" in trouble
            balancer.close()
            with pytest.raises(
                KernelError, match=f"can't be switched off: packets of {names[0]}.10"
            ):
                balancing(names[0], "generic").__enter__()
        finally:
            ip(CARDS[0], f"link delete {names[0]}.10")
