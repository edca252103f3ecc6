# SPDX-License-Identifier: Apache-2.0
"""What sets of wildcard rules are made of, so that they are like those of real filters.

In the manner of ClassBench (Taylor and Turner, IEEE/ACM Transactions on Networking, 2007):
access control lists (acl), firewalls (fw) and IP chains (ipc) differ in which pairs of prefix
lengths, kinds of port ranges and protocols they have, and addresses come in clusters. The numbers
below are this project's own, made so that a set has about as many different masks as one of
ClassBench's, since that is what look-ups by masks depend on:

    ======  ==============================  ===============================
    set     of prefixes, at 1,000 / 10,000  with ports and protocol
    ======  ==============================  ===============================
    acl     81 / 152                        140 / 303
    fw      76 / 122                        146 / 272
    ipc     205 / 302                       342 / 720
    ======  ==============================  ===============================
"""

from __future__ import annotations

from dataclasses import dataclass

ANY, HIGH, EXACT, RANGE = range(4)
"""Kinds of port ranges: all, those from 1024 on, one port, a few ports."""

TCP, UDP, ICMP, GRE, NONE = 6, 17, 1, 47, -1


@dataclass(frozen=True, slots=True)
class Flavour:
    """What one kind of filter is made of; weights need not add up to anything.

    ``lengths``: pairs of prefix lengths of IPv4. ``spread``: shares of lengths that are moved by
    one bit, two bits and so on. ``ports``: pairs of kinds, of source and destination; ``apart``:
    the share of pairs of lengths that a pair of kinds doesn't go with. ``dports``: how many
    different single ports and ranges there are. ``protocols``: for rules with any port given, and
    for those without. ``clusters``: how uneven the trees of addresses are, 0 to 1.
    """

    lengths: dict[tuple[int, int], float]
    spread: tuple[float, ...]
    ports: dict[tuple[int, int], float]
    apart: float
    dports: tuple[int, int]
    protocols: tuple[dict[int, float], dict[int, float]]
    clusters: tuple[float, float]


ACL = Flavour(
    lengths={
        (32, 32): 60,
        (24, 32): 6,
        (23, 32): 4,
        (32, 24): 4,
        (32, 22): 4,
        (32, 27): 3,
        (27, 32): 3,
        (32, 20): 2,
        (22, 32): 2,
        (20, 32): 1,
        (32, 16): 1,
        (16, 32): 1,
        (0, 32): 1,
        (32, 0): 1,
        (24, 24): 1,
        (23, 21): 0.6,
        (21, 24): 0.6,
        (28, 24): 0.6,
        (24, 28): 0.4,
        (16, 16): 0.3,
        (0, 24): 0.3,
        (24, 0): 0.3,
        (20, 12): 0.2,
        (12, 30): 0.2,
        (8, 24): 0.1,
        (0, 16): 0.1,
        (16, 8): 0.05,
        (0, 0): 0.01,
    },
    spread=(0.36, 0.02),
    ports={(ANY, EXACT): 56, (ANY, ANY): 31, (ANY, RANGE): 11, (ANY, HIGH): 2},
    apart=0.5,
    dports=(80, 40),
    protocols=({TCP: 97, UDP: 3}, {TCP: 70, NONE: 20, ICMP: 7, UDP: 3}),
    clusters=(0.93, 0.98),
)
FW = Flavour(
    lengths={
        (0, 32): 30,
        (1, 32): 20,
        (2, 32): 6,
        (32, 0): 8,
        (32, 1): 6,
        (32, 2): 2,
        (32, 32): 8,
        (0, 30): 4,
        (30, 0): 3,
        (28, 0): 2,
        (0, 28): 2,
        (29, 32): 1,
        (32, 28): 1,
        (24, 0): 1,
        (0, 24): 1,
        (21, 0): 0.8,
        (0, 0): 0.6,
        (32, 22): 0.6,
        (18, 0): 0.4,
        (16, 32): 0.4,
        (0, 16): 0.2,
        (15, 0): 0.2,
        (8, 0): 0.1,
        (12, 1): 0.1,
    },
    spread=(0.42, 0.06),
    ports={
        (ANY, EXACT): 56,
        (ANY, ANY): 23,
        (EXACT, ANY): 9,
        (HIGH, HIGH): 6,
        (EXACT, EXACT): 2,
        (EXACT, HIGH): 2,
        (HIGH, EXACT): 1.6,
        (HIGH, RANGE): 0.1,
    },
    apart=0.7,
    dports=(40, 6),
    protocols=({TCP: 64, UDP: 36}, {TCP: 40, UDP: 20, GRE: 20, ICMP: 15, NONE: 5}),
    clusters=(0.8, 0.8),
)
IPC = Flavour(
    lengths={
        (32, 32): 20,
        (24, 32): 6,
        (32, 24): 5,
        (24, 24): 6,
        (23, 24): 4,
        (25, 32): 4,
        (32, 26): 3,
        (24, 23): 3,
        (26, 31): 3,
        (0, 32): 3,
        (32, 0): 3,
        (28, 32): 2,
        (32, 28): 2,
        (16, 32): 2,
        (32, 16): 2,
        (24, 16): 1,
        (16, 24): 1,
        (20, 32): 1,
        (32, 20): 1,
        (0, 24): 1,
        (24, 0): 1,
        (16, 16): 0.8,
        (20, 20): 0.8,
        (28, 28): 0.8,
        (8, 32): 0.3,
        (32, 8): 0.3,
        (12, 16): 0.2,
        (16, 0): 0.2,
        (0, 16): 0.2,
        (12, 28): 0.2,
        (28, 12): 0.2,
        (0, 0): 0.1,
    },
    spread=(0.72, 0.14),
    ports={
        (ANY, ANY): 38,
        (ANY, EXACT): 36,
        (EXACT, ANY): 14,
        (ANY, HIGH): 6.6,
        (ANY, RANGE): 2.7,
        (RANGE, ANY): 2.2,
        (HIGH, ANY): 0.4,
        (EXACT, EXACT): 0.3,
    },
    apart=0.7,
    dports=(50, 10),
    protocols=({UDP: 58, TCP: 42}, {NONE: 75, TCP: 12, UDP: 9, ICMP: 3, GRE: 1}),
    clusters=(0.95, 0.93),
)
FLAVOURS = {"acl": ACL, "fw": FW, "ipc": IPC}
