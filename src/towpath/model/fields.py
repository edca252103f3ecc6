# SPDX-License-Identifier: Apache-2.0
"""What may be written for a service, a backend or a question, so that editors complete it.

Each says no more than its dataclass: the values are checked when the object is made of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Required, TypedDict

from towpath.model.health import Health
from towpath.model.kinds import Address, Ports, Prefix
from towpath.model.quic import Quic
from towpath.model.service import (
    Affinity,
    Backend,
    BackendState,
    Encap,
    Forwarding,
    HashBy,
    Protocol,
    Scope,
    SourceRoute,
)


class BackendFields(TypedDict, total=False):
    """The fields of a :class:`towpath.Backend`; addresses may be text."""

    address: Required[Address | str]
    weight: int
    state: BackendState | str
    port: int | None
    local: bool
    server_id: int | Sequence[int] | None


class ServiceFields(TypedDict, total=False):
    """The fields of a :class:`towpath.Service` besides its name, as in a configuration file."""

    vip: Required[Address | Prefix | str]
    port: Required[int | str | Ports | Sequence[int | str]]
    protocol: Protocol | str
    backends: Sequence[Backend | BackendFields | Address | str]
    forwarding: Forwarding
    table_size: int
    flow_table: bool
    flow_timeout: int | str | None
    affinity: Affinity | int | str | Mapping[str, Any] | None
    allow_from: Sequence[Prefix | Address | str] | None
    health: Health | str | Mapping[str, Any] | None
    scope: Scope
    hash_by: HashBy
    encap: Encap
    encap_port: int | None
    quic: Quic | str | Mapping[str, Any] | None
    route_from: Sequence[SourceRoute | Mapping[str, Any]]


class FlowFields(TypedDict, total=False):
    """Which flows are asked for. What isn't given, or None, may be anything."""

    service: str | None
    """Name of the service."""
    vip: Address | Prefix | str | None
    """The VIP, as the service has it."""
    backend: Address | str | None
    client: Address | Prefix | str | None
    """The client's address, or a prefix that it is in."""
    max_idle: float | None
    """Seconds: seen within this time."""
    translated: Address | str | None
    """The address, or ADDRESS:PORT, that the backend sees of a translated flow."""
    expired: bool | None
    """True: also translated flows whose time is over, if no other has taken their port."""
