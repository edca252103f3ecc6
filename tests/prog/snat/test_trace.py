# SPDX-License-Identifier: Apache-2.0
"""`towpath trace` tells what becomes of a packet that is translated, and changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.frames import CLIENTS, PORT, VIPS
from tests.prog.lb.oracle import TX
from tests.prog.snat.harness import NatRig, answer, client_frame, nat_rigged, services
from tests.prog.snat.oracle import NatOutcome

from towpath.model import FlowTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network

BOTH = [(version, protocol) for version in (4, 6) for protocol in Protocol]


@pytest.fixture(scope="module")
def nat(net: Network) -> Iterator[NatRig]:
    """A load balancer that translates, with a service of each kind."""
    with nat_rigged(net) as made:
        made.serve(*services())
        yield made


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_what_is_traced_then_happens(nat: NatRig, version: int, protocol: Protocol) -> None:
    """Before the first packet the port isn't chosen, then it is told; tables stay as they are."""
    counters = ("service_cpus", "backend_cpus", "reply_cpus")
    names = ("nat_heads", "nat_flows", "nat_client_hops", *counters)

    def state() -> list[bytes]:
        return [nat.balancer._program.rows(name).tobytes() for name in names]

    flow = FlowTuple(CLIENTS[version], 40000, VIPS[version], PORT, protocol)
    before = state()
    new = nat.balancer.trace(flow)
    assert state() == before
    assert (new.verdict, new.flow_hit, new.forwarding) == (TX, False, "snat")
    assert new.source_port is None
    sent = nat.expect(client_frame(version, protocol.number), TX)
    assert isinstance(sent, NatOutcome)
    assert sent.entry is not None
    assert (new.backend, new.outer_source) == (sent.backend, sent.entry.source)
    nat.expect(answer(sent), TX)
    before = state()
    known = nat.balancer.trace(flow)
    assert state() == before
    assert (known.verdict, known.flow_hit, known.slot) == (TX, True, None)
    assert (known.backend, known.outer_source) == (sent.backend, sent.entry.source)
    assert known.source_port == sent.entry.port
    assert known.next_hop_mac == sent.frame[:6].hex(":")


def test_replies_are_counted_by_service(nat: NatRig) -> None:
    """Beside what came in for it."""
    before = nat.balancer.counters()
    sent = nat.expect(client_frame(4, 17, sport=9), TX)
    lengths = [len(frame) - 14 for frame in (answer(sent), answer(sent, payload=b"more of it"))]
    nat.expect(answer(sent), TX)
    nat.expect(answer(sent, payload=b"more of it"), TX)
    for counted in nat.balancer.counters().services:
        key = counted.service.key
        was = before.service(key)
        ours = key.protocol is Protocol.UDP and key.vip == VIPS[4]
        more = counted.replies - was.replies, counted.reply_bytes - was.reply_bytes
        assert more == ((2, sum(lengths)) if ours else (0, 0))
