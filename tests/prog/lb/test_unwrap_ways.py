# SPDX-License-Identifier: Apache-2.0
"""What is taken out of a tunnel goes every way that packets go, and is recorded as it came."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.prog.lb.frames import VIPS, frame
from tests.prog.lb.harness import service
from tests.prog.lb.harness_unwrap import KINDS, hops, tunnelled, wrapped
from tests.prog.lb.network import IN, NEAR
from tests.prog.lb.oracle import TX
from tests.prog.recorder.harness import recorded
from tests.prog.snat.harness import SNAT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.harness_unwrap import TunnelRig
    from tests.prog.lb.network import Network


@pytest.fixture(scope="module")
def rig(net: Network) -> Iterator[TunnelRig]:
    """A load balancer that unwraps, and translates where a service says so."""
    with tunnelled(net, snat=SNAT) as made:
        yield made


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("options", [{"forwarding": "l2"}, {"encap": "gue"}, {"encap": "gre"}])
def test_every_forwarding(rig: TunnelRig, family: int, options: dict[str, Any]) -> None:
    """A new frame on the link, or the next tunnel."""
    rig.serve(service(VIPS[family], *NEAR[family], **options))
    for kind in KINDS:
        rig.expect(wrapped(frame(family), kind), TX)


@pytest.mark.parametrize("family", [4, 6])
def test_translated(rig: TunnelRig, family: int) -> None:
    """The flow's packets are one flow's, in a tunnel or not, and what leaves is the same."""
    rig.serve(service(VIPS[family], *NEAR[family], forwarding="snat"))
    sent, came = (frame(family, **hops(family, left)) for left in (64, 63))
    first = rig.run(came)
    assert first.data != came
    before = sum(packets for packets, _ in rig.unwrapped().values())
    for kind in KINDS:
        again = rig.run(wrapped(sent, kind))
        assert (again.retval, again.data) == (first.retval, first.data)
    assert sum(packets for packets, _ in rig.unwrapped().values()) == before + len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_has_what_came(rig: TunnelRig, kind: str) -> None:
    """In its tunnel, and beside it what was sent on."""
    rig.serve(service(VIPS[4], *NEAR[4]))
    sent = wrapped(frame(4), kind)
    with recorded(rig) as recording:
        outcome = rig.expect(sent, TX, IN)
        came, left = recording.end().packets
    assert (came.data, left.data) == (sent, outcome.frame)
    assert (came.inbound, left.inbound) == (True, False)
    assert came.said["verdict"] == "tx"
    assert came.said["backend"] == str(outcome.backend)
