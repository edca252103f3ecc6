# SPDX-License-Identifier: Apache-2.0
"""Objects as the API server sends them, and a cluster that is told of them."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import msgspec

from towpath.core.kubernetes.cluster import Cluster, Settings
from towpath.model import check_services
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from towpath.core.kubernetes.cluster import Changed
    from towpath.model import Service

NODE, ADDRESS, ADDRESS6 = "n1", "192.0.2.1", "2001:db8::1"
VIP, VIP6 = "10.96.0.10", "fd96::10"
NAME = f"default:web:http:cluster:{VIP}"
CONTROLLER = "endpointslice-controller.k8s.io"


def read(kind: Any, raw: dict[str, Any]) -> Any:
    """Decode an object as it comes."""
    return msgspec.json.decode(json.dumps(raw), type=kind)


class Told:
    """A cluster, and what has come of it."""

    def __init__(self, **settings: Any) -> None:
        self.cluster = Cluster(Settings(NODE, **settings))
        self.now = 1000.0
        self.version = 0
        self.slices: dict[str, dict[str, Any]] = {}
        self.changed: Changed | None = None

    def node(self, name: str = NODE, zone: str = "a", *addresses: str) -> None:
        """A Node."""
        listed = [
            {"type": "InternalIP", "address": each} for each in addresses or (ADDRESS, ADDRESS6)
        ]
        self.cluster.put(
            read(
                objects.Node,
                {
                    "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
                    "status": {"addresses": listed},
                },
            )
        )

    def service(self, **spec: Any) -> None:
        """The Service ``web``."""
        meta = spec.pop("meta", {})
        status = spec.pop("status", {})
        port = {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}
        raw = {
            "metadata": {"name": "web", "namespace": "default", "uid": "s1"} | meta,
            "spec": {"clusterIP": VIP, "clusterIPs": [VIP], "ports": [port]} | spec,
            "status": status,
        }
        self.cluster.put(read(objects.Service, raw))

    def slice(self, name: str, *listed: str | dict[str, Any], **more: Any) -> None:
        """A slice of it. An endpoint is an address, or an object."""
        labels = {"kubernetes.io/service-name": "web"}
        if managed := more.pop("managed", CONTROLLER):
            labels["endpointslice.kubernetes.io/managed-by"] = managed
        owner = more.pop("owner", "s1")
        owners = [{"kind": "Service", "uid": owner}] if owner else None
        raw = {
            "metadata": {
                "name": name,
                "namespace": "default",
                "labels": labels,
                "ownerReferences": owners,
            },
            "addressType": "IPv4",
            "endpoints": [endpoint(each) if isinstance(each, str) else each for each in listed],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        } | more
        self.cluster.put(read(objects.EndpointSlice, raw))

    def no_slice(self, name: str) -> None:
        """It is gone."""
        self.cluster.remove(objects.EndpointSlice, "default", name)

    def take(self) -> dict[str, Service]:
        """All services by now, each right by itself and beside the others."""
        self.changed = self.cluster.take(self.now)
        services = self.cluster.services()
        check_services(services.values())
        return services

    def backends(self, name: str = NAME) -> dict[str, int | None]:
        """Ports by address of those that take new connections."""
        found = self.take().get(name)
        return {
            str(each.address): each.port
            for each in (found.backends if found else ())
            if each.takes_flows
        }

    def draining(self, name: str = NAME) -> set[str]:
        """Addresses of those that keep what they have."""
        return {str(each.address) for each in self.take()[name].backends if not each.takes_flows}

    def refused(self) -> str:
        """What isn't served."""
        self.take()
        return "\n".join(map(str, self.cluster.refusals()))


def endpoint(address: str, **more: Any) -> dict[str, Any]:
    """One that is ready, unless it is said otherwise."""
    conditions = {"ready": True, "serving": True, "terminating": False}
    return {"addresses": [address], "conditions": conditions, "nodeName": NODE} | more


def terminating(address: str, *, serving: bool = True, ready: bool = False) -> dict[str, Any]:
    """One whose pod is about to end."""
    conditions = {"ready": ready, "serving": serving, "terminating": True}
    return endpoint(address, conditions=conditions)


def unready(address: str) -> dict[str, Any]:
    """One that gets nothing."""
    return endpoint(address, conditions={"ready": False, "serving": False, "terminating": False})


def ports(number: int, name: str = "http", protocol: str = "TCP") -> list[dict[str, Any]]:
    """Of a slice."""
    return [{"name": name, "port": number, "protocol": protocol}]


def addresses(first: int, last: int) -> list[str]:
    """Some of them."""
    return [f"10.244.{n // 250}.{n % 250 + 1}" for n in range(first, last)]


ALLOWED = (ip_network("198.51.100.0/24"),)
