# SPDX-License-Identifier: Apache-2.0
"""A service's backends as they are noted in the kernel, each with its handle."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from towpath.model.kinds import numbers
from towpath.model.numbered import numbers_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from towpath.datapath.address import Address
    from towpath.model.service import Backend

FEW = 32


class Noted:
    """In the order in which they came.

    Few, as nearly all services have, are two rows, which are replaced when one of them changes:
    whoever has them keeps them. A dictionary takes six times as much memory. Many are in one all
    the same, by the numbers of their addresses.
    """

    __slots__ = ("_backends", "_handles", "_many")

    def __init__(self, backends: Sequence[Backend] = (), handles: Iterable[int] = ()) -> None:
        self._backends: tuple[Backend, ...] = ()
        self._handles: Sequence[int] = ()
        self._many: dict[int, tuple[Backend, int]] | None = None
        self.add(backends, handles)

    def __eq__(self, other: object) -> bool:
        """Whether the other has the same, in whatever order."""
        if not isinstance(other, Noted):
            return NotImplemented
        return self._all() == other._all()

    __hash__ = None  # type: ignore[assignment]

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The backends."""
        if self._many is None:
            return self._backends
        return tuple([backend for backend, _ in self._many.values()])

    @property
    def handles(self) -> Sequence[int]:
        """Their handles."""
        if self._many is None:
            return self._handles
        return array("I", [handle for _, handle in self._many.values()])

    def items(self) -> Iterator[tuple[Address, int]]:
        """Yield each one's address and handle."""
        addresses = [each.address for each in self.backends]
        return zip(addresses, self.handles, strict=True)

    def backend(self, address: Address) -> Backend:
        """Return the one with an address, which is there."""
        if self._many is None:
            return self._backends[self._at(address)]
        return self._many[_number(address)][0]

    def handle(self, address: Address) -> int:
        """Return the handle of that."""
        if self._many is None:
            return self._handles[self._at(address)]
        return self._many[_number(address)][1]

    def handles_of(self, backends: Sequence[Backend]) -> Sequence[int]:
        """Return the handles of these, which are there, in their order."""
        if backends is self._backends:
            return self._handles
        there = self._all()
        return [there[number][1] for number in numbers_of(tuple(backends))]

    def add(self, backends: Sequence[Backend], handles: Iterable[int]) -> None:
        """Note more, which aren't there."""
        if self._many is None and len(self._backends) + len(backends) <= FEW:
            # Of a service that is new these are the very ones that it has.
            self._backends = (*self._backends, *backends) if self._backends else tuple(backends)
            self._handles = array("I", [*self._handles, *handles])
            return
        if self._many is None:
            self._many = self._all()
            self._backends, self._handles = (), ()
        self._many |= _by_number(backends, handles)

    def set(self, backend: Backend, handle: int) -> None:
        """Note what the one with that address is now, and its handle."""
        if self._many is not None:
            self._many[_number(backend.address)] = backend, handle
            return
        at = self._at(backend.address)
        self._backends = (*self._backends[:at], backend, *self._backends[at + 1 :])
        self._handles = array("I", [*self._handles[:at], handle, *self._handles[at + 1 :]])

    def remove(self, address: Address) -> None:
        """Forget one, which is there."""
        if self._many is not None:
            del self._many[_number(address)]
            return
        at = self._at(address)
        self._backends = (*self._backends[:at], *self._backends[at + 1 :])
        self._handles = array("I", [*self._handles[:at], *self._handles[at + 1 :]])

    def copy(self) -> Noted:
        """Return the same, to be changed apart."""
        made = Noted()
        made._backends, made._handles = self._backends, self._handles
        made._many = None if self._many is None else self._many.copy()
        return made

    def _all(self) -> dict[int, tuple[Backend, int]]:
        if self._many is not None:
            return self._many
        return _by_number(self._backends, self._handles)

    def _at(self, address: Address) -> int:
        return [each.address for each in self._backends].index(address)


def _by_number(
    backends: Sequence[Backend], handles: Iterable[int]
) -> dict[int, tuple[Backend, int]]:
    pairs = zip(backends, handles, strict=True)
    return dict(zip(numbers_of(tuple(backends)), pairs, strict=True))


def _number(address: Address) -> int:
    (found,) = numbers((address,))
    return found
