# SPDX-License-Identifier: Apache-2.0
"""Rules as ``bpf/abi/wildcard.h`` has them, and back.

A rule is packed by :mod:`struct`, which takes a fraction of the time that filling in a
numpy record takes. That the two agree is tested.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any

import numpy as np

from towpath.wildcard.rule import MAX_PRIORITY, Packet, Ports, Prefix, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Array = np.ndarray[Any, Any]

NUMBER_BITS = 44
MAX_NUMBER = (1 << NUMBER_BITS) - 2  # its complement, the rank of priority 0, isn't 0
BOTH = 1  # WILDCARD_BOTH
_SPORT, _DPORT, _PROTOCOL, _VLAN = 48, 32, 24, 12
_PORT, _BYTE, _TWELVE = 0xFFFF, 0xFF, 0xFFF
_LOW = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Family:
    """How the addresses of one family lie in a key. ``join`` and ``split`` take and give both."""

    version: int
    bits: int
    words: int
    record: struct.Struct
    join: Callable[[int, int], tuple[int, ...]]
    split: Callable[[Sequence[int]], tuple[int, int]]
    network: Callable[[tuple[int, int]], Prefix]


V4 = Family(
    version=4,
    bits=32,
    words=2,
    record=struct.Struct("=QQ4HII2Q2Q"),
    join=lambda source, destination: (source << 32 | destination,),
    split=lambda words: (words[0] >> 32, words[0] & 0xFFFFFFFF),
    network=IPv4Network,
)
V6 = Family(
    version=6,
    bits=128,
    words=5,
    record=struct.Struct("=QQ4HII5Q5Q16x"),
    join=lambda source, destination: (
        source >> 64,
        source & _LOW,
        destination >> 64,
        destination & _LOW,
    ),
    split=lambda words: (words[0] << 64 | words[1], words[2] << 64 | words[3]),
    network=IPv6Network,
)
FAMILIES = {4: V4, 6: V6}


def rank_of(priority: int, number: int) -> int:
    """What the best rule has most of: priority, then age."""
    return priority << NUMBER_BITS | ((1 << NUMBER_BITS) - 1 - number)


def number_of(rank: int) -> int:
    """A rule's number."""
    return ~rank & (1 << NUMBER_BITS) - 1


def encode(family: Family, rule: Rule, number: int, device: int = 0, version: int = 0) -> bytes:
    """One rule. ``device`` is the number of its device in keys, if it names one."""
    source, source_mask = _prefix(rule.source, family.bits)
    destination, destination_mask = _prefix(rule.destination, family.bits)
    (sport, last_sport), (dport, last_dport) = rule.source_ports, rule.destination_ports
    same_sport, same_dport = _common(sport, last_sport), _common(dport, last_dport)
    bits = (sport & same_sport) << _SPORT | (dport & same_dport) << _DPORT
    mask = same_sport << _SPORT | same_dport << _DPORT
    if rule.protocol is not None:
        bits |= rule.protocol << _PROTOCOL
        mask |= _BYTE << _PROTOCOL
    if rule.vlan is not None:
        bits |= rule.vlan << _VLAN
        mask |= _TWELVE << _VLAN
    if rule.ifindex is not None:
        bits |= device
        mask |= _TWELVE
    return family.record.pack(
        rank_of(rule.priority, number),
        rule.value,
        sport,
        last_sport - sport,
        dport,
        last_dport - dport,
        version,
        BOTH if rule.source is None else 0,
        *family.join(source, destination),
        bits,
        *family.join(source_mask, destination_mask),
        mask,
    )


def _prefix(prefix: Prefix | None, bits: int) -> tuple[int, int]:
    if prefix is None:
        return 0, 0
    return int(prefix.network_address), (1 << bits) - (1 << bits - prefix.prefixlen)


def _common(first: int, last: int) -> int:
    """The bits in which all ports of a range agree, from the highest on."""
    return _PORT & ~((1 << (first ^ last).bit_length()) - 1)


def decode(family: Family, record: Any, ifindexes: Mapping[int, int]) -> Rule:
    """A rule from its record; ``ifindexes`` has the device for each number."""
    head = record["head"]
    bits, mask = record["bits"].tolist(), record["mask"].tolist()
    both = int(head["flags"]) & BOTH
    source, destination = family.split(bits)
    source_mask, destination_mask = family.split(mask)
    return Rule(
        None if both else family.network((source, source_mask.bit_count())),
        None if both else family.network((destination, destination_mask.bit_count())),
        _ports(head, "sport"),
        _ports(head, "dport"),
        bits[-1] >> _PROTOCOL & _BYTE if mask[-1] >> _PROTOCOL & _BYTE else None,
        bits[-1] >> _VLAN & _TWELVE if mask[-1] >> _VLAN & _TWELVE else None,
        ifindexes[bits[-1] & _TWELVE] if mask[-1] & _TWELVE else None,
        int(head["rank"]) >> NUMBER_BITS & MAX_PRIORITY,
        int(head["value"]),
    )


def _ports(head: Any, which: str) -> Ports:
    low = int(head[f"{which}_low"])
    return low, low + int(head[f"{which}_span"])


def key_of(family: Family, packet: Packet, device: int) -> tuple[int, ...]:
    """A packet as BPF has it."""
    return (
        *family.join(int(packet.source), int(packet.destination)),
        packet.source_port << _SPORT
        | packet.destination_port << _DPORT
        | packet.protocol << _PROTOCOL
        | packet.vlan << _VLAN
        | device,
    )


def matching(records: Array, key: Sequence[int]) -> Array:
    """For each of these rules, whether it matches a key: all are compared, one by one."""
    words = np.array(key, np.uint64)
    head = records["head"]
    matches = (((records["bits"] ^ words) & records["mask"]) == 0).all(axis=1)
    for which, shift in (("sport", _SPORT), ("dport", _DPORT)):
        above = (key[-1] >> shift & _PORT) - head[f"{which}_low"].astype(np.int32)
        matches &= (above >= 0) & (above <= head[f"{which}_span"])
    result: Array = matches
    return result
