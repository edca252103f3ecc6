# SPDX-License-Identifier: Apache-2.0
"""The VIP index: what is written is what the program finds, before, between and after."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.unit.datapath.harness_program import BTF, hash_vip, service_of
from tests.unit.datapath.lb.harness_index import SLOTS, IndexMachine, Packet

from towpath.datapath.address import FAMILY_V6
from towpath.datapath.errors import CapacityError
from towpath.datapath.lb.grace import Reclaimer
from towpath.datapath.lb.lookup import pack_key
from towpath.datapath.lb.vips import VipIndex
from towpath.model import Protocol, ServiceKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.unit.datapath.harness_program import Array

SLOT = BTF.dtype("vip_slot")
PROBES = int(BTF.enum("vip_limits")["VIP_PROBES"])
LENGTHS, PAGE = BTF.dtype("vip_lengths"), BTF.dtype("port_page")
PREFIX = int(BTF.enum("vip_kind")["VIP_PREFIX"])
NEVER_USED = 0


def key(address: str, port: int = 80, protocol: Protocol = Protocol.TCP) -> bytes:
    """The 20 bytes of a struct vip_key."""
    return pack_key(ServiceKey(ip_address(address), port, protocol))


def found_in(slots: Array, wanted: bytes) -> int:
    """What the program finds in the index, without any prefixes."""
    return service_of(slots, np.zeros(1, LENGTHS), np.zeros(1, PAGE), wanted)


def colliding(count: int) -> list[bytes]:
    """Keys that the program begins to look for in one and the same slot, the last."""
    both = (key(address, port) for port in range(1, 65536) for address in ("10.0.0.1", "fd00::1"))
    return list(islice((each for each in both if hash_vip(each) >> 32 & SLOTS - 1 == 63), count))


# More in one window than it has slots, one that wraps around, and others that stray into it.
CROWD = colliding(PROBES + 4)
KEYS = [
    *CROWD,
    *(key(f"203.0.113.{host}") for host in range(6)),
    *(key(f"2001:db8:{net:x}::10") for net in range(6)),
    key("203.0.113.0", 80, Protocol.UDP),
]


def candidates(slots: Array, wanted: bytes) -> list[int]:
    """The slots that the program looks at, in its order."""
    first = hash_vip(wanted) >> 32
    return [(first + i) % len(slots) for i in range(PROBES)]


def steps(slots: Array, wanted: bytes) -> Iterator[int]:
    """Look a key up as the program does, one load after the other."""
    for at in candidates(slots, wanted):
        found = slots["key"][at].tobytes()
        yield 0
        if found[19] == NEVER_USED:
            return
        compared = slice(0, 20) if wanted[19] == FAMILY_V6 else slice(12, 20)
        if found[compared] == wanted[compared]:
            yield 0
            service = int(slots["service"][at])
            if service:
                yield service
                return


class VipMachine(IndexMachine[VipIndex, bytes]):
    """Keys of VIPs lead to services."""

    slot, word, probes = SLOT, "service", PROBES
    all_keys, crowd_keys = KEYS, CROWD

    def begin(self, reclaimer: Reclaimer) -> VipIndex:
        """Return an index over `slots`."""
        return VipIndex(self.slots, PROBES, reclaimer, PREFIX)

    def put(self, key: bytes, value: int) -> None:
        """Have a key lead to a service."""
        self.index.set(key, value)

    def take_out(self, key: bytes) -> None:
        """Have a key lead nowhere."""
        self.index.remove(key)

    def candidates(self, key: bytes) -> Sequence[int]:
        """Return the slots that the program looks at."""
        return candidates(self.slots, key)

    def look_up(self, key: bytes) -> Iterator[int]:
        """Look a key up as the program does."""
        return steps(self.slots, key)

    def found(self, key: bytes) -> int:
        """Return the service that the program finds."""
        return found_in(self.slots, key)

    def read_back(self) -> dict[bytes, int]:
        """Return all that iterating gives."""
        return dict(self.index)


TestVips = VipMachine.TestCase


def test_a_slot_once_used_is_never_unused_again() -> None:
    """A look-up ends at a slot never used, so one that was keeps its family."""
    slots = np.zeros(SLOTS, SLOT)
    index = VipIndex(slots, PROBES, Reclaimer(lambda: None), PREFIX)
    for each in KEYS[:3]:
        index.set(each, 1)
    used = np.flatnonzero(slots["key"]["family"])
    for each in KEYS[:3]:
        index.remove(each)
    assert np.flatnonzero(slots["key"]["family"]).tolist() == used.tolist()


def test_a_packet_never_gets_the_service_of_the_next_key_in_its_slot() -> None:
    """It reads a removed key, then the slot becomes another's without a wait for it."""
    slots = np.zeros(SLOTS, SLOT)
    index = VipIndex(slots, PROBES, Reclaimer(lambda: None), PREFIX)
    for number, each in enumerate(CROWD[:PROBES], 1):
        index.set(each, number)
    first, second, *others = CROWD[:PROBES]
    index.remove(first)
    index.remove(second)
    index.set(CROWD[PROBES], 98)  # waits, and takes the first one's slot
    packet = Packet(steps(slots, second))
    assert packet.goes_on()
    assert packet.goes_on()
    index.set(CROWD[PROBES + 1], 99)  # the second one's, for which nobody has to wait
    assert slots["service"].tolist().count(99) == 1
    assert packet.finish() == 0
    assert [found_in(slots, each) for each in others] == list(range(3, PROBES + 1))


def test_a_full_window_is_refused_and_changes_nothing() -> None:
    """Sixteen keys in a window of sixteen: the next is refused, naming the setting."""
    slots = np.zeros(SLOTS, SLOT)
    index = VipIndex(slots, PROBES, Reclaimer(lambda: None), PREFIX)
    for number, each in enumerate(CROWD[:PROBES], 1):
        index.set(each, number)
    before = slots.tobytes()
    with pytest.raises(CapacityError, match=r"VIP index.*limits\.services"):
        index.set(CROWD[PROBES], 99)
    assert slots.tobytes() == before
    index.set(CROWD[0], 77)  # a key that is there needs no room
    assert found_in(slots, CROWD[0]) == 77
    index.remove(CROWD[1])
    index.set(CROWD[PROBES], 99)
    assert found_in(slots, CROWD[PROBES]) == 99


def test_a_removed_slot_is_used_again_only_after_a_wait() -> None:
    """With a fresh slot in the window there is no wait, with none there is one."""
    waits: list[int] = []
    slots = np.zeros(SLOTS, SLOT)
    index = VipIndex(slots, PROBES, Reclaimer(lambda: waits.append(1)), PREFIX)
    for _ in range(PROBES):
        index.set(CROWD[0], 1)
        index.remove(CROWD[0])
    assert waits == []
    index.set(CROWD[1], 1)
    assert waits == [1]
