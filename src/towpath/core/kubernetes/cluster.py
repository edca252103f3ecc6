# SPDX-License-Identifier: Apache-2.0
"""All that was told of a cluster, and which services that amounts to by now.

What a change costs follows from what it is about: a slice has its own Service made anew and no
other. Only a Node that comes or goes has all slices looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from towpath.core.kubernetes.addresses import read_unicast
from towpath.core.kubernetes.before import Before
from towpath.core.kubernetes.endpoints import SERVICE_NAME, merge
from towpath.core.kubernetes.pace import Pace
from towpath.core.kubernetes.services import kept
from towpath.core.kubernetes.slices import read
from towpath.core.kubernetes.translate import Here, Translated, is_served, translate
from towpath.model.service import Protocol
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from towpath.core.kubernetes.endpoints import Key
    from towpath.core.kubernetes.problems import Refusal
    from towpath.core.kubernetes.slices import Listed, Slice
    from towpath.core.kubernetes.translate import Health
    from towpath.model.kinds import Address, Prefix
    from towpath.model.service import Service

Name: TypeAlias = tuple[str, str]
"""Namespace and name."""
ZONE = "topology.kubernetes.io/zone"


class Settings(NamedTuple):
    """What the configuration says."""

    node: str
    external_ips: tuple[Prefix, ...] = ()
    node_port_addresses: tuple[Prefix, ...] | None = None
    proxy_name: str | None = None
    outside: frozenset[int] = frozenset()


class Changed(NamedTuple):
    """What is other than before."""

    put: tuple[Service, ...]
    remove: tuple[str, ...]
    names: frozenset[Name]
    """Services of the cluster that were looked at."""


class NodePort(NamedTuple):
    """A port of the node's that a Service has."""

    port: int
    protocol: Protocol
    namespace: str
    name: str


