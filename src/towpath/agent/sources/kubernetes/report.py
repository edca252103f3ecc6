# SPDX-License-Identifier: Apache-2.0
"""What the source says of itself: what is known of which kind, and how old that is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from towpath.api.documents import KindStatus, PoolStatus
from towpath.model import Problem
from towpath.model.problems import bounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

    from towpath.agent.sources.kubernetes.pools import AddressPools
    from towpath.agent.sources.kubernetes.source import Source
    from towpath.agent.sources.kubernetes.watch import Reflector

PATIENCE_SECONDS = 30.0
"""An API server may be away for so long, as when it is restarted, before that is trouble."""


def _age(each: Reflector) -> float:
    return time.monotonic() - each.heard


def troubles(reflectors: Iterable[Reflector]) -> Iterator[str]:
    """Say what can't be followed."""
    now = time.monotonic()
    for each in reflectors:
        if not each.synced:
            yield each.error or f"{each.resource.called}: not all are known yet"
        elif each.error is not None and now - each.since > PATIENCE_SECONDS:
            yield f"{each.error}; what is in force is {_age(each):.0f} s old"


def _counted(source: Source) -> Iterator[tuple[Reflector, int]]:
    """All kinds that are followed, and how many objects of them are known."""
    for each in source.reflectors:
        yield each, source.cluster.number(each.resource.kind)
    if source.pods is not None:
        for each in source.pods.reflectors:
            yield each, len(source.pods.pods.names(each.resource.kind))
    if source.pools is not None:
        for each in source.pools.reflectors:
            yield each, int(source.pools.is_there)


def facts(source: Source) -> dict[str, Any]:
    """Fields of documents.SourceStatus."""
    kinds = tuple(
        KindStatus(
            name=each.resource.called,
            synced=each.synced,
            objects=number,
            version=each.version,
            age=round(_age(each), 1) if each.heard else None,
            error=each.error,
        )
        for each, number in _counted(source)
    )
    pods, pools = source.pods, source.pools
    unserved = [
        *source.unserved,
        *(pods.refusals() if pods else ()),
        *(pools.refusals() if pools else ()),
    ]
    notes = [*map(str, unserved), *(pods.notes() if pods else ())]
    return {
        "kinds": kinds,
        "withheld": len(source.withheld),
        "unserved": bounded(map(Problem, notes)),
        "held": source.cluster.held(),
        "pools": tuple(PoolStatus(*each) for each in (pools.pools.usage() if pools else ())),
        "leader": pools.election.leader if pools else None,
    }


def metrics(source: Source) -> Iterator[Metric]:
    """For Prometheus."""
    synced = GaugeMetricFamily(
        "towpath_source_synced",
        "1 when all objects of a kind are known and followed, 0 while they aren't.",
        labels=("source", "kind"),
    )
    age = GaugeMetricFamily(
        "towpath_source_age_seconds",
        "Since the source has told anything of a kind: how old what is in force may be.",
        labels=("source", "kind"),
    )
    objects = GaugeMetricFamily(
        "towpath_source_objects", "Objects that are known.", labels=("source", "kind")
    )
    lists = CounterMetricFamily(
        "towpath_source_lists",
        "How often all objects of a kind were taken over anew.",
        labels=("source", "kind"),
    )
    for each, number in _counted(source):
        labels = ("kubernetes", each.resource.called)
        synced.add_metric(labels, int(each.synced and each.error is None))
        if each.heard:
            age.add_metric(labels, _age(each))
        objects.add_metric(labels, number)
        lists.add_metric(labels, each.lists)
    yield from (synced, age, objects, lists)
    if source.pools is not None:
        yield from _of_pools(source.pools)
    for name, text, value in (
        (
            "towpath_source_delay_seconds",
            "Seconds from a change's being told to its being in force, of all together.",
            source.lateness.seconds,
        ),
        (
            "towpath_source_changes",
            "How often changes were put into force, each time all that had come by then.",
            source.lateness.times,
        ),
    ):
        counter = CounterMetricFamily(name, text, labels=("source",))
        counter.add_metric(("kubernetes",), value)
        yield counter
    numbers = {
        "towpath_source_withheld": (
            "Services that a list lacks which isn't believed.",
            len(source.withheld),
        ),
        "towpath_source_unserved": (
            "What of objects can't be served as they are.",
            len(source.unserved)
            + len(source.pods.refusals() if source.pods else ())
            + len(source.pools.refusals() if source.pools else ()),
        ),
        "towpath_source_pods_waiting": (
            "Pods of this node whose addresses nobody has told yet.",
            source.pods.pods.waiting if source.pods else 0,
        ),
        "towpath_source_pods_leaving": (
            "Limited pods that the source knows no more, and whose devices are still there.",
            len(source.pods.pods.leaving) if source.pods else 0,
        ),
        "towpath_source_behind_seconds": (
            "Since the first change was told that isn't in force yet. 0: all is.",
            source.lateness.behind,
        ),
        "towpath_source_held": (
            "Endpoints that are in no slice while these are written anew.",
            source.cluster.held(),
        ),
    }
    for name, (text, value) in numbers.items():
        family = GaugeMetricFamily(name, text, labels=("source",))
        family.add_metric(("kubernetes",), value)
        yield family


def _of_pools(pools: AddressPools) -> Iterator[Metric]:
    labels = ("source", "pool")
    size = GaugeMetricFamily(
        "towpath_source_pool_addresses",
        "Addresses of a pool, of both families. All agents say the same.",
        labels=labels,
    )
    free = GaugeMetricFamily(
        "towpath_source_pool_free", "Those of them that a service could be given.", labels=labels
    )
    for each in pools.pools.usage():
        size.add_metric(("kubernetes", each.name), each.addresses)
        free.add_metric(("kubernetes", each.name), each.addresses - each.used)
    leads = GaugeMetricFamily(
        "towpath_source_leads",
        "1 at the one agent that gives addresses of pools to services, 0 at the others.",
        labels=("source",),
    )
    leads.add_metric(("kubernetes",), int(pools.election.leads))
    yield from (size, free, leads)
