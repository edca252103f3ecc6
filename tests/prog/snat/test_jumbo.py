# SPDX-License-Identifier: Apache-2.0
"""Source NAT of frames in fragments: checksums are followed in the first, whatever lies behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from tests.prog.lb.harness_devices import devices
from tests.prog.lb.network import IN, NEAR, OUT, THIRD, network
from tests.prog.lb.oracle import DRIVER, HANDOFF, TOO_BIG, TX
from tests.prog.lb.test_too_big import large, pattern
from tests.prog.snat.harness import (
    BOTH,
    NatRig,
    answer,
    client_frame,
    nat_rigged,
    services,
    snat_service,
)

from towpath.kernel.bpf import probe
from towpath.kernel.bpf.fragments import pulls
from towpath.kernel.bpf.probe_fib import fib_lookup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.oracle import Outcome

pytestmark = pytest.mark.skipif(
    not probe.fragments(), reason="XDP programs take no frames in fragments"
)

SIZES = [3480, 3506, 4096, 8900]  # of payloads


@pytest.fixture(scope="module")
def nat() -> Iterator[NatRig]:
    """On devices with an MTU of 9000."""
    with network({IN: 9000, OUT: 9000, THIRD: 4000}) as net, nat_rigged(net) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_known(nat: NatRig) -> None:
    """Each test starts with a service of each kind and no translations."""
    nat.serve()
    nat.empty()
    nat.serve(*services())


def assert_summed(outcome: Outcome, version: int, protocol: int, payload: bytes) -> None:
    """Assert that scapy makes the same checksums of what comes out, and that nothing is lost."""
    found = Ether(outcome.frame)[IP if version == 4 else IPv6]
    transport = TCP if protocol == 6 else UDP
    assert bytes(found[transport].payload) == payload
    again = found.copy()
    del again[transport].chksum
    if version == 4:
        del again.chksum
    assert bytes(again) == bytes(found)


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_there_and_back(nat: NatRig, version: int, protocol: int) -> None:
    """Both sides' large packets, with and without a tag."""
    for number, length in enumerate(SIZES):
        payload = pattern(length)
        for vlan in (None, 7):
            sport = 2000 + 2 * number + (vlan or 0)
            sent = nat.expect(
                client_frame(version, protocol, sport=sport, payload=payload, vlan=vlan), TX
            )
            back = nat.expect(answer(sent, payload=payload[::-1], vlan=vlan), TX)
            assert_summed(sent, version, protocol, payload)
            assert_summed(back, version, protocol, payload[::-1])


@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_the_kernel_sends_what_a_driver_takes_in_one_piece_only(
    nat: NatRig, version: int, protocol: int
) -> None:
    """Translated all the same."""
    with devices(nat, tpx0=DRIVER - {"tx", "fragments"}):
        large = client_frame(version, protocol, payload=pattern(8000))
        sent = nat.expect(large, HANDOFF)
        nat.expect(client_frame(version, protocol), TX)
        nat.expect(answer(sent, payload=pattern(8000)), HANDOFF)


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_too_large_is_answered(nat: NatRig, version: int) -> None:
    """With the MTU of the way."""
    if not fib_lookup().mtu:
        pytest.skip("the FIB look-up tells no MTU")
    nat.serve(snat_service(version, *NEAR[version]))
    nat.expect(large(version, 9100), TOO_BIG)


@pytest.mark.parametrize("linear", [14, 34, 60])
@pytest.mark.parametrize(("version", "protocol"), BOTH)
def test_headers_behind_the_first_fragment(
    nat: NatRig, version: int, protocol: int, linear: int
) -> None:
    """They are moved there."""
    if not pulls():
        pytest.skip("this kernel can't have headers moved there")
    nat.linear = linear
    try:
        for length in (100, 8000):
            sport = 3000 + length
            sent = nat.expect(
                client_frame(version, protocol, sport=sport, payload=pattern(length)), TX
            )
            assert_summed(sent, version, protocol, pattern(length))
            nat.expect(answer(sent, payload=pattern(length)), TX)
    finally:
        nat.linear = None
