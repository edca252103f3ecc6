# SPDX-License-Identifier: Apache-2.0
"""Objects of the Kubernetes API, with the fields that are used and no others.

What the API calls optional may be missing or null. Addresses stay text: the API stores what was
valid once (leading zeros, host bits, spaces), and only who uses them can say what is wrong.
"""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar

import msgspec


class _Object(msgspec.Struct, rename="camel", gc=False):
    """Without cycles: the collector has nothing to look for."""


class Owner(_Object):
    """Who an object was made for."""

    kind: str = ""
    uid: str = ""


class Meta(_Object):
    """What every object has."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[Owner] | None = None

    def label(self, name: str) -> str | None:
        """Return a label's value; None: it isn't there."""
        return None if self.labels is None else self.labels.get(name)

    def annotation(self, name: str) -> str | None:
        """Return an annotation's value; None: it isn't there."""
        return None if self.annotations is None else self.annotations.get(name)


class ServicePort(_Object):
    """A port of a Service."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    node_port: int | None = None
    target_port: int | str | None = None


class ClientIp(_Object):
    """How long a client stays with an endpoint."""

    timeout_seconds: int | None = None


class AffinityConfig(_Object):
    """What ``sessionAffinity: ClientIP`` may be told."""

    client_ip: ClientIp | None = msgspec.field(name="clientIP", default=None)


class Ingress(_Object):
    """An address of a load balancer."""

    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(_Object):
    """The addresses that a load balancer has given."""

    ingress: list[Ingress] | None = None


class Condition(_Object):
    """What a controller says of an object."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class ServiceStatus(_Object):
    """What others say of a Service."""

    load_balancer: LoadBalancerStatus | None = None
    conditions: list[Condition] | None = None


class ServiceSpec(_Object):
    """What a Service wishes for."""

    type: str = "ClusterIP"
    ports: list[ServicePort] | None = None
    selector: dict[str, str] | None = None
    cluster_ip: str | None = msgspec.field(name="clusterIP", default=None)
    cluster_ips: list[str] | None = msgspec.field(name="clusterIPs", default=None)
    external_ips: list[str] | None = msgspec.field(name="externalIPs", default=None)
    ip_families: list[str] | None = None
    ip_family_policy: str | None = None
    load_balancer_class: str | None = None
    load_balancer_ip: str | None = msgspec.field(name="loadBalancerIP", default=None)
    load_balancer_source_ranges: list[str] | None = None
    session_affinity: str | None = None
    session_affinity_config: AffinityConfig | None = None
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    health_check_node_port: int | None = None


class Service(_Object):
    """A Service."""

    metadata: Meta
    spec: ServiceSpec = msgspec.field(default_factory=ServiceSpec)
    status: ServiceStatus | None = None


class Conditions(_Object):
    """How an endpoint is. What is unknown counts as ready, as serving, as not terminating."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Zone(_Object):
    """A zone, or a node, that an endpoint is meant for."""

    name: str = ""


class Hints(_Object):
    """Who an endpoint is meant for."""

    for_zones: list[Zone] | None = None
    for_nodes: list[Zone] | None = None


class Target(_Object):
    """What an endpoint is."""

    kind: str = ""
    name: str = ""


class Endpoint(_Object):
    """Addresses of one pod, of which the first counts."""

    addresses: list[str] | None = None
    conditions: Conditions | None = None
    node_name: str | None = None
    hints: Hints | None = None
    target_ref: Target | None = None


class EndpointPort(_Object):
    """A port that all endpoints of a slice have."""

    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class EndpointSlice(_Object):
    """Some endpoints of a Service."""

    metadata: Meta
    address_type: str = ""
    endpoints: list[Endpoint] | None = None
    ports: list[EndpointPort] | None = None


class NodeAddress(_Object):
    """An address of a Node."""

    type: str
    address: str


class NodeStatus(_Object):
    """What the kubelet says of a Node."""

    addresses: list[NodeAddress] | None = None


class NodeSpec(_Object):
    """What a Node was given."""

    pod_cidrs: list[str] | None = msgspec.field(name="podCIDRs", default=None)


class Node(_Object):
    """A Node."""

    metadata: Meta
    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)
    status: NodeStatus | None = None


class Namespace(_Object):
    """A Namespace."""

    metadata: Meta


class PodIp(_Object):
    """An address of a Pod."""

    ip: str = ""


class PodSpec(_Object):
    """What a Pod wishes for."""

    host_network: bool = False


class PodStatus(_Object):
    """What the kubelet says of a Pod."""

    phase: str = ""
    pod_ips: list[PodIp] | None = msgspec.field(name="podIPs", default=None)


class Pod(_Object):
    """A Pod."""

    metadata: Meta
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)


class ConfigMap(_Object):
    """Text by name."""

    metadata: Meta
    data: dict[str, str] | None = None


class LeaseSpec(_Object):
    """Who holds a Lease."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(_Object):
    """What one of several holds at a time."""

    metadata: Meta
    spec: LeaseSpec = msgspec.field(default_factory=LeaseSpec)


Kind: TypeAlias = Service | EndpointSlice | Node
T = TypeVar("T")


class Event(_Object, Generic[T]):
    """What a watch tells of one object."""

    type: str
    object: T


class Raw(_Object):
    """The same with the object as it came: what can't be decoded fails no other."""

    type: str
    object: msgspec.Raw


class ListMeta(_Object):
    """What a list has besides its items."""

    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class RawList(_Object):
    """A list with its items as they came."""

    metadata: ListMeta = msgspec.field(default_factory=ListMeta)
    items: list[msgspec.Raw] | None = None


class Cause(_Object):
    """One reason of a refusal."""

    reason: str = ""


class Details(_Object):
    """More of a refusal."""

    causes: list[Cause] | None = None
    retry_after_seconds: int | None = None


class ApiStatus(_Object):
    """Why the API server refused."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: Details | None = None


class Head(_Object):
    """What names an object whose rest could not be decoded, and bookmarks."""

    metadata: Meta


class BookmarkMeta(_Object):
    """A bookmark's version, and what it marks."""

    resource_version: str = ""
    annotations: dict[str, str] | None = None


class Bookmark(_Object):
    """Says up to which version all has been told."""

    metadata: BookmarkMeta
