# SPDX-License-Identifier: Apache-2.0
"""A Service and its endpoints as services of Towpath: one for each address and port."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from towpath.core.kubernetes.addresses import is_plain, read_prefix, read_unicast
from towpath.core.kubernetes.problems import Refusal
from towpath.core.kubernetes.services import PROXY_NAME
from towpath.core.kubernetes.topology import for_all, for_local
from towpath.model.kinds import numbers
from towpath.model.numbered import numbers_of
from towpath.model.service import Affinity, Backend, BackendState, Protocol, Service

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from towpath.core.kubernetes.endpoints import Endpoints
    from towpath.core.kubernetes.slices import Found
    from towpath.model.kinds import Address, Prefix
    from towpath.model.service import Scope
    from towpath.model.sources.kubernetes import objects

SIZES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071, 262139)
"""Of Maglev tables: the least with 100 slots for each endpoint, and room to grow."""
_SLOTS = 100
_SHRINK = 8
"""A table stays until one of so many times fewer endpoints would do: a size that changes moves
flows that nobody remembers."""
DEFAULT_TIMEOUT = 10800
_KNOWN = {
    "type": {"ClusterIP", "NodePort", "LoadBalancer"},
    "sessionAffinity": {"None", "ClientIP"},
    "internalTrafficPolicy": {"Cluster", "Local"},
    "externalTrafficPolicy": {"Cluster", "Local"},
}
"""What fields may say; later versions of Kubernetes may know more."""


@dataclass(frozen=True, slots=True)
class Here:
    """What is known of this node, and what may be served."""

    node: str
    zone: str | None = None
    node_ports: tuple[Address, ...] = ()
    """Addresses that have node ports."""
    external_ips: tuple[Prefix, ...] = ()
    proxy_name: str | None = None
    outside: frozenset[int] = frozenset()
    """Families in which what comes in by a device can be translated."""


class Health(NamedTuple):
    """A port that says whether there are local endpoints."""

    port: int
    namespace: str
    name: str
    local: Mapping[int, int]
    """Ready ones, by the family that a check comes in."""


@dataclass(slots=True)
class Translated:
    """What one Service amounts to."""

    services: dict[str, Service] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    health: Health | None = None


Kind = Literal["cluster", "node", "lb", "external"]


class _Port(NamedTuple):
    port: int
    """That clients connect to."""
    protocol: Protocol
    at: tuple[int, str]
    """The Service's own port and protocol, by which endpoints are kept."""
    label: str


class _Wish(NamedTuple):
    """An address that a port is to be served at."""

    kind: Kind
    vip: Address
    port: _Port
    sources: tuple[Prefix, ...] | None = None


def is_served(service: objects.Service, here: Here) -> bool:
    """Whether a Service has addresses of its own that are ours to serve."""
    spec = service.spec
    if spec.type == "ExternalName" or spec.cluster_ip in {"None", "", None}:
        return False
    return service.metadata.label(PROXY_NAME) == here.proxy_name


def translate(
    service: objects.Service,
    endpoints: Endpoints,
    here: Here,
    before: Mapping[str, Service],
) -> Translated:
    """Return what is to be served; ``before``: what was, whose tables keep their sizes."""
    return _Translation(service, endpoints, here, before).run()


