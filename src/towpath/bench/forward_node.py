# SPDX-License-Identifier: Apache-2.0
"""Makes the node forward in one way or another, and asks it what it did."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.bench import forward_rules
from towpath.bench.forward_network import FIRST_BACKEND, IN, NODE, OUT
from towpath.bench.forward_ways import (
    BY_MASQUERADE,
    BY_NFTABLES,
    KUBE_PROXY,
    PORT,
    SHORT,
    TOWPATH,
    VIP,
    VIP_DSR,
    VIP_L2,
)
from towpath.datapath.balancer import Balancer
from towpath.datapath.masquerade.node import Node
from towpath.datapath.masquerade.tables import read_counts
from towpath.kernel.bpf.links import attach_tc_ingress, attach_xdp
from towpath.kernel.bpf.programs import ProgramType
from towpath.kernel.net.netns import in_netns
from towpath.model.kinds import PortRange
from towpath.model.masquerade import Rule, Section
from towpath.model.service import Backend, Protocol, Service
from towpath.model.settings import Device, Limits
from towpath.model.snat import Snat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from towpath.bench.forward_network import Network
    from towpath.kernel.bpf.links import Attachment
    from towpath.kernel.bpf.programs import Program

    Rules = Callable[[IPv4Address, int, Sequence[IPv4Address]], str]

_ROOM = 8
_RULES: dict[str, Rules] = {
    KUBE_PROXY: forward_rules.kube_proxy,
    SHORT: forward_rules.short,
    BY_NFTABLES: lambda *_: forward_rules.masquerade(OUT),
}
_PODS = ip_network("198.18.0.0/16")
_PODS_PORTS = PortRange(10000, 59999)
"""More than by default: all flows have one remote here."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the node itself tells: packets by its stack and by Towpath, and flows it remembers.

    Of flows only how many more there are has a meaning. ``elsewhere``: packets that Towpath
    didn't redirect.
    """

    stack: int
    redirected: int = 0
    elsewhere: int = 0
    flows: int = 0


def node(
    by: str, network: Network, flows: int, redirects: Mapping[str, Program]
) -> AbstractContextManager[Callable[[], Seen]]:
    """Make the node forward in the block, with room for so many flows; gives what asks it.

    ``redirects``: programs for the ways of these names. BenchError, KernelError: it can't.
    """
    if by in redirects:
        return _redirecting(network, redirects[by])
    if by == TOWPATH:
        return _balancing(network, flows)
    if by == BY_MASQUERADE:
        return _masquerading(network, flows)
    return _routing(network, by)


def _addresses(network: Network) -> tuple[IPv4Address, ...]:
    return tuple(FIRST_BACKEND + number for number in range(network.number))


def _forwarded() -> int:
    """Packets that the stack of this thread's namespace has forwarded."""
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Ip:"))
    return int(values[names.index("ForwDatagrams")])


@contextmanager
def _redirecting(network: Network, program: Program) -> Iterator[Callable[[], Seen]]:
    def ask() -> Seen:
        with in_netns(network.enter.namespace):
            return Seen(_forwarded())

    with in_netns(network.enter.namespace), _attached(program, network.enter.index):
        yield ask


def _attached(program: Program, ifindex: int) -> Attachment:
    if program.type == ProgramType.XDP:
        return attach_xdp(program, ifindex, "native")
    return attach_tc_ingress(program, ifindex)


@contextmanager
def _routing(network: Network, by: str) -> Iterator[Callable[[], Seen]]:
    rules = _RULES.get(by)

    def ask() -> Seen:
        with in_netns(network.enter.namespace):
            flows = Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text() if rules else 0
            return Seen(_forwarded(), flows=int(flows))

    with in_netns(network.enter.namespace):
        if rules:
            forward_rules.load(rules(VIP, PORT, _addresses(network)))
        yield ask


@contextmanager
def _masquerading(network: Network, flows: int) -> Iterator[Callable[[], Seen]]:
    # Clients count what passes their device's driver, which answers that are direct don't.
    section = Section(
        rules=(Rule((IN,), (_PODS,)),),
        ports=_PODS_PORTS,
        flows=max(1024, _ROOM * flows),
        rate=1 << 30,
        direct=False,
    )

    def ask() -> Seen:
        counts = read_counts(made.program)
        sent = counts["from_pod"]["sent"]
        others = sum(counts["from_pod"].values()) - sent - counts["from_pod"]["bytes"]
        others -= counts["from_pod"]["bound"]
        with in_netns(network.enter.namespace):
            return Seen(_forwarded(), sent, others, counts["from_pod"]["bound"])

    with in_netns(network.enter.namespace), Node(section, None) as made:
        yield ask
        made.detach()


@contextmanager
def _balancing(network: Network, flows: int) -> Iterator[Callable[[], Seen]]:
    backends = tuple(Backend(address) for address in _addresses(network))
    services = (
        Service("snat", VIP, PORT, Protocol.UDP, backends, forwarding="snat"),
        Service("l2", VIP_L2, PORT, Protocol.UDP, backends, forwarding="l2"),
        Service("dsr", VIP_DSR, PORT, Protocol.UDP, backends),
    )

    def ask() -> Seen:
        counters = balancer.counters()
        redirected = counters.verdicts["redirect"]
        others = sum(counters.verdicts.values()) - redirected
        known = sum(each.flows for each in counters.services)
        with in_netns(network.enter.namespace):
            return Seen(_forwarded(), redirected, others, known)

    devices = [Device(IN, "native"), Device(OUT, "native")]
    # A translated flow takes two places, and finds one in a few of the table's only.
    limits = Limits(nat_flows=max(Limits().nat_flows, _ROOM * flows))
    with (
        in_netns(network.enter.namespace),
        Balancer(devices, snat=Snat((NODE,)), limits=limits) as balancer,
    ):
        balancer.apply(services)
        yield ask
