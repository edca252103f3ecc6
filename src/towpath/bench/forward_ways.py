# SPDX-License-Identifier: Apache-2.0
"""The ways in which the node forwards, each with how packets arrive by it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from towpath.bench.forward_network import FIRST_BACKEND

PORT = 53
VIP = IPv4Address("203.0.113.10")
VIP_L2, VIP_DSR = IPv4Address("203.0.113.11"), IPv4Address("203.0.113.12")
"""Of Towpath's services that aren't forwarded by source NAT."""
_UDP, _IPIP = 17, 4


@dataclass(frozen=True, slots=True)
class Way:
    """One way: where clients send to, and how that arrives at a backend.

    ``by``: what the node does it with. ``stack``: whether that is the kernel's IP stack.
    ``balanced``: over all backends, by flows that it remembers. ``translated``: to the backend's
    address and from the node's, answers coming back through it. ``to_backend``: the packet, or the
    tunnel around it, has the backend's address. ``protocol`` is the one that arrives.
    """

    name: str
    about: str
    by: str
    vip: IPv4Address = VIP
    stack: bool = False
    balanced: bool = True
    translated: bool = False
    to_backend: bool = True
    protocol: int = _UDP


REDIRECT, REDIRECT_SKB = "redirect", "redirect-skb"
ROUTE, TOWPATH = "route", "towpath"
KUBE_PROXY, SHORT = "nftables", "nftables-short"
BASELINE = KUBE_PROXY
"""The way that others are compared with."""
WAYS = (
    Way(
        REDIRECT,
        "XDP that only redirects, to one backend",
        REDIRECT,
        balanced=False,
        to_backend=False,
    ),
    Way(
        ROUTE,
        "the kernel's routing, to one backend",
        ROUTE,
        FIRST_BACKEND,
        stack=True,
        balanced=False,
    ),
    Way(
        KUBE_PROXY, "kube-proxy's rules: DNAT, masquerade", KUBE_PROXY, stack=True, translated=True
    ),
    Way(SHORT, "the same by two rules", SHORT, stack=True, translated=True),
    Way("towpath-snat", "Towpath, forwarding snat", TOWPATH, translated=True),
    Way("towpath-l2", "Towpath, forwarding l2", TOWPATH, VIP_L2, to_backend=False),
    Way("towpath-dsr", "Towpath, in a tunnel", TOWPATH, VIP_DSR, protocol=_IPIP),
)

MASQUERADE, NFT_MASQUERADE = "towpath", "nftables"
BY_MASQUERADE, BY_NFTABLES = "towpath-masquerade", "nftables-masquerade"
MASQUERADE_WAYS = (
    Way(
        REDIRECT_SKB,
        "tc that only redirects",
        REDIRECT_SKB,
        FIRST_BACKEND,
        balanced=False,
    ),
    Way(
        NFT_MASQUERADE,
        "one rule of nftables",
        BY_NFTABLES,
        FIRST_BACKEND,
        stack=True,
        balanced=False,
        translated=True,
    ),
    Way(
        MASQUERADE,
        "Towpath's masquerade",
        BY_MASQUERADE,
        FIRST_BACKEND,
        balanced=False,
        translated=True,
    ),
)
"""Clients are pods here, which talk to one backend by its own address.

The first is the floor: what tc has to do at least for a packet to go on.
"""
