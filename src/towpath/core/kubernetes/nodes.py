# SPDX-License-Identifier: Apache-2.0
"""What Nodes say of the network: their own addresses, and those that their pods get."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from towpath.core.kubernetes.addresses import read_prefix, read_unicast
from towpath.core.kubernetes.withheld import LEAST
from towpath.model.masquerade import SourcedRules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from towpath.model.kinds import Address, Prefix
    from towpath.model.sources.kubernetes import Section, objects


class Networks(NamedTuple):
    """What all Nodes together have."""

    own: tuple[Prefix, ...]
    """Of pods of this node."""
    pods: tuple[Prefix, ...]
    """Of all pods."""
    others: tuple[Address, ...]
    """Internal addresses of the other nodes."""


def networks(nodes: Iterable[objects.Node], mine: str) -> Networks:
    """Return it of these. What is no prefix or address is left out: the API has checked it."""
    own: list[Prefix] = []
    pods: list[Prefix] = []
    others: list[Address] = []
    for node in sorted(nodes, key=lambda each: each.metadata.name):
        found = list(_prefixes(node))
        pods += found
        if node.metadata.name == mine:
            own += found
        else:
            others += _addresses(node)
    return Networks(tuple(own), tuple(dict.fromkeys(pods)), tuple(dict.fromkeys(others)))


def rules(section: Section, found: Networks) -> SourcedRules:
    """What masquerade is told by the configuration's wishes."""
    exclude = dict.fromkeys((*found.pods, *(section.non_masquerade_cidrs or ())))
    return SourcedRules(section.masquerade_devices or (), found.own, tuple(exclude))


def believed(
    before: SourcedRules, now: SourcedRules, percent: int, *, listed: bool
) -> tuple[SourcedRules, str]:
    """Return what is put into force, and what is held back, in words.

    A list may lack Nodes because it isn't true, and packets to their pods would be masqueraded from
    then on. This node's own prefixes stay while the list has none.
    """
    kept = now._replace(prefixes=now.prefixes or before.prefixes)
    lost = [each for each in before.exclude if each not in now.exclude]
    large = len(lost) >= LEAST and len(lost) * 100 >= percent * len(before.exclude)
    if not (listed and large):
        return kept, ""
    told = f"{len(lost)} of {len(before.exclude)} prefixes that aren't masqueraded"
    return kept._replace(exclude=(*now.exclude, *lost)), told


def _prefixes(node: objects.Node) -> Iterator[Prefix]:
    for text in node.spec.pod_cidrs or ():
        try:
            yield read_prefix(text)
        except ValueError:
            continue


def _addresses(node: objects.Node) -> Iterator[Address]:
    for each in (node.status.addresses if node.status else None) or ():
        if each.type == "InternalIP":
            try:
                yield read_unicast(each.address)
            except ValueError:
                continue