class Cluster:
    """The objects of one cluster. `take` and `take_due` say what has changed since last time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._services: dict[Name, objects.Service] = {}
        # Of thousands of Services most have one slice, one port and one address: where a
        # dictionary would do, a tuple takes a fifth of the memory.
        self._slices: dict[Name, tuple[Slice, ...]] = {}
        """Of a Service, in the order in which they were told."""
        self._slice_of: dict[Name, Name] = {}
        self._nodes: dict[str, objects.Node] = {}
        self._dirty: set[Name] = set()
        self._pace = Pace()
        self._endpoints: dict[Name, tuple[tuple[Key, Listed], ...]] = {}
        self._made: dict[Name, tuple[Service, ...]] = {}
        # Of what is made of Services, what few have: whoever asks need not look at all.
        self._refusals: dict[Name, list[Refusal]] = {}
        self._health: dict[Name, Health] = {}
        self._held: dict[Name, int] = {}
        self._before = Before()
        self.refused = 0
        """Increases when other things aren't served than before."""
        self.here = self._find_here()

    # ---- What is told ----------------------------------------------------------------------------

    def put(self, found: objects.Kind) -> None:
        """An object was added, or is another now."""
        if isinstance(found, objects.Service):
            key = (found.metadata.namespace, found.metadata.name)
            self._services[key] = kept(found)
            self._dirty.add(key)
        elif isinstance(found, objects.EndpointSlice):
            self._put_slice(found)
        else:
            self._put_node(found)

    def remove(self, kind: type[objects.Kind], namespace: str, name: str) -> None:
        """An object is gone."""
        if kind is objects.Service:
            if self._services.pop((namespace, name), None) is not None:
                self._dirty.add((namespace, name))
        elif kind is objects.EndpointSlice:
            self._remove_slice((namespace, name))
        elif self._nodes.pop(name, None) is not None:
            self._node_changed(name)

    def replace(
        self,
        kind: type[objects.Kind],
        found: Iterable[objects.Kind],
        keep: Collection[Name] = (),
    ) -> None:
        """These are all the objects of a kind, besides those that are to be kept."""
        listed = {(each.metadata.namespace, each.metadata.name): each for each in found}
        for namespace, name in self.names(kind):
            if (namespace, name) not in listed and (namespace, name) not in keep:
                self.remove(kind, namespace, name)
        for each in listed.values():
            if self._differs(each):
                self.put(each)

    def names(self, kind: type[objects.Kind]) -> tuple[Name, ...]:
        """The objects of a kind that are there."""
        if kind is objects.Service:
            return tuple(self._services)
        if kind is objects.EndpointSlice:
            return tuple(self._slice_of)
        return tuple(("", name) for name in self._nodes)

    def nodes(self) -> tuple[objects.Node, ...]:
        """All Nodes."""
        return tuple(self._nodes.values())

    def pod(self, service: Name, address: Address) -> str | None:
        """Return the name of a Service's pod that has an address. For any thread."""
        for known in self._slices.get(service, ()):
            if name := known.pod(address):
                return f"{name}.{service[0]}"
        return None

    def _differs(self, found: objects.Kind) -> bool:
        key = (found.metadata.namespace, found.metadata.name)
        if isinstance(found, objects.Service):
            return self._services.get(key) != kept(found)
        if isinstance(found, objects.EndpointSlice):
            owner = self._slice_of.get(key)
            if owner != (key[0], found.metadata.label(SERVICE_NAME)):
                return True
            return read(found) not in self._slices[owner]
        return self._nodes.get(key[1]) != found

    def _put_slice(self, found: objects.EndpointSlice) -> None:
        namespace, name = found.metadata.namespace, found.metadata.name
        owner = found.metadata.label(SERVICE_NAME)
        if self._slice_of.get((namespace, name)) != (namespace, owner):
            self._remove_slice((namespace, name))
        if owner is None:
            return
        key = (namespace, owner)
        others = (each for each in self._slices.get(key, ()) if each.name != name)
        self._slices[key] = (*others, read(found))
        self._slice_of[namespace, name] = key
        self._dirty.add(key)

    def _remove_slice(self, name: Name) -> None:
        owner = self._slice_of.pop(name, None)
        if owner is None:
            return
        others = tuple(each for each in self._slices[owner] if each.name != name[1])
        _keep(self._slices, owner, others)
        self._dirty.add(owner)

    def _put_node(self, found: objects.Node) -> None:
        name = found.metadata.name
        is_new = name not in self._nodes
        self._nodes[name] = found
        if is_new:
            self._node_changed(name)
        elif name == self._settings.node:
            self._look_here()

    def _node_changed(self, name: str) -> None:
        if self._look_here():
            return
        for key, slices in self._slices.items():
            if any(each.endpoints.names(name) for each in slices):
                self._dirty.add(key)

    def _look_here(self) -> bool:
        """Have all made anew if this node is otherwise; whether it is."""
        here = self._find_here()
        if here == self.here:
            return False
        self.here = here
        self._dirty |= self._services.keys()
        return True

    def _find_here(self) -> Here:
        settings = self._settings
        node = self._nodes.get(settings.node)
        return Here(
            settings.node,
            node.metadata.label(ZONE) if node else None,
            tuple(_node_ports(node, settings.node_port_addresses)) if node else (),
            settings.external_ips,
            settings.proxy_name,
            settings.outside,
        )

    # ---- What was in force before ----------------------------------------------------------------

    def restore(self, services: Iterable[Service]) -> None:
        """These are in force, by an agent of before: endpoints are held that slices lack.

        Call it before `take` is called for the first time.
        """
        self._before = Before(services)

    def forget(self, now: float) -> bool:
        """Have looked at again what was held long enough; whether there is something."""
        names = self._before.over(now)
        self._dirty |= names
        return bool(names)

    # ---- What it amounts to ----------------------------------------------------------------------

    def next_due(self, now: float) -> float | None:
        """Seconds until `take_due` has something to look at. None: there is nothing."""
        return self._pace.next_due(self._dirty, now)

    def in_force(self, now: float) -> None:
        """What was taken is in force: what rests does so from now on."""
        self._pace.in_force(now)

    def take_due(self, now: float) -> Changed:
        """Return which services are others than before, but for those that rest by :class:`Pace`.

        These are among the changes of a later call.
        """
        return self._take(self._pace.due(self._dirty, now), now)

    def take(self, now: float) -> Changed:
        """Return which services are others than when this was last called."""
        return self._take(frozenset(self._dirty), now)

    def _take(self, names: frozenset[Name], now: float) -> Changed:
        put: dict[str, Service] = {}
        remove: set[str] = set()
        self._dirty -= names
        # Of two that are in each other's way the older one is served, on all nodes.
        for key in sorted(names, key=self._age):
            before = {each.name: each for each in self._made.get(key, ())}
            after = self._make(key, before, now)
            _keep(self._made, key, tuple(after.services.values()))
            self._note(key, after)
            number = sum(len(each.backends) for each in after.services.values())
            self._pace.looked_at(key, number, now)
            remove |= before.keys() - after.services.keys()
            put |= {name: made for name, made in after.services.items() if made != before.get(name)}
        self._before.settle()
        return Changed(tuple(put.values()), tuple(remove - put.keys()), names)

    def _age(self, key: Name) -> tuple[str, Name]:
        service = self._services.get(key)
        return (service.metadata.creation_timestamp or "" if service else "", key)

    def _make(self, key: Name, before: Mapping[str, Service], now: float) -> Translated:
        service = self._services.get(key)
        if service is None or not is_served(service, self.here):
            self._endpoints.pop(key, None)
            return Translated()
        slices = self._slices.get(key, ())
        restored = self._before.endpoints(service, self.here.node)
        known = restored or dict(self._endpoints.get(key, ()))
        endpoints, refusals = merge(service, slices, known, self._is_gone(), now)
        _keep(self._endpoints, key, tuple(endpoints.items()))
        if restored and any(each.held for each in endpoints.values()):
            self._before.hold(service, slices, now)
        made = translate(service, endpoints, self.here, before)
        made.refusals += refusals
        return made

    def _note(self, key: Name, made: Translated) -> None:
        """Keep apart what few services have."""
        if made.refusals != self._refusals.get(key, []):
            self.refused += 1
        _keep(self._refusals, key, made.refusals)
        _keep(self._health, key, made.health)
        _keep(self._held, key, sum(each.held for _, each in self._endpoints.get(key, ())))

    def _is_gone(self) -> Callable[[str], bool]:
        """Nodes are asked about once some are known."""
        nodes = self._nodes
        return (lambda name: name not in nodes) if nodes else (lambda _: False)

    def services(self) -> dict[str, Service]:
        """All services, by name."""
        return {each.name: each for made in self._made.values() for each in made}

    def refusals(self) -> list[Refusal]:
        """What of all objects isn't served."""
        return [each for refusals in self._refusals.values() for each in refusals]

    def refusals_of(self, names: Iterable[Name]) -> list[Refusal]:
        """What of these isn't served."""
        return [each for name in names for each in self._refusals.get(name, ())]

    def health(self) -> dict[int, Health]:
        """Ports that say whether there are local endpoints."""
        return {each.port: each for each in self._health.values()}

    def node_ports(self) -> list[NodePort]:
        """Ports of this node's that are served."""
        return [
            NodePort(each.node_port, Protocol(each.protocol.lower()), *name)
            for name in self._made.keys() & self._services.keys()
            for each in self._services[name].spec.ports or ()
            if each.node_port and each.protocol in {"TCP", "UDP"}
        ]

    def held(self) -> int:
        """How many endpoints are in no slice, and held. For any thread."""
        return sum(tuple(self._held.values()))

    def number(self, kind: type[objects.Kind]) -> int:
        """How many objects of a kind there are."""
        if kind is objects.Service:
            return len(self._services)
        return len(self._slice_of if kind is objects.EndpointSlice else self._nodes)


T = TypeVar("T")


def _keep(found: dict[Name, T], key: Name, what: T | None) -> None:
    """Note what a service has, if it has any."""
    if what:
        found[key] = what
    else:
        found.pop(key, None)


def _node_ports(node: objects.Node, allowed: tuple[Prefix, ...] | None) -> Iterable[Address]:
    """The addresses of a node that have node ports."""
    given = (node.status.addresses if node.status else None) or ()
    found: dict[Address, str] = {}
    for each in given:
        try:
            found.setdefault(read_unicast(each.address), each.type)
        except ValueError:
            continue  # such as a host's name
    if allowed is not None:
        return [each for each in found if any(each in prefix for prefix in allowed)]
    internal = [each for each, kind in found.items() if kind == "InternalIP"]
    first = {each.version: each for each in reversed(internal)}
    return [first[version] for version in sorted(first)]
