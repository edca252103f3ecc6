# SPDX-License-Identifier: Apache-2.0
"""Reads stored services: thousands, of which most are alike in all but a few fields."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import IPv4Address
from socket import AF_INET, inet_pton
from typing import TYPE_CHECKING, Any

import msgspec

from towpath.api.codec import build
from towpath.model.kinds import PORT, Address, Name, UnicastAddress
from towpath.model.service import Backend, Service

if TYPE_CHECKING:
    from collections.abc import Hashable

_OWN = ("name", "vip", "port", "backends")
"""What services that are alike differ in."""
_ALL = tuple(each.name for each in fields(Service))
_OF_BACKEND = tuple(each.name for each in fields(Backend) if each.name != "address")
_AT = {name: _ALL.index(name) for name in _OWN}
_FIRST_OF_OTHERS, _LOOPBACK = 224, 127
"""First bytes: 224 and more are no host's, 127 is this one's."""


class ServiceReader:
    """Reads documents that :func:`towpath.api.codec.text` wrote, of this version or of another.

    What is alike is read once, field by field, by :func:`towpath.api.codec.build`; and equal
    addresses are one object. Errors as `build` has them.
    """

    def __init__(self) -> None:
        self._alike: dict[Hashable, list[Any]] = {}
        self._backends: dict[Hashable, tuple[Any, ...]] = {}
        self._addresses: dict[str, Address] = {}

    def read(self, document: str) -> Service:
        """Return the service of one document."""
        data = msgspec.json.decode(document)
        try:
            return self._service(data)
        except (KeyError, TypeError):  # of another shape, or with fields that aren't scalars
            return build(Service, msgspec.json.decode(document))  # type: ignore[no-any-return]

    def _service(self, data: dict[str, Any]) -> Service:
        name, vip, port, backends = (data.pop(each) for each in _OWN)
        if type(vip) is not str or "/" in vip or type(port) is not int:
            raise TypeError  # a prefix, or more than one port
        # Equal values of other types, as 1 and true, aren't alike. A list that has something may be
        # right for some backends or addresses only: there is no key with one.
        alike = ((name, () if each == [] else each) for name, each in data.items())
        key = (*alike, *map(type, data.values()))
        values = self._alike.get(key)
        if values is None:
            values = self._alike[key] = self._values(data)
        values = values.copy()
        values[_AT["name"]] = Name().parse(name)
        values[_AT["vip"]] = self._address(vip)
        values[_AT["port"]] = PORT.parse(port)
        values[_AT["backends"]] = tuple([self._backend(each) for each in backends])
        return Service(*values)

    def _values(self, data: dict[str, Any]) -> list[Any]:
        """All that a service has, by an example; what is its own is not that of others."""
        own = {"name": "any", "vip": "192.0.2.1", "port": 1, "backends": []}
        example = build(Service, data | own)
        return [getattr(example, name) for name in _ALL]

    def _backend(self, data: dict[str, Any]) -> Backend:
        address = data.pop("address")
        alike = ((name, () if each == [] else each) for name, each in data.items())
        key = (*alike, *map(type, data.values()))
        rest = self._backends.get(key)
        if rest is None:
            found = build(Backend, data | {"address": "192.0.2.1"})
            rest = self._backends[key] = tuple(getattr(found, name) for name in _OF_BACKEND)
        return Backend(self._address(address), *rest)

    def _address(self, raw: str) -> Address:
        found = self._addresses.get(raw)
        if found is None:
            found = self._addresses[raw] = _unicast(raw)
        return found


def _unicast(raw: str) -> Address:
    """Return what UnicastAddress makes of a text; of nearly all of IPv4 faster."""
    try:
        packed = inet_pton(AF_INET, raw)
    except (OSError, TypeError, ValueError):
        return UnicastAddress().parse(raw)
    if 0 < packed[0] < _FIRST_OF_OTHERS and packed[0] != _LOOPBACK:
        return IPv4Address(int.from_bytes(packed, "big"))
    return UnicastAddress().parse(raw)
