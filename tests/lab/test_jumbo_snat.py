# SPDX-License-Identifier: Apache-2.0
"""Source NAT over links with an MTU of 9000."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.lab import harness_snat as snat
from tests.lab.harness_balancer import SMALL
from tests.lab.harness_jumbo import ROOM, assert_large, needs_fragments, widen

from towpath import Device, LoadBalancer
from towpath.kernel.net.netns import in_netns
from towpath.lab.topology import BALANCER, DEVICE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.lab import Lab

pytestmark = needs_fragments


@pytest.fixture(scope="module")
def snat_lab() -> Iterator[Lab]:
    """Three backends that know nothing of VIPs."""
    with snat.snat_lab() as lab:
        widen(lab)
        yield lab


@pytest.mark.parametrize("version", [4, 6])
def test_transfers_that_are_translated(snat_lab: Lab, version: int) -> None:
    """Both ways: a checksum that is wrong by a bit would end them."""
    with (
        in_netns(BALANCER),
        LoadBalancer(Device(DEVICE, "native"), limits=SMALL, snat=snat.snat(snat_lab)) as balancer,
    ):
        for each in snat.services(snat_lab):
            balancer.add_service(**each)
        talk = snat.Talk(version)
        assert talk.mtu == ROOM
        said = talk.ask(4 << 20, upload=4 << 20)
        assert said["name"] in {link.port for link in snat_lab.topology.backend_links}
        talk.close()
        counters = balancer.service_counters(f"tcp{version}")
        assert_large(counters)
        assert counters.reply_bytes / counters.replies > 2000
