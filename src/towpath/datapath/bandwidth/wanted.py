# SPDX-License-Identifier: Apache-2.0
"""What is to be limited: of the configuration, and what was set since."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

from towpath.datapath.bandwidth.limits import Limit
from towpath.model.bandwidth import LIMITED, Group, Pod, Section, Sourced

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from towpath.datapath.address import Address

_MS = 1_000_000
NOTHING = Sourced()


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
    sourced: bool = False
    """A source has told it: its addresses are those of a namespace that a device leads to."""


class Wanted(NamedTuple):
    """What there is to be limited."""

    aggregates: list[Aggregate]
    """Groups first."""
    left_out: dict[str, str]
    """What a source has told and can't be had, by name, and why."""


def wanted(
    section: Section, changes: Mapping[str, Mapping[str, Any]], sourced: Sourced = NOTHING
) -> Wanted:
    """Return all aggregates. What a source has told has the room that is left.

    ``changes``: fields of `model.bandwidth.LIMITED` by the name of a pod or a group, or of what is
    none: by a device's name or an address.
    """
    configured = [
        *_configured(section.groups, section, changes),
        *_configured(section.pods, section, changes),
        *_others(section, changes, sourced),
    ]
    names = {each.name for each in configured}
    addresses = {address for each in configured for address in each.addresses}
    room = section.aggregates - len(configured)
    taken: list[Aggregate] = []
    left_out: dict[str, str] = {}
    told = (
        *_configured(sourced.groups, section, changes, sourced.owner),
        *_configured(sourced.pods, section, changes, sourced.owner),
    )
    for each in told:
        if each.name in names or addresses & {*each.addresses}:
            left_out[each.name] = "bandwidth has a limit for it, which holds"
        elif len(taken) >= room:
            left_out[each.name] = f"there is no room for it: bandwidth.aggregates is {room}"
        else:
            taken.append(each)
    groups = {each.name for each in taken if each.is_group}
    fitting = [
        replace(each, group="") if each.group and each.group not in groups else each
        for each in taken
    ]
    together = [*configured, *fitting]
    return Wanted(sorted(together, key=lambda each: not each.is_group), left_out)


def _configured(
    each: tuple[Group, ...] | tuple[Pod, ...],
    section: Section,
    changes: Mapping[str, Mapping[str, Any]],
    owner: str = "",
) -> Iterator[Aggregate]:
    for one in each:
        change = changes.get(one.name, {})
        limit = _limit(section, {name: getattr(one, name, None) for name in LIMITED} | dict(change))
        told = owner or "configuration"
        origin = f"{told}, changed" if change else told
        if isinstance(one, Group):
            yield Aggregate(one.name, limit, is_group=True, origin=origin, sourced=bool(owner))
        else:
            yield Aggregate(
                one.name,
                limit,
                group=one.group or "",
                device=one.device or "",
                netns=one.netns,
                addresses=one.addresses or (),
                origin=origin,
                sourced=bool(owner),
            )


def _others(
    section: Section, changes: Mapping[str, Mapping[str, Any]], sourced: Sourced
) -> Iterator[Aggregate]:
    groups = (*section.groups, *sourced.groups)
    known = {each.name for each in groups}
    known |= {each.name for each in (*section.pods, *sourced.pods)}
    for name, change in changes.items():
        # No device has a colon in its name: that was a pod's, which a source knows no more.
        if name not in known and (":" not in name or address_of(name)):
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
