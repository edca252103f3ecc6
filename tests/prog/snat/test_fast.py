# SPDX-License-Identifier: Apache-2.0
"""Translated packets go the fast way as they go the general one.

As in tests/prog/lb/test_fast.py, in a jiffy that doesn't end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.harness import Rig
from tests.prog.lb.oracle import TX
from tests.prog.snat.harness import SNAT as TRANSLATED
from tests.prog.snat.harness import NatRig, answer, client_frame, nat_rigged, services

from towpath.bench.cpu import on_one_cpu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network
    from tests.prog.lb.oracle import Outcome

XDP_ABORTED = 0
PAYLOAD = bytes(32)


@pytest.fixture(scope="module")
def ways(net: Network) -> Iterator[NatRig]:
    """A load balancer that translates, of which each way can be asked."""
    with on_one_cpu(), nat_rigged(net, TRANSLATED, still=True) as made:
        yield made


@pytest.fixture(autouse=True)
def served(ways: NatRig) -> None:
    """A service of each kind, and no translations."""
    ways.serve()
    ways.empty()
    ways.serve(*services())


def by(nat: NatRig, way: str, frame: bytes) -> Outcome:
    """Send a frame by one of the ways."""
    nat.way = way
    return nat.expect(frame, TX)


@pytest.mark.parametrize("protocol", [6, 17])
def test_both_ways_translate_alike(ways: NatRig, protocol: int) -> None:
    """Both directions, and what ends a connection."""
    sent = by(ways, "towpath_lb", client_frame(4, protocol, payload=PAYLOAD))
    by(ways, "towpath_lb", answer(sent, payload=PAYLOAD))
    for flags in ("A", "PA", "FA", "A", "RA"):
        for way in ("fast_alone", "general_alone", "fast_alone"):
            by(ways, way, client_frame(4, protocol, flags=flags, payload=PAYLOAD))
            by(ways, way, answer(sent, flags=flags, payload=PAYLOAD))


@pytest.mark.parametrize("protocol", [6, 17])
def test_both_ways_begin_alike(ways: NatRig, protocol: int) -> None:
    """A new flow gets the same port, backend, entry and counters, and goes on by either way."""
    for sport in range(3000, 3012):
        frame = client_frame(4, protocol, sport=sport, payload=PAYLOAD)
        heads = []
        for way in ("general_alone", "fast_alone"):  # the first one asks for the next hop
            ways.empty()
            sent = by(ways, way, frame)
            heads.append(ways.tables["nat_heads"].tobytes())
            by(ways, "towpath_lb", answer(sent, payload=PAYLOAD))
            onward = client_frame(4, protocol, flags="A", sport=sport, payload=PAYLOAD)
            by(ways, "fast_alone", onward)
        assert heads[0] == heads[1]


@pytest.mark.parametrize("doubt", ["last hop", "further candidates", "a full set", "no way"])
@pytest.mark.parametrize("protocol", [6, 17])
def test_what_begins_in_doubt_is_left_alone(ways: NatRig, protocol: int, doubt: str) -> None:
    """No byte, no counter and no entry."""
    frame = client_frame(4, protocol, payload=PAYLOAD)
    by(ways, "towpath_lb", frame)
    ways.empty()
    heads = ways.tables["nat_heads"]
    if doubt == "last hop":
        frame = client_frame(4, protocol, hops=1, payload=PAYLOAD)
    elif doubt == "further candidates":
        heads["reach"] = 1
    elif doubt == "a full set":
        heads["forward"] = heads["reply"] = 0x0202020202020202
        ways.tables["nat_flows"]["way"]["ref"] = 1
    else:
        ways.forget_ways()
    ways.way = "fast_alone"
    before, table = ways.counters(), heads.tobytes()
    run = Rig.run(ways, frame)
    assert run.retval == XDP_ABORTED
    assert run.data == frame
    assert not ways.moved(before, ways.counters())
    assert table == heads.tobytes()
    ways.empty()


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_in_doubt_is_left_alone(ways: NatRig, version: int) -> None:
    """New flows, SYNs, unknown answers, last hops, and IPv6: no byte and no counter."""
    sent = by(ways, "towpath_lb", client_frame(version, payload=PAYLOAD))
    by(ways, "towpath_lb", answer(sent, payload=PAYLOAD))
    declined = [
        client_frame(version, payload=PAYLOAD),
        client_frame(version, flags="A", sport=7, payload=PAYLOAD),
        client_frame(version, flags="A", hops=1, payload=PAYLOAD),
        answer(sent, hops=1, payload=PAYLOAD),
    ]
    if version == 6:
        declined += [client_frame(6, flags="A", payload=PAYLOAD), answer(sent, payload=PAYLOAD)]
    ways.forget_ways()
    declined += [client_frame(version, flags="A", payload=PAYLOAD), answer(sent, payload=PAYLOAD)]
    ways.way = "fast_alone"
    for each in declined:
        before, table = ways.counters(), ways.tables["nat_heads"].tobytes()
        run = Rig.run(ways, each)
        assert run.retval == XDP_ABORTED
        assert run.data == each
        assert not ways.moved(before, ways.counters())
        assert table == ways.tables["nat_heads"].tobytes()
