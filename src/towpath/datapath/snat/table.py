# SPDX-License-Identifier: Apache-2.0
"""Source NAT's table: emptied when other addresses are translated to, and who may use it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from towpath.datapath.errors import DatapathError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.datapath.maps.shared import SharedMaps
    from towpath.kernel.bpf.maps import Map
    from towpath.model.service import Service
    from towpath.model.snat import Snat


def fingerprint(snat: Snat) -> int:
    """Return 64 bits that differ when other addresses or ports are translated to; never 0."""
    text = f"{snat.ipv4} {snat.ipv6} {snat.ports}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") | 1


def begin(tables: SharedMaps, snat: Snat) -> None:
    """Forget translations that other addresses or ports were used for.

    They would not be found again, and hold ports until they are old.
    """
    state: Map = tables.maps["nat_states"]
    record = state.lookup(0)
    wanted = fingerprint(snat)
    if int(record["config"]) == wanted:
        return
    if record["config"]:  # a new table is empty, and its pages are not there yet
        forget(tables)
    record["config"] = wanted
    state.update(0, record)


def forget(tables: SharedMaps) -> None:
    """Empty the table."""
    for name in ("nat_heads", "nat_flows"):
        tables.rows(name).view(np.uint8)[:] = 0


def check(snat: Snat, services: Iterable[Service]) -> None:
    """Raise DatapathError for the first service that can't be translated."""
    for service in services:
        if problem := snat.problem(service):
            raise DatapathError(f"service {service.name}: {problem}")
