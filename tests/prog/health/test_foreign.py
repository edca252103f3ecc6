# SPDX-License-Identifier: Apache-2.0
"""Packets of other programs' checks against the oracle: a mark says which backend they go to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import TCP
from tests.prog.health.harness import NOT_OURS, SENT, UNKNOWN, Connection, HealthRig
from tests.prog.health.test_health import COMBINATIONS, PORT, segment
from tests.prog.lb.frames import VIPS
from tests.prog.lb.harness import rigged, service
from tests.prog.lb.network import IN, NEAR, OWN

from towpath.model.kinds import Ports
from towpath.model.service import Tunnel
from towpath.model.settings import ForeignCheck

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network

FIRST = 1 << 16
MARKS = {
    (version, number): FIRST + 10 * version + number for version in (4, 6) for number in range(2)
}
"""By the family and number of a backend."""
RANGE = Ports.of([(8000, 8999)])
GUE = Tunnel("gue", 6080)


@pytest.fixture(scope="module")
def health(net: Network) -> Iterator[HealthRig]:
    """The program with these marks, and services of one port, of many, and of source NAT."""
    checks = [ForeignCheck(mark, NEAR[of][number]) for (of, number), mark in MARKS.items()]
    with rigged(net, foreign=checks) as rig:
        services = [
            service(vip, NEAR[6][3], port=port, encap=encap)
            for vip in VIPS.values()
            for port, encap in ((80, "ipip"), (RANGE, "gue"))
        ]
        rig.serve(*services, service(VIPS[6], NEAR[6][3], port=53, forwarding="l2"))
        rig.balancer.health.open(VIPS.values())
        yield HealthRig(rig)


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_a_mark_is_a_backend(health: HealthRig, inside: int, outside: int) -> None:
    """Whether the service has it or not, from whatever port; unchanged behind the outer header."""
    for number in range(2):
        packet = bytes(segment(inside, sport=PORT + number))
        mark = MARKS[outside, number]
        assert health.check(packet, NEAR[outside][number], SENT, mark=mark).endswith(packet[14:])


@pytest.mark.parametrize(("inside", "outside"), COMBINATIONS)
def test_the_destination_says_in_which_way(health: HealthRig, inside: int, outside: int) -> None:
    """In the kind of tunnel of the service at that port, one of many."""
    packet = segment(inside)
    packet[TCP].dport = 8765
    mark = MARKS[outside, 1]
    health.check(bytes(packet), NEAR[outside][1], SENT, mark=mark, tunnel=GUE)


def test_what_is_for_nobody_is_dropped(health: HealthRig) -> None:
    """A mark without a backend, a destination without a service, an IPv4 backend of an IPv6 VIP."""
    packet = segment(4)
    health.check(bytes(packet), None, UNKNOWN, mark=FIRST + 1)
    packet[TCP].dport = 7999
    health.check(bytes(packet), None, UNKNOWN, mark=MARKS[4, 0])
    health.check(bytes(segment(6)), None, UNKNOWN, mark=MARKS[4, 0])


@pytest.mark.parametrize("mark", [0, 1, FIRST - 1, FIRST << 1, 0xFFFFFFFF])
def test_other_marks_are_others(health: HealthRig, mark: int) -> None:
    """Their packets pass, uncounted."""
    health.check(bytes(segment(4)), None, NOT_OURS, mark=mark)


def test_own_checks_go_on(health: HealthRig) -> None:
    """By the end that is written down for them, from the port that a foreign one has too."""
    health.note(Connection(OWN[IN][4], PORT, NEAR[4][3]))
    health.check(bytes(segment(4)), NEAR[4][3], SENT)
    health.check(bytes(segment(4)), NEAR[4][0], SENT, mark=MARKS[4, 0])
    health.forget()
