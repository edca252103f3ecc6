# SPDX-License-Identifier: Apache-2.0
"""What a real control plane's watches told, one event after another, and what comes of it.

The files are made by ``python -m tools.kubernetes.record``.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from towpath.core.kubernetes.cluster import Cluster, Settings
from towpath.model import check_services
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.model import Service

RECORDED = Path(__file__).with_name("recorded")
BEGUN = 1000.0


class Replay:
    """A cluster that is told of events as they came, and what is true meanwhile.

    ``late``: the kind whose watch comes so many seconds later. What each watch tells stays in its
    order, and nothing is promised of two.
    """

    def __init__(self, name: str, late: str = "", seconds: float = 0.0) -> None:
        text = (RECORDED / f"{name}.jsonl").read_text()
        self.events: list[dict[str, Any]] = [json.loads(each) for each in text.splitlines()]
        for each in self.events:
            each["at"] += seconds * (each["object"]["kind"] == late)
        self.events.sort(key=lambda each: each["at"])
        self.cluster = Cluster(Settings("n1"))
        self.known: dict[str, Service] = {}
        """What is in force: changed by what `take` says has changed."""
        self.there: dict[tuple[str, str], dict[str, Any]] = {}
        """All objects by kind and name, as they were told."""

    def steps(self) -> Iterator[dict[str, Any]]:
        """Tell each event, take over what changes, and yield the event."""
        for event in self.events:
            found = event["object"]
            kind, meta = found["kind"], found["metadata"]
            if event["type"] == "DELETED":
                self.there.pop((kind, meta["name"]), None)
            else:
                self.there[kind, meta["name"]] = found
            if kind != "Pod":
                self._tell(event["type"], found)
                self.take(BEGUN + event["at"])
            yield event

    def _tell(self, what: str, found: dict[str, Any]) -> None:
        kind = getattr(objects, found["kind"])
        meta = found["metadata"]
        if what == "DELETED":
            self.cluster.remove(kind, meta.get("namespace", ""), meta["name"])
        else:
            self.cluster.put(msgspec.json.decode(json.dumps(found), type=kind))

    def take(self, now: float) -> None:
        """Take over what has changed, as a source does."""
        changed = self.cluster.take(now)
        for name in changed.remove:
            del self.known[name]
        self.known |= {each.name: each for each in changed.put}
        check_services(self.known.values())
        assert self.known == self.cluster.services()

    # ---- What is in force ------------------------------------------------------------------------

    def served(self, service: str = "web") -> dict[str, int]:
        """Ports by address of those that get new connections at a Service's ClusterIP.

        Each has the same share: it counts once, and weighs 1.
        """
        found = [
            each
            for name, service_ in self.known.items()
            if name.startswith(f"default:{service}:http:cluster:")
            for each in service_.backends
            if each.takes_flows
        ]
        assert {each.weight for each in found} <= {1}
        served = {str(each.address): each.port or 80 for each in found}
        assert len(served) == len(found)
        return served

    # ---- What is true ----------------------------------------------------------------------------

    def ready(self) -> set[str]:
        """Addresses of pods that are ready."""
        return {
            found["status"]["podIPs"][0]["ip"]
            for (kind, _), found in self.there.items()
            if kind == "Pod"
            and found["status"].get("ready")
            and "deletionTimestamp" not in found["metadata"]
        }

    def listed(self, service: str = "web") -> Counter[str]:
        """How often each address is in a Service's slices as one that is ready."""
        return Counter(
            address
            for (kind, _), found in self.there.items()
            if kind == "EndpointSlice"
            and found["metadata"]["labels"]["kubernetes.io/service-name"] == service
            for each in found["endpoints"] or ()
            if each["conditions"].get("ready")
            for address in each["addresses"]
        )

    def slice_ports(self, service: str = "web") -> set[int]:
        """The numbers that slices with endpoints have."""
        return {
            port["port"]
            for (kind, _), found in self.there.items()
            if kind == "EndpointSlice"
            and found["metadata"]["labels"]["kubernetes.io/service-name"] == service
            and found["endpoints"]
            for port in found["ports"] or ()
        }
