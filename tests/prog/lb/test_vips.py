# SPDX-License-Identifier: Apache-2.0
"""Many VIPs: each is found, whatever came and went before it, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from tests.guests import examples
from tests.prog.lb.frames import PORT, made_for
from tests.prog.lb.harness import SMALL, Rig, rigged, service
from tests.prog.lb.network import NEAR, Network
from tests.prog.lb.oracle import NO_VIP, TX, mix

from towpath.datapath.errors import CapacityError
from towpath.model import Protocol

BOTH_WAYS = True

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.oracle_parse import Address

    from towpath.model import Service

PLACES = 256  # in the index: eight for each service, then the next power of two
PROBES = 16
CROWDED = replace(SMALL, services=20)
EACH = examples(128, 24)  # VIPs of each family, three services each
ROOMY = replace(SMALL, services=4 * EACH, backends=4 * EACH)
TABLE = 251


@pytest.fixture
def rig(net: Network) -> Iterator[Rig]:
    """A load balancer with a small index of VIPs."""
    with rigged(net, limits=CROWDED) as rig:
        yield rig


def place(vip: Address) -> int:
    """Where in the index the search for a VIP begins."""
    raw = vip.packed
    tail = PORT.to_bytes(2, "big") + bytes((6, {4: 2, 6: 10}[vip.version]))
    parts = [raw[-4:] + tail] if vip.version == 4 else [raw[-4:] + tail, raw[:8], raw[8:12]]
    state = 0
    for part in parts:
        state = mix(state, int.from_bytes(part, "little"))
    return (state >> 32) % PLACES


def colliding(version: int, at: int) -> Iterator[Address]:
    """VIPs whose search begins at one place."""
    first = {4: ip_address("203.0.0.0"), 6: ip_address("2001:db8:4::")}[version]
    return (vip for n in range(1 << 16) if place(vip := first + n) == at)


def mixed(at: int) -> Iterator[Address]:
    """Of both families in turn."""
    for pair in zip(colliding(4, at), colliding(6, at), strict=False):
        yield from pair


@pytest.mark.parametrize("at", [5, PLACES - 3])
def test_vips_that_collide(rig: Rig, at: int) -> None:
    """As many as are looked at, also around the end of the index, in any order of coming."""
    services = [alone(vip) for vip in islice(mixed(at), PROBES)]
    stranger = alone(next(islice(mixed(at), PROBES, None)))
    rig.serve(*services)
    for each in services:
        rig.expect(made_for(each), TX)
    rig.expect(made_for(stranger), NO_VIP)
    for gone in (services[0], services[7], services[15]):
        rest = [each for each in services if each != gone]
        for present in (rest, [*rest, stranger], rest, services):
            rig.serve(*present)
            for each in (*services, stranger):
                rig.expect(made_for(each), TX if each in present else NO_VIP)


def test_a_vip_that_finds_no_place_is_refused(rig: Rig) -> None:
    """One more than are looked at, though there is room elsewhere; the others work on."""
    *services, last = [alone(vip) for vip in islice(mixed(77), PROBES + 1)]
    rig.serve(*services)
    with pytest.raises(CapacityError, match="VIP index"):
        rig.balancer.apply([*services, last])
    rig.told(rig.balancer.observed())
    for each in services:
        rig.expect(made_for(each), TX)
    rig.expect(made_for(last), NO_VIP)
    rig.serve(*services[1:], last)
    rig.expect(made_for(last), TX)


def alone(vip: Address, port: int = PORT, protocol: Protocol = Protocol.TCP) -> Service:
    """A service with one backend."""
    return service(vip, NEAR[vip.version][0], port=port, protocol=protocol, table_size=TABLE)


def test_hundreds_that_come_and_go(net: Network) -> None:
    """An index as full as it gets, for several generations of services."""
    kinds = ((80, Protocol.TCP), (80, Protocol.UDP), (443, Protocol.TCP))
    vips = [ip_address(first) + n for first in ("203.0.113.0", "2001:db8:4::") for n in range(EACH)]
    pool = [alone(vip, *kind) for vip in vips for kind in kinds]
    frames = {each: made_for(each) for each in pool}
    with rigged(net, limits=ROOMY) as rig:
        for step in range(examples(6, 3)):
            chosen = {each for n, each in enumerate(pool) if n % 3 != step % 3}
            rig.serve(*chosen)
            for each, made in frames.items():
                rig.expect(made, TX if each in chosen else NO_VIP)
