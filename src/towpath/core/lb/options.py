# SPDX-License-Identifier: Apache-2.0
"""How a service works, apart from which packets it is for and which backends it has."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from towpath.model.kinds import fewest
from towpath.model.service import DEFAULT_TABLE, Affinity, Encap, Forwarding, HashBy

if TYPE_CHECKING:
    from towpath.model.kinds import Prefix
    from towpath.model.quic import Quic
    from towpath.model.service import Service


@dataclass(frozen=True, slots=True)
class Options:
    """Fields of :class:`towpath.model.Service`, by the same names."""

    table_size: int = DEFAULT_TABLE
    flow_table: bool = True
    flow_timeout: int | None = None
    forwarding: Forwarding = "dsr"
    hash_by: HashBy = "flow"
    encap: Encap = "ipip"
    encap_port: int | None = None
    """The port that is used: None with other kinds than those of UDP."""
    affinity: Affinity | None = None
    allow_from: tuple[Prefix, ...] | None = None
    """The fewest prefixes that have these addresses: equal sets are equal."""
    quic: Quic | None = None

    @classmethod
    def of(cls, service: Service) -> Options:
        """Return those of a service."""
        allowed = None if service.allow_from is None else fewest(service.allow_from)
        return _once(
            table_size=service.table_size,
            flow_table=service.flow_table,
            flow_timeout=service.flow_timeout,
            forwarding=service.forwarding,
            hash_by=service.hash_by,
            encap=service.encap,
            encap_port=service.tunnel.port,
            affinity=service.affinity,
            allow_from=allowed,
            quic=service.quic,
        )

    def fields(self) -> dict[str, Any]:
        """Return them by name, to make a service of."""
        return {name: getattr(self, name) for name in FIELDS}


_once = lru_cache(maxsize=256)(Options)
"""One object for the same: thousands of services have few options."""
FIELDS = tuple(field.name for field in fields(Options))
