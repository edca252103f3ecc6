# SPDX-License-Identifier: Apache-2.0
"""The rules that a capture's filters and services make."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TYPE_CHECKING

from towpath.datapath.errors import DatapathError
from towpath.model.capture import Filter
from towpath.wildcard import Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from towpath.model.capture import Capture
    from towpath.model.service import Service


def rules_of(capture: Capture, services: Iterable[Service]) -> list[Rule]:
    """Return the rules of which one has to match; none if there are neither filters nor services.

    DatapathError: a service that it names isn't among ``services``.
    """
    filters = [_of_filter(Filter.parse(line)) for line in capture.filters]
    by_name = {service.name: service for service in services}
    for name in capture.services:
        if name not in by_name:
            there = ", ".join(sorted(by_name)) or "none"
            raise DatapathError(f"services: no service {name!r}; there are: {there}")
        filters += _of_service(by_name[name])
    # What is the same is matched once.
    return list(dict.fromkeys(filters))


def _of_filter(found: Filter) -> Rule:
    return Rule(
        found.source,
        found.destination,
        (found.source_ports.first, found.source_ports.last),
        (found.destination_ports.first, found.destination_ports.last),
        found.protocol,
    )


def _of_service(service: Service) -> Iterator[Rule]:
    vip = service.vip
    prefix = ip_network(vip) if isinstance(vip, IPv4Address | IPv6Address) else vip
    for ports in service.key.ports.ranges:
        yield Rule.of(
            None,
            prefix,
            destination_ports=(ports.first, ports.last),
            protocol=service.protocol.number,
        )
