# SPDX-License-Identifier: Apache-2.0
"""From rules of netfilter to the load balancer and back, with real clients: none is cut off."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack, closing, contextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, TypeVar

import pytest
from tests.lab.harness_balancer import SMALL
from tests.lab.harness_local import OURS, POD, PODS, PORT, REMOTE, VIPS, Lab, lab, service

from towpath.datapath.balancer import Balancer
from towpath.kernel.net import conntrack_flows
from towpath.model import Device, Snat, parse_service

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from towpath.datapath.snat.tracked import Tracked
    from towpath.model import Service

Other = TypeVar("Other")
SNAT = Snat((IPv4Address(OURS[4]),), (IPv6Address(OURS[6]),))
DEVICES = [Device("eth0"), Device("eth1")]
THERE = pytest.mark.parametrize("there", [POD, REMOTE], ids=["here", "elsewhere"])
# As kube-proxy does it: by destination, and from the node's address where it isn't here.
_RULES = """
table inet before {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    ip daddr {vip} meta l4proto {{ tcp, udp }} th dport {port} dnat ip to {four}
    ip6 daddr {vip6} meta l4proto {{ tcp, udp }} th dport {port} dnat ip6 to {six}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname "eth1" masquerade
  }}
}}
"""
_HOLD = """
table inet hold {
  chain postrouting {
    type nat hook postrouting priority 300;
    ct state new counter
  }
}
"""


def nft(text: str) -> None:
    """Have rules."""
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


@pytest.fixture
def net() -> Iterator[Lab]:
    """A client, the node, its pod, a backend elsewhere. Some rule asks for connection tracking."""
    with lab() as made:
        nft(_HOLD)
        yield made


def rules(there: dict[int, str]) -> str:
    """Rules by which the VIPs are translated to a backend."""
    return _RULES.format(vip=VIPS[4], vip6=VIPS[6], port=PORT, four=there[4], six=there[6])


def services(there: dict[int, str]) -> list[Service]:
    """Of both families and protocols."""
    return [
        parse_service(service(version, there[version], protocol=protocol))
        for version in (4, 6)
        for protocol in ("tcp", "udp")
    ]


@contextmanager
def balancing(snat: Snat = SNAT) -> Iterator[Balancer]:
    """A load balancer that tracks, on the node."""
    with Balancer(DEVICES, limits=SMALL, snat=snat, local=PODS, tracks=True) as made:
        yield made


def tracked(balancer: Balancer) -> Tracked:
    """Its."""
    assert balancer.tracked is not None
    return balancer.tracked


def settle(balancer: Balancer) -> int:
    """As an agent does it."""
    mine = tracked(balancer)
    before = mine.known()
    mine.settle(mine.listed(), before, mine.served())
    return mine.conclude()


def asked(datagrams: socket.socket) -> dict[str, object]:
    """Who answers."""
    datagrams.send(b"who?")
    found: dict[str, object] = json.loads(datagrams.recv(1000))
    return found


def drops(balancer: Balancer) -> dict[str, int]:
    """Packets that were."""
    counted = {"xdp": balancer.verdicts()} | balancer.local.counts()
    return {
        f"{where}.{verdict}": number
        for where, verdicts in counted.items()
        for verdict, number in verdicts.items()
        if number and verdict.startswith("drop")
    }


def take_over(
    net: Lab,
    undo: ExitStack,
    there: dict[int, str],
    begin: Callable[[], tuple[Balancer, Other]],
    wanted: list[Service],
) -> tuple[Balancer, Other, socket.socket]:
    """From rules that go meanwhile: nothing ends, and what begins is balanced.

    ``begin`` is called when there are connections. Returns what it does, and a socket of UDP that
    was there before.
    """
    other = REMOTE if there is POD else POD
    nft(rules(there))
    talks = [undo.enter_context(closing(net.connect(v))) for v in (4, 6) for _ in range(2)]
    datagrams = [net.datagrams(version) for version in (4, 6)]
    said = [asked(each) for each in datagrams]
    begun, more = begin()
    # Before the services are there, and when they are; what begins meanwhile by UDP is others'.
    assert talks[0].ask() == talks[0].said
    begun.apply(wanted)
    assert [asked(each) for each in datagrams] == said
    between = [net.datagrams(version) for version in (4, 6)]
    by_rules = [asked(each) for each in between]
    new = [undo.enter_context(closing(net.connect(version))) for version in (4, 6)]
    assert settle(begun) >= 8
    nft("delete table inet before")
    assert [each.ask(100_000) for each in talks] == [each.said for each in talks]
    assert [asked(each) for each in (*datagrams, *between)] == said + by_rules
    new += [undo.enter_context(closing(net.connect(version))) for version in (4, 6)]
    assert {each.ask()["who"] for each in new} == {name_of(other)}
    assert {asked(net.datagrams(version))["who"] for version in (4, 6)} == {name_of(other)}
    assert {each["who"] for each in (*said, *by_rules)} == {name_of(there)}
    return begun, more, datagrams[0]


@THERE
def test_connections_of_before_go_on(net: Lab, there: dict[int, str]) -> None:
    """With the backend that they have, though all rules go; and new ones are balanced."""
    other = REMOTE if there is POD else POD
    with ExitStack() as undo:
        balancer, _, before = take_over(
            net, undo, there, lambda: (undo.enter_context(balancing()), None), services(other)
        )
        # Of UDP the kernel has what passes for as long as it passes, and not longer.
        assert settle(balancer) >= 8
        kept = {each.original: each.kept for each in tracked(balancer).listed()}
        assert all(is_kept == (ends.protocol == 17) for ends, is_kept in kept.items())
        mine = tracked(balancer)
        mine._enter(dict.fromkeys((key for key in mine.known() if key[36] == 17), 1))
        assert 0 < settle(balancer) < len(kept)
        assert {each.original.protocol for each in mine.listed()} == {6}
        assert asked(before)["who"] == name_of(other)
        assert balancer.verdicts()["pass_tracked"] > 0
        assert drops(balancer) == {}


@THERE
def test_connections_are_handed_back(net: Lab, there: dict[int, str]) -> None:
    """With the backend that they have; new ones go by the rules."""
    other = REMOTE if there is POD else POD
    with ExitStack() as undo:
        balancer = undo.enter_context(balancing())
        balancer.apply(services(there))
        assert settle(balancer) == 0
        talks = [undo.enter_context(closing(net.connect(v))) for v in (4, 6) for _ in range(8)]
        datagrams = [net.datagrams(version) for version in (4, 6) for _ in range(8)]
        said = [asked(each) for each in datagrams]
        nft(rules(other))
        assert talks[0].ask() == talks[0].said
        balancer.detach()
        assert [each.ask(100_000) for each in talks] == [each.said for each in talks]
        assert [asked(each) for each in datagrams] == said
        for version in (4, 6):
            with closing(net.connect(version)) as new:
                assert new.who == name_of(other)
            assert asked(net.datagrams(version))["who"] == name_of(other)


def name_of(backend: dict[int, str]) -> str:
    """Who answers there."""
    return "pod" if backend is POD else "remote"


def test_what_cannot_be_handed_over_is_told(net: Lab) -> None:
    """Each by itself, and the others are entered; in the place of what has their ends."""
    assert net
    ends = conntrack_flows.Ends(2, 17, b"\1\2\3\4", b"\5\6\7\x08", b"\0\7", b"\0\x08")
    backend = b"\x0a\4\0\2"
    one = conntrack_flows.Handed(
        ends, backend, b"\0\x09", (b"\x0a\4\0\1", b"\x10\0"), passed=False, seconds=60
    )
    assert conntrack_flows.hand_over([one]) == [0]
    two = one._replace(original=ends._replace(source_port=b"\0\6"), seen=(b"\x0a\4\0\1", b"\x10\1"))
    wrong = one._replace(original=ends._replace(source=b"\1"), seen=two.seen)
    first, second, third = conntrack_flows.hand_over([one, wrong, two])
    assert (first, second != 0, third) == (0, True, 0)
    found = {each.original: each.reply for each in conntrack_flows.rewritten()}
    assert found[ends] == conntrack_flows.Ends(2, 17, backend, b"\x0a\4\0\1", b"\0\x09", b"\x10\0")
