# SPDX-License-Identifier: Apache-2.0
"""What keeping many next hops resolved costs: requests on the network, and time.

The network is a link with a peer that has all the addresses. Beside it the kernel's floor: the
same entries, asked for all at once, and nobody there who follows anything.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from towpath.bench.forward_network import set_sysctls
from towpath.bench.neigh_ways import HOPS, SECONDS
from towpath.datapath.neigh.follower import Follower
from towpath.datapath.neigh.keeper import REQUESTS_PER_SECOND, Keeper
from towpath.datapath.neigh.next_hops import Destination
from towpath.kernel.net import interfaces, neighbours
from towpath.kernel.net.messages import ROUTE, Netlink
from towpath.kernel.net.neighbours import Key, Request
from towpath.kernel.net.netns import in_netns, new_netns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEVICE, PEER = "tp-node", "tp-peer"
NETWORK = int(IPv4Address("198.18.0.0"))
BITS = 15

MANY = 10_000
_PATIENCE = 30.0
_NODE = IPv4Address("198.19.255.254")
_PEERS = "198.18.0.0/16"
_FIRST = 256
_ARP, _REQUEST = 0x0806, 1
_TIMESTAMP_NS, _RCVBUFFORCE = 35, 33  # SO_*
_TIMESPEC = struct.Struct("=qq")
_SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    # As neither end is short of room for neighbours.
    "net/ipv4/neigh/default/gc_thresh3": "65536",
}


@dataclass(frozen=True, slots=True)
class Requests:
    """ARP requests that were seen at the other end of the link."""

    requests: int
    most_in_a_second: int
    """In any second, wherever it begins."""
    resolved: int
    """Entries with a MAC address at the end."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """All of it."""

    kernel: str
    hops: int
    seconds: float
    managed: Requests
    floor: Requests
    """Of the kernel's own: the entries are asked for at once, and left to it."""
    many: int
    planned_seconds: float
    """From when so many are wanted to when it is known by which next hops they are reached."""
    resync_ms: float
    """To read all anew, when nothing has changed."""
    resync_cpu_ms: float
    """Of the process, for the same."""

    def as_json(self) -> dict[str, Any]:
        """As ``towpath bench neigh --load --json`` prints it."""
        return asdict(self)


@dataclass
class _Seen:
    """When each request came, in seconds, as the kernel has noted it."""

    times: list[float] = field(default_factory=list)
    ended: bool = False

    def listen(self, namespace: int) -> None:
        """Until it is ended."""
        with (
            in_netns(namespace),
            socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ARP)) as raw,
        ):
            raw.bind((PEER, _ARP))
            raw.setsockopt(socket.SOL_SOCKET, _TIMESTAMP_NS, 1)
            raw.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 1 << 25)
            raw.settimeout(0.1)
            while not self.ended:
                try:
                    packet, ((_, _, stamp),), _, (_, _, kind, *_) = raw.recvmsg(64, 64)
                except TimeoutError:
                    continue
                if kind != socket.PACKET_OUTGOING and packet[7] == _REQUEST:
                    seconds, nanoseconds = _TIMESPEC.unpack(stamp)
                    self.times.append(seconds + nanoseconds / 1e9)

    def most_in_a_second(self) -> int:
        """The most that came in any second."""
        most, begin = 0, 0
        for end, when in enumerate(self.times):
            while self.times[begin] <= when - 1:
                begin += 1
            most = max(most, end - begin + 1)
        return most


def measure(
    *,
    hops: int = HOPS,
    seconds: float = SECONDS,
    many: int = MANY,
    progress: Callable[[str], None] = lambda _: None,
) -> LoadReport:
    """Have so many kept resolved for so long; then plan many. Nothing is left behind."""
    progress(f"{hops} next hops for {seconds:.0f} s")
    managed = _requests(hops, seconds, _followed)
    progress(f"{hops} next hops of the kernel's own for {seconds:.0f} s")
    floor = _requests(hops, seconds, _left_alone)
    progress(f"{many} next hops")
    planned, resync, cpu = _times(many)
    release = os.uname().release
    return LoadReport(release, hops, seconds, managed, floor, many, planned, resync, cpu)


@contextmanager
def _link(hops: int) -> Iterator[int]:
    """The calling thread is at the node; gives the other end's namespace, which has all hops."""
    with new_netns() as peer, new_netns() as node:
        for namespace in (peer, node):
            set_sysctls(namespace, _SYSCTLS)
        with interfaces.connected() as netlink:
            far = {"ifname": PEER, "net_ns_fd": peer}
            netlink.link("add", ifname=DEVICE, kind="veth", peer=far)
            index = interfaces.device_index(DEVICE)
            netlink.link("set", index=index, state="up")
            netlink.addr("add", index=index, address=str(_NODE), prefixlen=BITS)
        with in_netns(peer), interfaces.connected() as netlink:
            index = interfaces.device_index(PEER)
            netlink.link("set", index=index, state="up")
            # One route for all of them: an address for each takes minutes to make.
            netlink.addr("add", index=index, address=str(_hop(hops)), prefixlen=BITS)
            netlink.route("add", type="local", scope=254, dst=_PEERS, oif=index, table=255)
        yield peer


def _hop(number: int) -> IPv4Address:
    return IPv4Address(NETWORK + _FIRST + number)


def _hops(count: int) -> list[IPv4Address]:
    return [_hop(number) for number in range(count)]


def _requests(
    hops: int, seconds: float, keep: Callable[[ExitStack, Sequence[IPv4Address]], None]
) -> Requests:
    with ExitStack() as undo:
        peer = undo.enter_context(_link(hops))
        seen = _Seen()
        listening = threading.Thread(target=seen.listen, args=(peer,))
        listening.start()
        try:
            time.sleep(0.5)
            keep(undo, _hops(hops))
            time.sleep(seconds)
        finally:
            seen.ended = True
            listening.join()
        return Requests(len(seen.times), seen.most_in_a_second(), _resolved(hops))


def _resolved(hops: int) -> int:
    """How many are, once all are or the rest takes too long."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        resolved = sum(each.valid for each in neighbours.neighbours(socket.AF_INET))
        if resolved >= hops or time.monotonic() > deadline:
            return resolved
        time.sleep(0.1)


def _followed(undo: ExitStack, hops: Sequence[IPv4Address]) -> None:
    follower = undo.enter_context(Follower(per_second=REQUESTS_PER_SECOND))
    follower.want("bench", [Destination(each) for each in hops])


def _left_alone(_: ExitStack, hops: Sequence[IPv4Address]) -> None:
    index = interfaces.device_index(DEVICE)
    with Netlink(ROUTE) as netlink:
        neighbours.put(netlink, [Request(Key(index, each)) for each in hops])


def _times(many: int) -> tuple[float, float, float]:
    """Seconds to plan so many; milliseconds to read all anew, and what CPU time that takes."""
    with _link(many), Netlink(ROUTE) as netlink:
        keeper = Keeper(netlink, managed=True, per_second=1e6)
        keeper.resync()
        begun = time.monotonic()
        keeper.want("bench", [Destination(each) for each in _hops(many)])
        planned = time.monotonic() - begun
        while keeper.work(time.monotonic()) is not None:
            keeper.resync()
            time.sleep(0.05)
        begun, used = time.monotonic(), time.process_time()
        keeper.resync()
        took = time.monotonic() - begun, time.process_time() - used
        return planned, took[0] * 1000, took[1] * 1000
