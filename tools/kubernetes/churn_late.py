# SPDX-License-Identifier: Apache-2.0
"""When addresses were in slices, and how long after they had gone connections reached them.

A connection that nobody answers is asked for again after 1, 3, 7, 15 s, at the address that it was
given when it began. So it is told, too, when a late one was asked for first.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Syn(NamedTuple):
    """A connection is asked for."""

    at: float
    port: int
    source: str = ""
    first: float = 0.0
    """When it was asked for at this address first."""


Syns = dict[str, list[Syn]]
"""By address that it is asked of."""
MOST = 10
_NOTED_SECONDS = 0.1
"""So much later servers may see what has come."""
_FOREVER = float("inf")


class Listed:
    """Which addresses slices have ready, as a watch tells it."""

    def __init__(self) -> None:
        self._slices: dict[str, frozenset[str]] = {}
        self.now: frozenset[str] = frozenset()
        self.gone: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        """By address, from when to when it was in none."""
        self._made: defaultdict[str, list[float]] = defaultdict(list)
        self.writes = 0

    def told(self, event: Mapping[str, Any]) -> None:
        """A watch has told it."""
        found, name = event["object"], event["object"]["metadata"]["name"]
        if event["type"] == "DELETED":
            self._slices.pop(name, None)
        else:
            self._slices[name] = frozenset(
                each["addresses"][0]
                for each in found.get("endpoints") or ()
                if each.get("conditions", {}).get("ready", True)
            )
        self.writes += 1
        now, at = frozenset().union(*self._slices.values()), time.monotonic()
        for address in self.now - now:
            self.gone[address].append((at, _FOREVER))
        for address in now - self.now:
            if self.gone[address]:
                self.gone[address][-1] = self.gone[address][-1][0], at
        self.now = now

    def made(self, address: str) -> None:
        """A pod is about to be made there: who serves it may know it before this does."""
        self._made[address].append(time.monotonic())

    def spans(self, address: str) -> Iterator[tuple[float, float]]:
        """From when to when an address was in none, and nobody had made a pod there anew."""
        for gone, ended in self.gone[address]:
            yield gone, min((at for at in self._made[address] if gone <= at < ended), default=ended)

    def when(self, address: str, at: float) -> str:
        """Say since when an address was, or wasn't, in slices at a time."""
        for begun, ended in reversed(self.gone[address]):
            if begun <= at < ended:
                return f"gone for {1000 * (at - begun):.0f} ms"
            if ended <= at:
                return f"there again for {1000 * (at - ended):.0f} ms"
        return "there"


def lateness(listed: Listed, asked: Syns, began: float) -> dict[str, Any]:
    """Return how long after addresses had gone from slices the last connection came to each."""
    found = sorted(_last(listed, asked, began), key=lambda each: each.seconds)
    last = [1000 * each.seconds for each in found]
    if not last:
        return {"removals": 0}
    new = sorted(1000 * each for each in _last_new(listed, asked, began))
    return {
        "removals": len(last),
        "p50_ms": round(last[len(last) // 2], 1),
        "p99_ms": round(last[int(len(last) * 0.99)], 1),
        "max_ms": round(last[-1], 1),
        "begun_p99_ms": round(new[int(len(new) * 0.99)], 1),
        "begun_max_ms": round(new[-1], 1),
        "latest": [each.told() for each in found[:-MOST:-1] if each.syn],
    }


class _Last(NamedTuple):
    """The last connection that came to an address after it had gone, and how long after."""

    seconds: float
    address: str
    gone: float
    syn: Syn | None

    def told(self) -> str:
        """In words."""
        assert self.syn  # noqa: S101 - as whoever calls this has seen
        first = 1000 * (self.syn.first - self.gone)
        again = "" if self.syn.at == self.syn.first else f", asked for first after {first:.0f} ms"
        where = f"{self.address} from {self.syn.source} {self.syn.port}"
        return f"{where} after {1000 * self.seconds:.0f} ms{again}"


def _last(listed: Listed, asked: Syns, began: float) -> Iterator[_Last]:
    for address, gone, ended in _spans(listed, began):
        came = [each for each in asked.get(address, ()) if gone <= each.at < ended]
        last = max(came, key=lambda each: each.at, default=None)
        yield _Last(last.at - gone if last else 0.0, address, gone, last)


def _last_new(listed: Listed, asked: Syns, began: float) -> Iterator[float]:
    """The same of those that were asked for first."""
    for address, gone, ended in _spans(listed, began):
        came = (each.first - gone for each in asked.get(address, ()) if gone <= each.first < ended)
        yield max(came, default=0.0)


def _spans(listed: Listed, began: float) -> Iterator[tuple[str, float, float]]:
    for address in tuple(listed.gone):
        for gone, ended in listed.spans(address):
            if gone >= began:
                yield address, gone, ended


def reached(
    listed: Listed, asked: Syns, failed: Sequence[Sequence[Any]], *, sure: bool = False
) -> Iterator[dict[str, Any]]:
    """Tell, of each request that failed, which addresses it came to, and what these were then.

    Whose ports were translated aren't known by them: then all that it may have come to, unless it
    is to be ``sure``.
    """
    for began, ended, why, port in failed:
        near = [
            (syn.at, address, syn.port)
            for address, syns in asked.items()
            for syn in syns
            if began - 0.001 <= syn.at <= ended + _NOTED_SECONDS
        ]
        mine = [each for each in near if each[2] == port] or ([] if sure else near)
        yield {
            "why": why,
            "from": port,
            "after_ms": round(1000 * (ended - began), 1),
            "came_to": [
                f"{address} after {1000 * (at - began):.1f} ms: {listed.when(address, at)}"
                for at, address, _ in sorted(mine)[:MOST]
            ],
        }
