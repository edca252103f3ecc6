# SPDX-License-Identifier: Apache-2.0
"""Services of a small world, so that two draws have much in common."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from towpath.model import Affinity, Backend, BackendState, Protocol, Quic, Service, SourceRoute

if TYPE_CHECKING:
    from towpath.model import Address

KEYS: list[tuple[Address, int, Protocol]] = [
    (ip_address("203.0.113.10"), 80, Protocol.TCP),
    (ip_address("203.0.113.10"), 80, Protocol.UDP),
    (ip_address("203.0.113.11"), 80, Protocol.TCP),
    (ip_address("2001:db8::10"), 443, Protocol.TCP),
]
ADDRESSES = [
    ip_address(text) for text in ("192.0.2.11", "192.0.2.12", "2001:db8:1::11", "2001:db8:1::12")
]
SOURCES = [
    None,
    *(
        tuple(map(ip_network, texts))
        for texts in (
            ["0.0.0.0/0"],
            ["198.51.100.0/24", "::/0"],
            ["198.51.100.7/32", "203.0.113.128/25", "2001:db8::/32", "2001:db9::1/128"],
        )
    ),
]
ROUTED = [
    tuple(map(ip_network, texts))
    for texts in (["198.51.100.0/24", "198.51.100.7/32"], ["0.0.0.0/0"], ["2001:db8::/33"])
]
SIZES = [5, 7, 13, 31]

routes: st.SearchStrategy[dict[int, list[Address]]] = st.just({}) | st.dictionaries(
    st.integers(0, 2), st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=3), max_size=2
)
"""Which backends new flows from which of the prefixes go to, as far as there are such."""


FORMS = [None, Quic(length=1, rotation=5, length_self_description=True), Quic("katran")]
SERVER_IDS = [1, 2, 3, 200, 201]


def services(key: tuple[Address, int, Protocol]) -> st.SearchStrategy[Service]:
    """Any service of one key, of up to four backends."""
    return st.builds(
        lambda backends, size, options, ids: Service(
            "any",
            *key[:3],
            tuple(
                Backend(address, each[0], each[1], server_id=ids[1].get(at, ()) if ids[0] else ())
                for at, (address, each) in enumerate(backends.items())
            ),
            table_size=size,
            flow_table=options[0],
            forwarding=options[1],
            affinity=options[2],
            allow_from=options[3],
            quic=ids[0],
            route_from=tuple(
                SourceRoute(ROUTED[at], chosen)
                for at, wanted in options[4].items()
                if (chosen := tuple(each for each in wanted if each in backends))
            ),
        ),
        st.dictionaries(
            st.sampled_from(ADDRESSES),
            st.tuples(st.integers(0, 3), st.sampled_from(BackendState)),
            max_size=4,
        ),
        st.sampled_from(SIZES),
        st.tuples(
            st.booleans(),
            st.sampled_from(["dsr", "l2"]),
            st.none() | st.integers(1, 100).map(Affinity),
            st.sampled_from(SOURCES),
            routes,
        ),
        st.tuples(
            st.sampled_from(FORMS if key[2] is Protocol.UDP else [None]),
            st.lists(st.none() | st.integers(0, 3), min_size=5, max_size=5).map(_shared_out),
        ),
    )


def _shared_out(owners: list[int | None]) -> dict[int, tuple[int, ...]]:
    """Ids by whom they name: each one backend, or none."""
    return {
        at: tuple(n for n, owner in zip(SERVER_IDS, owners, strict=True) if owner == at)
        for at in range(4)
    }


states = st.tuples(*(st.none() | services(key) for key in KEYS)).map(
    lambda each: tuple(service for service in each if service)
)
"""What may be wished for: each of the keys, or not."""
