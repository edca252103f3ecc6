# SPDX-License-Identifier: Apache-2.0
"""A pod whose packets are translated, from rules of netfilter to the load balancer and back."""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

from tests.lab.harness_balancer import SMALL
from tests.lab.harness_local import POD, REMOTE, Lab, service
from tests.lab.test_tracked import (
    THERE,
    asked,
    name_of,
    net,
    nft,
    rules,
    settle,
    take_over,
    tracked,
)

from towpath.datapath.balancer import Balancer
from towpath.model import parse_service
from towpath.model.socket import Packets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.socket.balancer import SocketBalancer
    from towpath.model import Service

__all__ = ["net"]

PACKETS = Packets(("eth0",), 1024)
"""The lab's client is the pod; those of backends aren't asked about."""


@contextmanager
def translating() -> Iterator[tuple[Balancer, SocketBalancer]]:
    """A load balancer that tracks, without a device, and packets of the pod's."""
    with (
        Balancer((), limits=SMALL, tracks=True, bare=True) as made,
        made.sockets(None, packets=PACKETS) as sockets,
    ):
        yield made, sockets


def here(there: dict[int, str]) -> list[Service]:
    """Services that are for this node alone, as a cluster's are."""
    asked_for = (
        service(version, there[version], protocol=protocol, scope="node")
        for version in (4, 6)
        for protocol in ("tcp", "udp")
    )
    return [
        parse_service({name: each[name] for name in each if name != "forwarding"})
        for each in asked_for
    ]


def counted(sockets: SocketBalancer) -> dict[str, int]:
    """What became of the pod's packets."""
    assert sockets.packets is not None
    found = sockets.packets.asked(lambda node: node.program.counts()["from_pod"])
    return {name: number for name, number in found.items() if number}


@THERE
def test_connections_of_before_go_on(net: Lab, there: dict[int, str]) -> None:
    """With the backend that they have, though all rules go; and new ones are balanced."""
    other = REMOTE if there is POD else POD
    with ExitStack() as undo:
        balancer, sockets, _ = take_over(
            net, undo, there, lambda: undo.enter_context(translating()), here(other)
        )
        settle(balancer)
        kept = {each.original: each.kept for each in tracked(balancer).listed()}
        assert all(is_kept == (ends.protocol == 17) for ends, is_kept in kept.items())
        moved = counted(sockets)
        assert moved["pass_tracked"] > 0
        assert not any(name.startswith("drop") for name in moved)


@THERE
def test_connections_are_handed_back(net: Lab, there: dict[int, str]) -> None:
    """With the backend that they have; new ones go by the rules."""
    other = REMOTE if there is POD else POD
    with ExitStack() as undo:
        balancer, sockets = undo.enter_context(translating())
        balancer.apply(here(there))
        settle(balancer)
        talks = [undo.enter_context(closing(net.connect(v))) for v in (4, 6) for _ in range(8)]
        datagrams = [net.datagrams(version) for version in (4, 6) for _ in range(8)]
        said = [asked(each) for each in datagrams]
        nft(rules(other))
        assert talks[0].ask() == talks[0].said
        sockets.detach()
        assert [each.ask(100_000) for each in talks] == [each.said for each in talks]
        assert [asked(each) for each in datagrams] == said
        for version in (4, 6):
            with closing(net.connect(version)) as new:
                assert new.who == name_of(other)
            assert asked(net.datagrams(version))["who"] == name_of(other)
