# SPDX-License-Identifier: Apache-2.0
"""Where the datapath says which destinations it sends to, whether or not anybody resolves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    from towpath.datapath.address import Address
    from towpath.datapath.neigh.differences import ByVersion
    from towpath.datapath.neigh.next_hops import Destination, Trouble


class Resolver(Protocol):
    """What keeps next hops resolved, such as a Follower. For any thread."""

    def want(self, who: Hashable, destinations: Iterable[Destination]) -> None:
        """Have these resolved from now on, in this order, and none else that ``who`` wanted."""
        ...

    def prefer(self, addresses: Iterable[Address]) -> None:
        """Name destinations that have traffic: theirs are made before others'."""
        ...

    def doubt(self, address: Address) -> None:
        """Resolve anew how a destination is reached: something says that it isn't there."""
        ...

    def troubles(self) -> Mapping[Destination, Trouble]:
        """Destinations that packets don't get to, and why."""
        ...

    def tell(self, publish: Callable[[ByVersion], None] | None) -> None:
        """Have this called whenever it changes how flows' ways may differ, and soon.

        By whatever thread, one at a time; it may not wait. None: nothing any more.
        """
        ...


class Wanted:
    """Keeps what is wanted until there is somebody to resolve it. For any thread."""

    def __init__(self) -> None:
        self._wanted: dict[Hashable, tuple[Destination, ...]] = {}
        self._resolver: Resolver | None = None
        self._publish: Callable[[ByVersion], None] | None = None
        self._first: frozenset[Address] = frozenset()

    def resolve_by(self, resolver: Resolver | None) -> None:
        """Have all of it resolved by this one from now on; None: by nobody."""
        self._resolver = resolver
        if resolver is not None:
            resolver.tell(self._publish)
            resolver.prefer(self._first)
            for who, destinations in list(self._wanted.items()):
                resolver.want(who, destinations)

    def want(self, who: Hashable, destinations: Iterable[Destination]) -> None:
        """As for a Resolver."""
        self._wanted[who] = tuple(destinations)
        if self._resolver is not None:
            self._resolver.want(who, self._wanted[who])

    def prefer(self, addresses: Iterable[Address]) -> None:
        """As for a Resolver."""
        self._first = frozenset(addresses)
        if self._resolver is not None:
            self._resolver.prefer(self._first)

    def doubt(self, address: Address) -> None:
        """As for a Resolver."""
        if self._resolver is not None:
            self._resolver.doubt(address)

    def troubles(self) -> Mapping[Destination, Trouble]:
        """As for a Resolver; none where nobody resolves them."""
        return {} if self._resolver is None else self._resolver.troubles()

    def tell(self, publish: Callable[[ByVersion], None] | None) -> None:
        """As for a Resolver."""
        self._publish = publish
        if self._resolver is not None:
            self._resolver.tell(publish)
