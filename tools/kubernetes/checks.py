# SPDX-License-Identifier: Apache-2.0
"""What `scale` and `churn` are held to: figures beside those of kube-proxy in the same run.

Ratios hold on any machine. Of what kube-proxy says nothing, or is something else, there are limits.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MEGABYTE = 1_000_000 / (1 << 20)
"""In MiB."""


class Limit(NamedTuple):
    """Something of Towpath's, and the most that it may be."""

    what: str
    path: tuple[str, ...]
    """Where it is in a row."""
    ratio: float | None = None
    """Of kube-proxy's."""
    most: float | None = None
    """In the unit that the row has it in."""
    services: tuple[int, ...] | None = None
    """For clusters of these numbers of Services; None: for all."""


SCALE = (
    Limit("first sync, s", ("first_sync_s",), ratio=0.5, services=(10_000,)),
    Limit("resident, MiB", ("resident_mib",), most=200 * MEGABYTE),
    Limit("change at rest, p50, ms", ("change_ms", "p50"), ratio=1.0, services=(10,)),
    Limit("change at rest, p99, ms", ("change_ms", "p99"), ratio=1.0, services=(10,)),
    Limit("change at rest, p50, ms", ("change_ms", "p50"), ratio=0.2, services=(3_000, 10_000)),
    Limit("change at rest, p99, ms", ("change_ms", "p99"), ratio=0.2, services=(3_000, 10_000)),
    Limit("change beside others, p50, ms", ("change_beside_ms", "p50"), ratio=0.05),
    Limit("change beside others, p99, ms", ("change_beside_ms", "p99"), ratio=0.05),
    Limit("CPU at rest, % of a core", ("rest_percent",), most=2.0),
    Limit("connect() to no Service, p50, us", ("connect_other_us", "p50"), ratio=1.0),
)
ENDPOINTS = (
    Limit("last connection after removal, p99, ms", ("reached_after_removal", "p99_ms"), ratio=0.2),
    Limit("CPU time of a change, ms", ("cpu_ms_each_change",), most=3.0),
)
_OF_PARTS = {"endpoints": ENDPOINTS}
_NAMES = ("kube-proxy", "towpath")


def scale(found: Mapping[str, Any]) -> list[str]:
    """Return what of a result of `scale` is above its limit."""
    rows = {(row["proxy"], row["services"]): row for row in found["rows"]}
    return [
        failure
        for services in sorted({services for _, services in rows})
        for failure in _above(
            [each for each in SCALE if each.services is None or services in each.services],
            f"{services:,} Services",
            *(rows.get((name, services)) for name in _NAMES),
        )
    ]


def churn(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what of the parts of both proxies is above its limit; requests of Towpath's failed."""
    return [
        failure
        for part, mine in found["towpath"].items()
        for failure in (
            *_failed(part, mine),
            *_above(_OF_PARTS.get(part, ()), part, found["kube-proxy"].get(part), mine),
        )
    ]


def _failed(part: str, mine: Mapping[str, Any]) -> Iterator[str]:
    for who in ("node", "outside"):
        if failed := sum(mine[who]["failed"].values()):
            yield f"{part}: {failed} of {mine[who]['requests']} requests failed"


def told(failures: Sequence[str]) -> int:
    """Say what is above its limit; the status of a program that checks that."""
    for each in failures:
        print(f"above its limit: {each}", file=sys.stderr)
    return 1 if failures else 0


def _above(
    limits: Sequence[Limit],
    where: str,
    others: Mapping[str, Any] | None,
    mine: Mapping[str, Any] | None,
) -> Iterator[str]:
    for limit in limits:
        if mine is None:
            yield f"{where}: {limit.what}: not measured"
            continue
        value = _at(mine, limit.path)
        if limit.most is not None and value > limit.most:
            yield f"{where}: {limit.what}: {value:g}; allowed: at most {limit.most:.4g}"
        if limit.ratio is None:
            continue
        if others is None:
            yield f"{where}: {limit.what}: kube-proxy's isn't known"
            continue
        other = _at(others, limit.path)
        if value > limit.ratio * other:
            yield (
                f"{where}: {limit.what}: {value:g}, kube-proxy {other:g}; allowed: at most"
                f" {limit.ratio:g} of that, {limit.ratio * other:.4g}"
            )


def _at(row: Mapping[str, Any], path: tuple[str, ...]) -> float:
    value: Any = row
    for name in path:
        value = value[name]
    return float(value)