class _Translation:
    def __init__(
        self,
        service: objects.Service,
        endpoints: Endpoints,
        here: Here,
        before: Mapping[str, Service],
    ) -> None:
        self._meta, self._spec = service.metadata, service.spec
        self._status = service.status
        self._endpoints, self._here, self._before = endpoints, here, before
        self._made = Translated()
        self._families: set[int] = set()
        self._affinity = self._read_affinity()

    def run(self) -> Translated:
        self._look_for_unknown()
        texts = self._spec.cluster_ips or [self._spec.cluster_ip or ""]
        clusters = self._addresses(texts, "clusterIPs")
        self._families = {each.version for each in clusters}
        for port in self._ports():
            for vip in clusters:
                self._put_cluster(_Wish("cluster", vip, port))
            for wish in self._external(port):
                self._put_external(wish)
        self._made.health = self._health()
        # What is said of an address is said for each port.
        self._made.refusals = list(dict.fromkeys(self._made.refusals))
        return self._made

    def _refuse(self, reason: str, message: str) -> None:
        name, namespace = self._meta.name, self._meta.namespace
        self._made.refusals.append(Refusal("Service", namespace, name, reason, message))

    def _look_for_unknown(self) -> None:
        """Tell of what isn't understood, and so not done."""
        spec = self._spec
        said = (
            spec.type,
            spec.session_affinity,
            spec.internal_traffic_policy,
            spec.external_traffic_policy,
        )
        for (field_name, known), value in zip(_KNOWN.items(), said, strict=True):
            if value and value not in known:
                instead = min(known) if field_name != "sessionAffinity" else "None"
                what = f"{field_name}: {value!r} isn't known, and taken for {instead!r}"
                self._refuse("UnknownValue", what)

    # ---- What it is at ---------------------------------------------------------------------------

    def _addresses(self, texts: Iterable[str], where: str) -> list[Address]:
        found = []
        for text in texts:
            try:
                address = read_unicast(text)
            except ValueError as error:
                self._refuse("InvalidAddress", f"{text!r} can't be served: {error}")
                continue
            found.append(address)
            self._tell_how_read(where, text, address)
        return found

    def _tell_how_read(self, where: str, text: str, found: Address | Prefix) -> None:
        """Others may read otherwise what was stored before the API checked it."""
        if not is_plain(text, found):
            self._refuse("AmbiguousAddress", f"{where}: {text!r} is taken for {found}")

    def _ports(self) -> Iterator[_Port]:
        for each in self._spec.ports or ():
            if each.protocol not in {"TCP", "UDP"}:
                what = f"port {each.port}/{each.protocol} isn't served: only TCP and UDP are"
                self._refuse("ProtocolNotSupported", what)
                continue
            protocol = Protocol(each.protocol.lower())
            label = each.name or str(each.port)
            yield _Port(each.port, protocol, (each.port, each.protocol), label)

    def _external(self, port: _Port) -> Iterator[_Wish]:
        """Node ports, addresses of load balancers, external ones that are allowed."""
        yield from self._at_nodes(port)
        yield from self._at_load_balancers(port)
        for vip in self._of_family(self._spec.external_ips or (), "externalIPs"):
            if any(vip in prefix for prefix in self._here.external_ips):
                yield _Wish("external", vip, port)
            else:
                what = f"externalIPs: {vip} isn't served: kubernetes.external_ips doesn't allow it"
                self._refuse("ExternalIPNotAllowed", what)

    def _at_nodes(self, port: _Port) -> Iterator[_Wish]:
        if self._spec.type not in {"NodePort", "LoadBalancer"}:
            return
        for each in self._spec.ports or ():
            if (each.port, each.protocol) == port.at and each.node_port:
                for vip in self._here.node_ports:
                    if vip.version in self._families:
                        yield _Wish("node", vip, port._replace(port=each.node_port))

    def _at_load_balancers(self, port: _Port) -> Iterator[_Wish]:
        given = self._status.load_balancer if self._status else None
        if self._spec.type != "LoadBalancer" or given is None:
            return
        texts = [each.ip for each in given.ingress or () if each.ip and self._is_vip(each)]
        for vip in self._of_family(texts, "status.loadBalancer"):
            sources = self._sources(vip)
            if sources != ():
                yield _Wish("lb", vip, port, sources)

    def _is_vip(self, given: objects.Ingress) -> bool:
        if given.ip_mode not in {None, "VIP", "Proxy"}:
            what = f"ipMode: {given.ip_mode!r} isn't known: {given.ip} isn't served"
            self._refuse("UnknownValue", what)
        return given.ip_mode in {None, "VIP"}

    def _of_family(self, texts: Iterable[str], where: str) -> Iterator[Address]:
        for vip in self._addresses(texts, where):
            if vip.version in self._families:
                yield vip
            else:
                what = f"{where}: {vip} isn't served: the Service has no IPv{vip.version}"
                self._refuse("OtherFamily", what)

    def _sources(self, vip: Address) -> tuple[Prefix, ...] | None:
        """Who may come; None: everyone. Nobody: (), which is refused."""
        texts = [each for each in self._spec.load_balancer_source_ranges or () if each.strip()]
        if not texts:
            return None
        found = []
        for text in texts:
            try:
                prefix = read_prefix(text)
            except ValueError as error:
                what = f"loadBalancerSourceRanges: {text!r} lets nobody in: {error}"
                self._refuse("InvalidSourceRange", what)
                continue
            found.append(prefix)
            self._tell_how_read("loadBalancerSourceRanges", text, prefix)
        mine = tuple(each for each in found if each.version == vip.version)
        if any(each.prefixlen == 0 for each in mine):
            return None  # then sockets, which know no client's address, are served as well
        if not mine:
            what = (
                f"{vip} isn't served: loadBalancerSourceRanges lets nobody of IPv{vip.version} in"
            )
            self._refuse("NoSourceRange", what)
        return mine

    # ---- Who serves it ---------------------------------------------------------------------------

    def _put_cluster(self, wish: _Wish) -> None:
        local = self._spec.internal_traffic_policy == "Local"
        self._put(wish, "node", local=local)

    def _put_external(self, wish: _Wish) -> None:
        """What comes from outside may have other endpoints than what begins in the cluster."""
        if wish.vip.version not in self._here.outside:
            self._put(wish, "node", local=False)
        elif self._spec.external_traffic_policy == "Local":
            self._put(wish, "node", local=False)
            self._put(wish, "all", local=True)
        else:
            self._put(wish, "all", local=False)

    def _put(self, wish: _Wish, scope: Scope, *, local: bool) -> None:
        port = wish.port
        found = tuple(self._endpoints.get((*port.at, wish.vip.version), ()))
        active, draining = self._chosen(found, local=local)
        # Who asks at a socket of this node is sent to any endpoint in one way.
        here = self._here.node if scope == "all" else None
        where = "" if wish.kind == "cluster" else f":{scope}"
        name = f"{self._meta.namespace}:{self._meta.name}:{port.label}:{wish.kind}"
        name = f"{name}:{wish.vip}{where}"
        before = self._before.get(name)
        make = _Backends(before.backends if before else (), port.port, here)
        backends = (
            *make.of(active, BackendState.ACTIVE),
            *make.of(draining, BackendState.DRAINING),
        )
        self._made.services[name] = Service(
            name,
            wish.vip,
            port.port,
            port.protocol,
            _without_itself(wish.vip, backends, scope),
            forwarding="snat",
            table_size=table_size(len(backends), before.table_size if before else 0),
            affinity=self._affinity,
            allow_from=wish.sources,
            scope=scope,
        )

    def _chosen(self, found: Collection[Found], *, local: bool) -> tuple[list[Found], list[Found]]:
        here = self._here
        return for_local(found, here.node) if local else for_all(found, here.node, here.zone)

    def _read_affinity(self) -> Affinity | None:
        if self._spec.session_affinity != "ClientIP":
            return None
        config = self._spec.session_affinity_config
        given = config.client_ip.timeout_seconds if config and config.client_ip else None
        return Affinity(given or DEFAULT_TIMEOUT)

    def _health(self) -> Health | None:
        spec = self._spec
        port = spec.health_check_node_port
        if spec.type != "LoadBalancer" or spec.external_traffic_policy != "Local" or not port:
            return None
        local = {
            each.address
            for found in self._endpoints.values()
            for each in found
            if each.said.ready and each.said.node == self._here.node
        }
        by_family: Counter[int] = Counter(each.version for each in local)
        return Health(port, self._meta.namespace, self._meta.name, by_family)


