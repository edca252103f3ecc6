# SPDX-License-Identifier: Apache-2.0
"""What connection ids say outlives the process that was told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.harness import rigged
from tests.prog.lb.oracle import TX
from tests.prog.lb.test_quic import FORMS, made, made_by, of, serve, short

from towpath import quic

if TYPE_CHECKING:
    from pathlib import Path

    from tests.prog.lb.network import Network


@pytest.mark.thorough
def test_ids_are_read_back(net: Network, pins: Path) -> None:
    """By the next process, which has nothing to do."""
    for sport, config in enumerate(FORMS.values(), 4000):
        with rigged(net, pins=pins) as first:
            one, *others = serve(first, 4, config)[:3]
            several = replace(one, server_id=(*one.server_id, 100, 200))
            served = made(4, several, *others, config=config)
            first.serve(served)
        with rigged(net, pins=pins) as heir:
            (found,) = heir.balancer.observed()
            assert (found.quic, found.backends) == (config, served.backends)
            assert not heir.balancer.apply([served]).steps
            heir.told([served])
            named = made_by(others[0], config)
            assert heir.expect(of(4, short(named), sport), TX).backend == others[0].address
            named = quic.make(200, config)
            assert heir.expect(of(4, short(named), sport), TX).backend == one.address
