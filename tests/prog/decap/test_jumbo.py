# SPDX-License-Identifier: Apache-2.0
"""Frames larger than a page has room for are unwrapped like others, every byte of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.packet import Raw
from tests.prog.decap.harness import COMBINATIONS, Rig, ether, inner, loaded, outer
from tests.prog.decap.oracle import UNWRAPPED

from towpath.kernel.bpf import probe
from towpath.kernel.bpf.fragments import pulls

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not probe.fragments(), reason="XDP programs take no frames in fragments"
)

SIZES = [3430, 3458, 3486, 4096, 8900]  # of payloads


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """A program of this module's own."""
    with loaded() as rig:
        yield rig


@pytest.mark.parametrize("vlan", [None, 7])
@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_large_packets_come_out_as_they_went_in(
    rig: Rig, outside: int, inside: int, vlan: int | None
) -> None:
    """And what says that it is longer than its frame is dropped."""
    for size in SIZES:
        packet = bytes(inner(inside, payload=bytes(at % 251 for at in range(size))))
        frame = bytes(ether(vlan=vlan) / outer(outside, inside) / Raw(packet))
        assert rig.expect(frame, UNWRAPPED).endswith(packet)
        rig.expect(frame + bytes(100), UNWRAPPED)
        rig.expect(frame[:-1], "DECAP_DROP_MALFORMED")


@pytest.mark.parametrize("linear", [14, 20, 34, 50, 70])
@pytest.mark.parametrize(("outside", "inside"), COMBINATIONS)
def test_headers_behind_the_first_fragment(
    rig: Rig, outside: int, inside: int, linear: int
) -> None:
    """They are moved there."""
    if not pulls():
        pytest.skip("this kernel can't have headers moved there")
    rig.linear = linear
    try:
        for size in (100, 8000):
            packet = bytes(inner(inside, payload=bytes(at % 251 for at in range(size))))
            frame = bytes(ether() / outer(outside, inside) / Raw(packet))
            assert rig.expect(frame, UNWRAPPED).endswith(packet)
            rig.expect(frame[:-1], "DECAP_DROP_MALFORMED")
    finally:
        rig.linear = None
