# SPDX-License-Identifier: Apache-2.0
"""When addresses were in slices, and how long after they had gone connections reached them."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Syns = dict[str, list[tuple[float, int]]]
"""By address: when a connection was asked of it, and from which port."""
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
    last = sorted(1000 * each for each in _last(listed, asked, began))
    if not last:
        return {"removals": 0}
    return {
        "removals": len(last),
        "p50_ms": round(last[len(last) // 2], 1),
        "p99_ms": round(last[int(len(last) * 0.99)], 1),
        "max_ms": round(last[-1], 1),
    }


def _last(listed: Listed, asked: Syns, began: float) -> Iterator[float]:
    for address, spans in listed.gone.items():
        for begun, ended in spans:
            if begun >= began:
                times = [at - begun for at, _ in asked.get(address, ()) if begun <= at < ended]
                yield max(times, default=0.0)


def reached(
    listed: Listed, asked: Syns, failed: Sequence[Sequence[Any]]
) -> Iterator[dict[str, Any]]:
    """Tell, of each request that failed, which addresses it came to, and what these were then.

    Whose ports were translated aren't known by them: then all that it may have come to.
    """
    for began, ended, why, port in failed:
        near = [
            (at, address, source)
            for address, times in asked.items()
            for at, source in times
            if began - 0.001 <= at <= ended + _NOTED_SECONDS
        ]
        mine = [each for each in near if each[2] == port] or near
        yield {
            "why": why,
            "after_ms": round(1000 * (ended - began), 1),
            "came_to": [
                f"{address} after {1000 * (at - began):.1f} ms: {listed.when(address, at)}"
                for at, address, _ in sorted(mine)[:MOST]
            ],
        }
