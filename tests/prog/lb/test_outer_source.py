# SPDX-License-Identifier: Apache-2.0
"""Outer source addresses: the route's, one that is given, or a prefix whose host bits vary."""

from __future__ import annotations

import math
from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from tests.guests import examples
from tests.prog.lb.frames import VIPS, flows, frame
from tests.prog.lb.harness import Rig, rigged, service
from tests.prog.lb.network import FAR, IN, NEAR, NEAR_UNRESOLVED, OUT, OWN, Network
from tests.prog.lb.oracle import HANDOFF, REDIRECT, TX

from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.model import Backend, Source

COMBINATIONS = [(4, 4), (4, 6), (6, 6)]  # what is inside, what is outside
SOURCE_FIELDS = {4: slice(26, 30), 6: slice(22, 38)}


def sources(rig: Rig, inside: int, outside: int) -> Counter[bytes]:
    """How often each source address was used by a few hundred flows."""
    rig.serve(service(VIPS[inside], *NEAR[outside]))
    made = (rig.expect(each, TX).frame for each in flows(examples(300), inside))
    return Counter(out[SOURCE_FIELDS[outside]] for out in made)


def test_the_routes_own_choice(net: Network) -> None:
    """By default the address of the device that the packet leaves by, where a look-up tells it."""
    with rigged(net) as rig:
        for inside, outside in COMBINATIONS:
            for backends, device, verdict in ((NEAR, IN, TX), (FAR, OUT, REDIRECT)):
                rig.serve(service(VIPS[inside], *backends[outside]))
                out = rig.expect(frame(inside), verdict).frame
                told = device if fib_lookup().source else IN
                assert out[SOURCE_FIELDS[outside]] == OWN[told][outside].packed


def test_an_address_that_is_given(net: Network) -> None:
    """For every flow and device, whether this node has it or not."""
    given4, given6 = IPv4Address("198.51.100.200"), IPv6Address("2001:db8:aa::200")
    packed = {4: given4.packed, 6: given6.packed}
    with rigged(net, source=Source(given4, given6)) as rig:
        for inside, outside in COMBINATIONS:
            assert set(sources(rig, inside, outside)) == {packed[outside]}
            rig.serve(service(VIPS[inside], *FAR[outside]))
            rig.expect(frame(inside), REDIRECT)


@pytest.mark.parametrize(("bits4", "bits6"), [(0, 0), (1, 31), (8, 32), (13, 33), (24, 80)])
def test_host_bits_of_a_prefix(net: Network, bits4: int, bits6: int) -> None:
    """All of them vary with the flow: at most the last 32, which is how many the hash has."""
    prefix4 = IPv4Network(f"10.0.0.0/{32 - bits4}")
    prefix6 = IPv6Network(f"2001:db8::/{128 - bits6}")
    with rigged(net, source=Source(prefix4, prefix6)) as rig:
        used = sources(rig, 4, 4)
        assert all(IPv4Address(each) in prefix4 for each in used)
        assert_all_bits_vary(used, bits4)
        for inside in (4, 6):
            used = sources(rig, inside, 6)
            assert all(IPv6Address(each) in prefix6 for each in used)
            assert_all_bits_vary(used, min(bits6, 32))


def assert_all_bits_vary(used: Counter[bytes], bits: int) -> None:
    """Each host bit is set about half of the time, and none beside them."""
    total = used.total()
    for bit in range(32):
        ones = sum(n for each, n in used.items() if int.from_bytes(each[-4:], "big") >> bit & 1)
        if bit < bits:
            assert 0.3 * total < ones < 0.7 * total, bit
        else:
            assert ones in (0, total)


@pytest.mark.thorough
def test_flows_of_one_backend_use_many_sources(net: Network) -> None:
    """The address must not follow from the slot, which is the backend's: RSS needs the variety."""
    prefix = IPv4Network("10.0.0.0/24")
    of_few_slots, others = Backend(NEAR[4][0], 1), Backend(NEAR[4][1], 60)
    used: Counter[bytes] = Counter()
    with rigged(net, source=Source(ipv4=prefix)) as rig:
        rig.serve(service(VIPS[4], of_few_slots, others, table_size=251))
        for each in flows(examples(8000, 1500)):
            outcome = rig.check(each)
            if outcome.backend == of_few_slots.address:
                used[outcome.frame[SOURCE_FIELDS[4]]] += 1
    # As many as are drawn with replacement from 256, all but a few.
    expected = 256 * -math.expm1(-used.total() / 256)
    assert len(used) > 0.85 * expected


def test_a_packet_handed_over_has_its_source_too(net: Network) -> None:
    """The kernel adds the link layer and nothing else."""
    given = Source(IPv4Network("10.0.0.0/16"), IPv6Network("2001:db8:aa::/64"))
    with rigged(net, source=given) as rig:
        rig.serve(service(VIPS[4], *NEAR_UNRESOLVED.values()))
        for each in flows(20):
            rig.expect(each, HANDOFF)


def test_a_flow_keeps_its_source(net: Network) -> None:
    """Else its packets could be reordered."""
    with rigged(net, source=Source(ipv4=IPv4Network("10.0.0.0/8"))) as rig:
        rig.serve(service(VIPS[4], *NEAR[4]))
        first = rig.expect(frame(4), TX).frame
        rig.forget_ways()
        assert rig.expect(frame(4), TX).frame == first
