# SPDX-License-Identifier: Apache-2.0
"""Flows that the kernel has of an earlier load balancer, or that are in the way of a later one."""

from __future__ import annotations

import socket
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_local import FAMILIES, LIMIT, POD, PORT, REMOTE, VIPS, Lab, Talk
from tests.lab.test_tracked import (
    SNAT,
    asked,
    balancing,
    drops,
    name_of,
    net,
    nft,
    rules,
    services,
    settle,
    tracked,
)

from towpath.kernel.bpf.rcu import wait_for_readers
from towpath.kernel.net import conntrack_flows
from towpath.kernel.net.netns import in_netns
from towpath.model.kinds import PortRange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.datapath.balancer import Balancer

__all__ = ["net"]

FEW = replace(SNAT, ports=PortRange(20_000, 20_015))
"""So few that a port which isn't free would be taken."""
MANY = 6
BOTH_FAMILIES = [version for version in (4, 6) for _ in range(MANY)]
LINGER = struct.pack("ii", 1, 0)


@contextmanager
def serving(there: dict[int, str]) -> Iterator[Balancer]:
    """A load balancer that has taken over, with few ports."""
    with balancing(FEW) as made:
        made.apply(services(there))
        settle(made)
        yield made


def begun(net: Lab, undo: ExitStack) -> tuple[list[Talk], list[socket.socket]]:
    """Connections and senders, in both families."""
    talks = [undo.enter_context(closing(net.connect(version))) for version in BOTH_FAMILIES]
    return talks, [net.datagrams(version) for version in BOTH_FAMILIES]


def from_port(net: Lab, version: int, port: int) -> socket.socket:
    """A connection of the client's from a certain port."""
    with in_netns(net.client):
        made = socket.socket(FAMILIES[version])
        made.settimeout(LIMIT)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("", port))
        made.connect((VIPS[version], PORT))
    return made


def kernels() -> list[conntrack_flows.Rewritten]:
    """Flows that are to the VIPs, as the kernel has them."""
    vips = {socket.inet_pton(FAMILIES[version], vip) for version, vip in VIPS.items()}
    return [each for each in conntrack_flows.rewritten() if each.original.destination in vips]


def test_ports_of_what_was_handed_back_are_not_taken(net: Lab) -> None:
    """Answers to one would go to the other. And none of it is known for a day in the end."""
    nft(rules(REMOTE))
    with ExitStack() as undo:
        first = undo.enter_context(serving(REMOTE))
        talks, datagrams = begun(net, undo)
        assert {asked(each)["who"] for each in datagrams} == {"remote"}
        first.detach()
        assert len(kernels()) >= len(talks)
        second = undo.enter_context(serving(REMOTE))
        new_talks, new_datagrams = begun(net, undo)
        for _ in range(2):
            assert {each.ask(10_000)["who"] for each in talks + new_talks} == {"remote"}
            assert {asked(each)["who"] for each in datagrams + new_datagrams} == {"remote"}
        assert drops(second) == {}
        settle(second)
        assert any(each.kept for each in kernels())
        second.detach()
        assert not any(each.kept for each in kernels())
        assert {each.ask(10_000)["who"] for each in talks + new_talks} == {"remote"}
        assert {asked(each)["who"] for each in datagrams + new_datagrams} == {"remote"}


def test_ports_that_rules_have_given_are_not_taken(net: Lab) -> None:
    """Masquerading may have chosen an address of ours, and any port."""
    nft(rules(REMOTE))
    with ExitStack() as undo:
        ports = [FEW.ports.first + number for number in range(2 * MANY)]
        before = [
            Talk(undo.enter_context(from_port(net, version, port)))
            for version in (4, 6)
            for port in ports
        ]
        seen = {each.reply.port for each in kernels()}
        assert seen == {port.to_bytes(2, "big") for port in ports}
        balancer = undo.enter_context(serving(REMOTE))
        new = [undo.enter_context(closing(net.connect(version))) for version in (4, 4, 6, 6)]
        assert {each.ask(10_000)["who"] for each in before + new} == {"remote"}
        assert drops(balancer) == {}


@pytest.mark.parametrize(
    ("there", "told"), [(POD, False), (REMOTE, True)], ids=["here, at once", "elsewhere, settled"]
)
def test_a_port_of_a_client_that_is_used_again(
    net: Lab, there: dict[int, str], *, told: bool
) -> None:
    """Its connection of before is over: the kernel gets the one that has begun since then."""
    nft(rules(REMOTE))
    with ExitStack() as undo:
        first = undo.enter_context(serving(there))
        over = [from_port(net, version, 5000) for version in (4, 6)]
        said = [Talk(each).said for each in over]
        first.detach()
        for each in over:
            assert Talk(each).said in said
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
            each.close()
        second = undo.enter_context(serving(there))
        talks = [Talk(from_port(net, version, 5000)) for version in (4, 6)]
        if told:
            settle(second)
            assert kernels() == []
            assert not tracked(second).known()
        assert [each.ask(100_000)["who"] for each in talks] == [name_of(there)] * 2
        second.detach()
        assert [each.ask(100_000)["who"] for each in talks] == [name_of(there)] * 2
        for talk in talks:
            talk.close()


def test_flows_are_the_kernels_before_it_begins_others(
    net: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it gives none of their ports to what begins."""
    known: list[int] = []

    def wait() -> None:
        known.append(len(kernels()))
        wait_for_readers()

    monkeypatch.setattr("towpath.datapath.snat.tracked.wait_for_readers", wait)
    with ExitStack() as undo:
        balancer = undo.enter_context(serving(REMOTE))
        talks, datagrams = begun(net, undo)
        assert {asked(each)["who"] for each in datagrams} == {"remote"}
        balancer.detach()
        assert known == [len(talks) + len(datagrams)]


def test_what_is_sent_while_a_connection_is_handed_back(
    net: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a pod here: it would begin another one in its place. It is dropped, and sent again."""
    entered = conntrack_flows.hand_over
    with ExitStack() as undo:
        balancer = undo.enter_context(serving(POD))
        talks = [undo.enter_context(closing(net.connect(version))) for version in (4, 6)]
        asking = undo.enter_context(ThreadPoolExecutor(len(talks)))
        said: list[Future[dict[str, object]]] = []

        def enter(flows: list[conntrack_flows.Handed]) -> list[int]:
            """They ask when the kernel has them, and the program doesn't know of it."""
            found = entered(flows)
            said.extend(asking.submit(talk.ask, 1000) for talk in talks)
            time.sleep(0.05)
            return found

        monkeypatch.setattr(conntrack_flows, "hand_over", enter)
        nft(rules(REMOTE))
        balancer.detach()
        assert [each.result()["who"] for each in said] == ["pod"] * len(talks)
        assert [each.ask(10_000)["who"] for each in talks] == ["pod"] * len(talks)