class _Backends:
    """Makes backends of a service of one port; those that are as ``before`` are the very objects.

    Whoever compares a service with that of before then sees at a glance what has stayed.
    """

    def __init__(self, before: tuple[Backend, ...], port: int, here: str | None) -> None:
        self._before = dict(zip(numbers_of(before), before, strict=True))
        self._port, self._here = port, here

    def of(self, found: Collection[Found], state: BackendState) -> Iterator[Backend]:
        """Yield those of some endpoints."""
        addresses = numbers([each.address for each in found])
        for number, (address, said) in zip(addresses, found, strict=True):
            port = None if said.port == self._port else said.port
            local = self._here is not None and said.node == self._here
            was = self._before.get(number)
            if was and (was.state, was.port, was.local) == (state, port, local):
                yield was
            else:
                yield Backend(address, 1, state, port, local)


def _without_itself(
    vip: Address, backends: tuple[Backend, ...], scope: Scope
) -> tuple[Backend, ...]:
    """None is at the VIP itself, but for a process of this node at another port of its."""

    def may_serve(backend: Backend) -> bool:
        own = backend.port is not None and (backend.local or scope == "node")
        return backend.address != vip or own

    (number,) = numbers((vip,))
    if number not in numbers_of(backends):
        return backends
    return tuple(each for each in backends if may_serve(each))


def table_size(endpoints: int, before: int) -> int:
    """Return how many slots so many endpoints get; ``before``: how many there were."""

    def least(number: int) -> int:
        return next((size for size in SIZES if size >= _SLOTS * number), SIZES[-1])

    wanted = least(endpoints)
    return before if before > wanted and before <= least(endpoints * _SHRINK) else wanted
