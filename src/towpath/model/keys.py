# SPDX-License-Identifier: Apache-2.0
"""Finds which services are for the same packets, however many services there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from towpath.model.kinds import Address, Prefix
    from towpath.model.service import Protocol, ServiceKey

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Clash(Generic[T]):
    """What two services would both be for, and who has it."""

    key: ServiceKey
    owner: T


class KeyIndex(Generic[T]):
    """Keys of services with their owners.

    A key for one port of one address is found by itself; others are few to an address, and
    compared one by one.
    """

    def __init__(self) -> None:
        self._exact: dict[ServiceKey, T] = {}
        self._others: dict[tuple[Address | Prefix, Protocol], dict[ServiceKey, T]] = {}

    def copy(self) -> KeyIndex[T]:
        """Return an index that can be changed by itself."""
        made = KeyIndex[T]()
        made._exact = self._exact.copy()
        made._others = {at: keys.copy() for at, keys in self._others.items()}
        return made

    def add(self, key: ServiceKey, owner: T) -> None:
        """Note a key. One that is there gets the new owner."""
        self._group(key)[key] = owner

    def remove(self, key: ServiceKey) -> None:
        """Forget a key, if it is there."""
        self._group(key).pop(key, None)

    def clash(self, key: ServiceKey) -> Clash[T] | None:
        """Return what a key would have in common with one that is there, if anything."""
        if key.exact:
            return Clash(key, self._exact[key]) if key in self._exact else None
        for other, owner in self._group(key).items():
            if shared := key.shared(other):
                return Clash(shared, owner)
        return None

    def _group(self, key: ServiceKey) -> dict[ServiceKey, T]:
        return self._exact if key.exact else self._others.setdefault((key.vip, key.protocol), {})
