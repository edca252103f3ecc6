# SPDX-License-Identifier: Apache-2.0
"""Whether a service is right, known from one that is alike: thousands that are need not be read.

Nothing is found wrong here. What isn't known to be right is read field by field, by who finds and
tells what is wrong (:mod:`towpath.model.decode`, :mod:`towpath.model.rules`).
"""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv6Address
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from towpath.model.kinds import PORT, FieldError, Name, not_unicast
from towpath.model.service import Affinity, Backend, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

_OWN = ("name", "vip", "port", "backends")
"""What services that are alike differ in."""
_alike = attrgetter(*(each.name for each in fields(Service) if each.name not in _OWN))
_of_backend = attrgetter(*(each.name for each in fields(Backend) if each.name != "address"))
_MOST = 1024
_ADDRESSES = {IPv4Address, IPv6Address}


class Sound:
    """Remembers what services looked like that were right.

    ``is_right`` reads one field by field: whether nothing is wrong with it by itself.
    """

    def __init__(self, is_right: Callable[[Service], bool]) -> None:
        self._is_right = is_right
        self._known: set[Hashable] = set()

    def has(self, service: object) -> bool:
        """Whether a service is known to be right by itself. False says nothing."""
        try:
            return self._has(service)
        except (TypeError, AttributeError):
            return False  # fields of other types than they are to have

    def _has(self, service: object) -> bool:
        if type(service) is not Service or not _is_plain(service):
            return False
        # Equal values of other types, as 1 and true, aren't alike.
        rest = {
            (*each, *map(type, each)): backend
            for backend, each in zip(
                service.backends, map(_of_backend, service.backends), strict=True
            )
        }
        same: tuple[Any, ...] = _alike(service)
        key = (*same, *map(type, same), service.vip.version, frozenset(rest))
        if key in self._known:
            return True
        if not self._is_right(replace(service, backends=tuple(rest.values()))):
            return False
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known.add(key)
        return True


def _is_plain(service: Service) -> bool:
    """Whether all is right in which services that are alike differ."""
    vip, backends = service.vip, service.backends
    addresses = {each.address for each in backends}
    return (
        type(service.port) is int
        and type(backends) is tuple
        and set(map(type, backends)) <= {Backend}
        and isinstance(vip, IPv4Address | IPv6Address)
        and {type(vip), *map(type, addresses)} == {type(vip)} <= _ADDRESSES
        and len(addresses) == len(backends) <= service.table_size
        and vip not in addresses
        and service.health is None
        and service.quic is None
        and service.route_from == ()
        and (service.affinity is None or _is_whole(service.affinity))
        and not any(map(not_unicast, {vip, *addresses}))
        and _fits(service)
    )


def _is_whole(affinity: Affinity) -> bool:
    return type(affinity) is Affinity and type(affinity.timeout) is int


def _fits(service: Service) -> bool:
    try:
        return bool(Name().parse(service.name) and PORT.parse(service.port))
    except FieldError:
        return False
