# SPDX-License-Identifier: Apache-2.0
"""One port, a list, a range, all of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from towpath.model.kinds.base import FieldError, Kind, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LAST_PORT = 65535
_RANGE = re.compile(r"\s*(0|[1-9][0-9]{0,4})\s*(?:-\s*(0|[1-9][0-9]{0,4})\s*)?")


class PortRange(NamedTuple):
    """Ports from ``first`` to ``last``, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True, order=True)
class Ports:
    """A set of ports as the fewest ranges, in ascending order: equal sets are equal.

    Made by :meth:`of`; the constructor takes ranges that are so already.
    """

    ranges: tuple[PortRange, ...]

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Ports:
        """Return the set of all ports of some ranges, which may touch and overlap."""
        merged: list[PortRange] = []
        for first, last in sorted(ranges):
            if merged and first <= merged[-1].last + 1:
                merged[-1] = PortRange(merged[-1].first, max(last, merged[-1].last))
            else:
                merged.append(PortRange(first, last))
        return cls(tuple(merged))

    @property
    def single(self) -> int | None:
        """The port, if there is only one."""
        (first, last), *more = self.ranges
        return first if first == last and not more else None

    @property
    def first(self) -> int:
        """The lowest port."""
        return self.ranges[0].first

    def __contains__(self, port: object) -> bool:
        return any(first <= port <= last for first, last in self.ranges if isinstance(port, int))

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    @property
    def plain(self) -> int | Ports:
        """One port as a number, more of them as the set."""
        return self if self.single is None else self.single

    def overlap(self, other: Ports) -> Ports | None:
        """Return the ports that both have, None if there are none."""
        shared: list[PortRange] = []
        ours, theirs = iter(self.ranges), iter(other.ranges)
        a, b = next(ours, None), next(theirs, None)
        while a and b:
            first, last = max(a.first, b.first), min(a.last, b.last)
            if first <= last:
                shared.append(PortRange(first, last))
            if a.last < b.last:
                a = next(ours, None)
            else:
                b = next(theirs, None)
        return Ports(tuple(shared)) if shared else None

    def __str__(self) -> str:
        return "any" if self == ANY_PORT else ",".join(map(str, self.ranges))


ANY_PORT = Ports((PortRange(0, LAST_PORT),))


@dataclass(frozen=True)
class PortSet(Kind):
    """A port, a range such as ``8000-8999``, a list of both, or ``any``."""

    allowed = (
        f"a port (1 to {LAST_PORT}), a range such as 8000-8999, a list of both such as "
        "[80, 443, 8000-8999], or any"
    )

    def parse(self, raw: object) -> int | Ports:
        """Return the port as a number if there is one, else the set."""
        if isinstance(raw, Ports):
            return raw
        if isinstance(raw, str):
            raw = raw.split(",")
        items = list(raw) if isinstance(raw, list | tuple) else [raw]
        if not items:
            raise FieldError(f"an empty list has no port; allowed: {self.allowed}")
        if "any" in items:
            return ANY_PORT
        return Ports.of([self._range(item) for item in items]).plain

    def _range(self, raw: object) -> tuple[int, int]:
        if isinstance(raw, int) and not isinstance(raw, bool):
            first = last = raw
        elif isinstance(raw, str) and (match := _RANGE.fullmatch(raw)):
            first, last = int(match[1]), int(match[2] or match[1])
        else:
            raise FieldError(f"{shown(raw)} is neither a port nor a range; allowed: {self.allowed}")
        if first > last:
            raise FieldError(f"{shown(raw)} ends before it begins; allowed: {last}-{first}")
        if not 1 <= first <= last <= LAST_PORT:
            raise FieldError(f"{shown(raw)} is out of range; allowed: 1 to {LAST_PORT}")
        return first, last

    def schema(self) -> dict[str, Any]:
        """Return numbers, texts and lists of them as JSON schema."""
        port = {"type": "integer", "minimum": 1, "maximum": LAST_PORT}
        one = {"anyOf": [port, {"type": "string", "examples": ["8000-8999"]}]}
        return {
            "anyOf": [*one["anyOf"], {"type": "array", "items": one, "minItems": 1}],
            "description": self.allowed,
        }
