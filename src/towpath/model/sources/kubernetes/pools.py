# SPDX-License-Identifier: Apache-2.0
"""Pools of addresses for Services of type LoadBalancer, as a ConfigMap has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from towpath.model.decode import decode
from towpath.model.kinds import Flag, Name, OrNone
from towpath.model.kinds.kubernetes import Labels, Namespaces
from towpath.model.kinds.ranges import AddressRange, AddressRanges
from towpath.model.parse import parse_text
from towpath.model.service import PYDANTIC

if TYPE_CHECKING:
    from towpath.model.decode import Findings, Tree

KEY = "pools.yaml"
"""Of the ConfigMap."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Addresses, and which Services get them."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    name: Annotated[str, Name(63)]
    addresses: Annotated[tuple[AddressRange, ...], AddressRanges()]
    """All of them are given, the first and the last of a prefix as well."""
    auto_assign: Annotated[bool, Flag()] = True
    """False: only Services that name the pool, or one of its addresses, get one."""
    namespaces: Annotated[tuple[str, ...] | None, OrNone(Namespaces())] = None
    """Whose Services get addresses. None: all."""
    selector: Annotated[tuple[tuple[str, str], ...] | None, OrNone(Labels())] = None
    """Labels that such a Service must have. None: any."""


@dataclass(frozen=True, slots=True)
class _PoolFile:
    pools: tuple[Pool, ...]


def parse_pools(text: str, filename: str) -> tuple[Pool, ...]:
    """Read pools. ConfigError: every problem that the text has; ``filename`` is for messages."""
    return parse_text(_PoolFile, text, filename, _checked).pools


def _checked(raw: object, found: Findings) -> Tree | None:
    tree = decode(_PoolFile, raw, (), found)
    if tree is None:
        return None
    seen: set[str] = set()
    for index, pool in enumerate(tree.get("pools", ())):
        name = pool.get("name") if pool else None
        if name in seen:
            found.add(("pools", index, "name"), f"{name} is there twice; allowed: once")
        if name is not None:
            seen.add(name)
    return tree
