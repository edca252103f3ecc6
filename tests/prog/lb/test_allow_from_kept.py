# SPDX-License-Identifier: Apache-2.0
"""Lists of sources in the kernel: their room, their change, what a restart and a death leave."""

from __future__ import annotations

import mmap
import os
import signal
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
from tests.guests import examples
from tests.prog.lb.frames import VIPS
from tests.prog.lb.harness import SMALL, Rig, rigged, service
from tests.prog.lb.network import NEAR, Network
from tests.prog.lb.oracle import NOT_FOR_YOU, TX, XDP_DROP, XDP_TX
from tests.prog.lb.test_allow_from import CLIENTS, allowing, prefixes, sent_by, stored
from tests.prog.lb.test_crash import Lineage, in_child

from towpath.datapath.errors import CapacityError
from towpath.model import Affinity, Backend

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.datapath.balancer import Balancer
    from towpath.model import Service

CHANGES = examples(60, 10)
KILLS = examples(8, 2)


def test_a_list_that_does_not_fit_changes_nothing(net: Network) -> None:
    """The message says how much there is room for; a change needs room for both lists."""
    ten = [f"198.51.100.{2 * n}" for n in range(10)]
    six, other = ten[:6], ten[4:]
    with rigged(net, limits=replace(SMALL, sources=10)) as rig:
        rig.serve(allowing(4, *six))
        too_many = "sources: 12 needed, 10 at most; raise limits.sources and restart"
        for wanted in (
            [allowing(4, *other)],
            [allowing(4, *six), service(VIPS[4], port=81, allow_from=prefixes(*other))],
        ):
            before = rig.balancer.observed()
            with pytest.raises(CapacityError, match=too_many):
                rig.balancer.apply(wanted)
            assert (rig.balancer.observed(), stored(rig)) == (before, 6)
            rig.expect(sent_by(IPv4Address(six[0])), TX)
            rig.expect(sent_by(IPv4Address(other[5])), NOT_FOR_YOU)
        # What is retired makes room when it is needed.
        rig.serve()
        for _ in range(5):
            rig.serve(allowing(4, *ten[:5]))
            rig.serve(allowing(4, *ten[5:]))
            rig.expect(sent_by(IPv4Address(ten[9])), TX)
        rig.serve()
        rig.serve(allowing(4, *ten))
        assert stored(rig) == 10


# ---- Change, restart, death ----------------------------------------------------------------------


def test_a_restart_reads_back_what_there_is(net: Network, pins: Path) -> None:
    """Sources, affinity and forwarding; a shared list is shared again."""
    wanted = (
        allowing(4, "198.51.100.0/24", "2001:db8::/32", "0.0.0.0/1", forwarding="l2"),
        allowing(6, "198.51.100.0/24", "2001:db8::/32", "0.0.0.0/1", affinity=Affinity(77)),
        allowing(4, "203.0.113.7", port=81, affinity=Affinity(7 * 86400), flow_table=False),
        service(VIPS[4], Backend(NEAR[4][0], 3), port=82, forwarding="l2"),
    )
    with rigged(net, pins=pins) as rig:
        rig.serve(*wanted)
        kept = stored(rig)
    with rigged(net, pins=pins) as rig:
        found = {each.key: replace(each, name="") for each in rig.balancer.observed()}
        assert found == {each.key: replace(each, name="") for each in wanted}
        assert not rig.balancer.plan(wanted).steps
        assert stored(rig) == kept == 4
        rig.expect(sent_by(CLIENTS[4]), TX)
        rig.serve(*wanted[1:])
        rig.balancer._contents.tables.rows._reclaimer.reclaim()
        assert stored(rig) == 4
        rig.expect(sent_by(CLIENTS[6]), TX)
        rig.serve(*wanted[2:])
        rig.balancer._contents.tables.rows._reclaimer.reclaim()
        assert stored(rig) == 1


def lists_to_and_fro() -> tuple[Service, Service]:
    """A client is in both of two long lists, by different prefixes; another is in none."""
    some = [f"192.0.{n}.{2 * m}" for n in range(4) for m in range(16)]
    return (
        allowing(4, *some, "198.51.100.0/25"),
        allowing(4, *(str(IPv4Address(each) + 1) for each in some), "198.51.100.0/28"),
    )


def assert_client_is_in_and_stranger_out(rig: Rig) -> None:
    """Whichever list it is."""
    assert rig.run(sent_by(CLIENTS[4])).retval == XDP_TX
    assert rig.run(sent_by(CLIENTS[4] + 250)).retval == XDP_DROP


def test_no_packet_meets_half_a_list(net: Network, pins: Path) -> None:
    """While another process changes the list, and is killed, and the next one takes over."""
    wishes = lists_to_and_fro()
    with ExitStack() as lives, mmap.mmap(-1, mmap.PAGESIZE) as changes:
        line = Lineage(net, pins, lives)
        line.rig.serve(wishes[0])
        for _ in range(KILLS):
            changes[0] = 0

            def change_for_ever(balancer: Balancer = line.rig.balancer) -> None:
                while True:
                    balancer.apply([wishes[changes[0] % 2]])
                    # As if room were short: what was taken out goes at once.
                    balancer._contents.tables.rows._reclaimer.reclaim()
                    changes[0] = (changes[0] + 1) % 256

            child = in_child(change_for_ever)
            while changes[0] < CHANGES:
                assert os.waitpid(child, os.WNOHANG) == (0, 0)
                assert_client_is_in_and_stranger_out(line.rig)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert_client_is_in_and_stranger_out(line.rig)
            rig = line.succeed()
            (found,) = rig.balancer.observed()
            assert found.allow_from in [each.allow_from for each in wishes]
            rig.expect(sent_by(CLIENTS[4], sport=1), TX)
            rig.balancer._contents.tables.rows._reclaimer.reclaim()
            assert stored(rig) == len(found.allow_from or ())
