# SPDX-License-Identifier: Apache-2.0
"""Annotations limit real pods on a real node, from their first packet on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.kubernetes.harness_pods import (
    BUCKET,
    EGRESS,
    OVERHEAD,
    SIZE,
    Receiver,
    bits_a_second,
    excess,
    limiting,
    limits,
    sender,
    until,
    without_plugin,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.kubernetes.cluster import Cluster

RATE = 10_000_000

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def limited(cluster: Cluster) -> Iterator[Cluster]:
    """An agent on the first node, whose new pods have no CNI bandwidth plugin."""
    for node in cluster.nodes:
        without_plugin(node)
    with limiting(cluster.nodes[0]):
        yield cluster


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Who is sent to."""
    made = Receiver()
    yield made
    made.close()


def test_from_the_first_packet(limited: Cluster, receiver: Receiver) -> None:
    """The pod's first act is to send all it can: no more than its limit ever arrives."""
    node = limited.nodes[0]
    limited.plane.apply(sender("first", node.name, {EGRESS: "10M"}))
    receiver.listen(6)
    (times,) = receiver.by_source().values()
    print(
        f"first {excess(times, RATE):.0f} bytes above, {bits_a_second(times, 0.5, 2.5):.0f} bit/s"
    )
    assert excess(times, RATE) <= BUCKET + 2 * (SIZE + OVERHEAD)
    assert 0.8 * RATE <= bits_a_second(times, 0.5, 2.5) <= 1.05 * RATE
    limited.plane.kubectl("delete", "pod", "first", "--now")
    until(lambda: "default:first" not in limits(node), "its limit to end with it")
