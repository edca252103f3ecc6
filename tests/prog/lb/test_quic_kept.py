# SPDX-License-Identifier: Apache-2.0
"""What connection ids say outlives the process that was told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.prog.lb.harness import rigged
from tests.prog.lb.oracle import TX
from tests.prog.lb.test_quic import FORMS, made, of, serve, short

from towpath import quic

if TYPE_CHECKING:
    from pathlib import Path

    from tests.prog.lb.network import Network


def test_ids_are_read_back(net: Network, pins: Path) -> None:
    """By the next process, which has nothing to do."""
    for sport, config in enumerate(FORMS.values(), 4000):
        with rigged(net, pins=pins) as first:
            served = made(4, *serve(first, 4, config)[:3], config=config)
            first.serve(served)
        with rigged(net, pins=pins) as heir:
            (found,) = heir.balancer.observed()
            assert (found.quic, found.backends) == (config, served.backends)
            assert not heir.balancer.apply([served]).steps
            heir.told([served])
            named = quic.make(served.backends[1].server_id, config)
            assert heir.expect(of(4, short(named), sport), TX).backend == served.backends[1].address
