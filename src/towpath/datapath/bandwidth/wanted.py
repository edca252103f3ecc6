# SPDX-License-Identifier: Apache-2.0
"""What is to be limited: of the configuration, and what was set since."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from towpath.datapath.bandwidth.limits import Limit
from towpath.model.bandwidth import LIMITED, Group, Pod, Section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from towpath.datapath.address import Address

_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What has one limit."""

    name: str
    limit: Limit
    group: str = ""
    is_group: bool = False
    device: str = ""
    """Where it is: one of these three, of a pod."""
    netns: Path | None = None
    addresses: tuple[Address, ...] = ()
    origin: str = "configuration"


def wanted(section: Section, changes: Mapping[str, Mapping[str, Any]]) -> list[Aggregate]:
    """Return all aggregates, groups first.

    ``changes``: fields of `model.bandwidth.LIMITED` by the name of a pod or a group, or of what is
    none: by a device's name or an address.
    """
    return [
        *_configured(section.groups, section, changes),
        *_configured(section.pods, section, changes),
        *_others(section, changes),
    ]


def _configured(
    each: tuple[Group, ...] | tuple[Pod, ...],
    section: Section,
    changes: Mapping[str, Mapping[str, Any]],
) -> Iterator[Aggregate]:
    for one in each:
        change = changes.get(one.name, {})
        limit = _limit(section, {name: getattr(one, name, None) for name in LIMITED} | dict(change))
        origin = "configuration, changed" if change else "configuration"
        if isinstance(one, Group):
            yield Aggregate(one.name, limit, is_group=True, origin=origin)
        else:
            yield Aggregate(
                one.name,
                limit,
                group=one.group or "",
                device=one.device or "",
                netns=one.netns,
                addresses=one.addresses or (),
                origin=origin,
            )


def _others(section: Section, changes: Mapping[str, Mapping[str, Any]]) -> Iterator[Aggregate]:
    known = {each.name for each in section.groups} | {each.name for each in section.pods}
    for name, change in changes.items():
        if name not in known:
            limit = _limit(section, change)
            address = address_of(name)
            if address is None:
                yield Aggregate(name, limit, device=name, origin="set")
            else:
                yield Aggregate(name, limit, addresses=(address,), origin="set")


def _limit(section: Section, fields: Mapping[str, Any]) -> Limit:
    given = {name: each for name, each in fields.items() if each is not None}
    return Limit(**given, horizon=section.horizon * _MS)


def address_of(text: str) -> Address | None:
    """Return the address that a text is, None if it is none."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def fields(limit: Limit) -> dict[str, Any]:
    """Return what is in `model.bandwidth.LIMITED` of a limit."""
    return {name: each for name, each in asdict(limit).items() if name in LIMITED}
