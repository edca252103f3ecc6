# SPDX-License-Identifier: Apache-2.0
"""What annotations of this node's Pods, and of their Namespaces, limit.

A limit ends with the pod's device. A Pod that is gone from what the API server tells, by whatever
way, keeps its limit until the device is gone, or another pod has its addresses.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from towpath.core.kubernetes.addresses import read_unicast
from towpath.core.kubernetes.problems import Refusal
from towpath.core.kubernetes.quantities import rate
from towpath.model.bandwidth import Group, Pod, Sourced
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from towpath.model.kinds import Address

Name: TypeAlias = tuple[str, str]
"""Namespace and name; a Namespace's own has none."""

OWNER = "kubernetes"
EGRESS, INGRESS = "kubernetes.io/egress-bandwidth", "kubernetes.io/ingress-bandwidth"
PREFIX = "towpath.alt/"
"""Of annotations that Kubernetes has no name for. Names in .alt are nobody's in the DNS (RFC 9476):
the project can stand for one without owning a domain."""
GROUP_EGRESS, GROUP_INGRESS = f"{PREFIX}egress-bandwidth", f"{PREFIX}ingress-bandwidth"
PRIORITY = f"{PREFIX}priority"
STATIC = "kubernetes.io/config.hash"
"""By which the runtime knows a pod of a file; the Pod in the API has another UID."""
_HIGHEST = 7
_LONGEST = 120
"""Of names, which tables keep."""
_LEAVING = ":leaving"
"""At the end of a name that another pod has by now. No pod's name has a colon."""
_FINISHED = frozenset({"Succeeded", "Failed"})


class _Limits(NamedTuple):
    egress: int | None = None
    ingress: int | None = None
    priority: int | None = None


def pod_name(namespace: str, name: str) -> str:
    """What the limit of a pod is called."""
    whole = f"{namespace}:{name}"
    if len(whole) <= _LONGEST:
        return whole
    digest = blake2b(whole.encode(), digest_size=6).hexdigest()
    return f"{whole[: _LONGEST - len(digest) - 1]}-{digest}"


def group_name(namespace: str) -> str:
    """What the common limit of a namespace is called. No pod's name begins with a hyphen."""
    return f"{namespace}:-all"


class Pods:
    """Pods of one node, and Namespaces. ``before``: what was in force, of an earlier process."""

    def __init__(self, before: Iterable[Pod] = ()) -> None:
        self._pods: dict[Name, objects.Pod] = {}
        self._namespaces: dict[str, objects.Namespace] = {}
        self._sandboxes: Mapping[str, tuple[Address, ...]] = {}
        self._leaving: dict[str, Pod] = {each.name: each for each in before}
        """Limited pods that the API server doesn't know any more, or that have finished."""
        self._believed: dict[tuple[str, str, str], _Limits] = {}
        """Limits by kind, namespace and UID: of those that are refused the last right ones hold."""
        self._refused: list[Refusal] = []
        self._refusals: tuple[Refusal, ...] = ()
        """The same of the last time, whole."""
        self._made: dict[Name, Pod] = {}

    # ---- What is told ----------------------------------------------------------------------------

    def put(self, found: objects.Pod | objects.Namespace) -> None:
        """An object was added, or is another now."""
        meta = found.metadata
        if isinstance(found, objects.Namespace):
            self._namespaces[meta.name] = found
            return
        key = (meta.namespace, meta.name)
        before = self._pods.get(key)
        if before is not None and before.metadata.uid != meta.uid:
            self._leave(key)
        self._pods[key] = found

    def remove(self, kind: type, namespace: str, name: str) -> None:
        """An object is gone. A Namespace that still has pods isn't."""
        if kind is objects.Pod:
            self._leave((namespace, name))
        elif all(each != name for each, _ in self._pods):
            self._namespaces.pop(name, None)

    def replace(
        self,
        kind: type,
        found: Iterable[objects.Pod | objects.Namespace],
        keep: Collection[Name] = (),
    ) -> None:
        """These are all the objects of a kind, besides those that are to be kept."""
        listed = {(each.metadata.namespace, each.metadata.name): each for each in found}
        for namespace, name in self.names(kind):
            if (namespace, name) not in listed and (namespace, name) not in keep:
                self.remove(kind, namespace, name)
        for each in listed.values():
            self.put(each)

    def names(self, kind: type) -> tuple[Name, ...]:
        """The objects of a kind that are there."""
        if kind is objects.Pod:
            return tuple(self._pods)
        return tuple(("", name) for name in tuple(self._namespaces))

    def sandboxes(self, found: Mapping[str, tuple[Address, ...]]) -> None:
        """The addresses that pods' sandboxes were given on this node, by UID."""
        self._sandboxes = found

    def gone(self, names: Collection[str]) -> None:
        """The devices of these limited pods are gone."""
        for name in names:
            self._leaving.pop(name.removesuffix(_LEAVING), None)

    @property
    def leaving(self) -> tuple[str, ...]:
        """Limited pods that the API server doesn't know any more."""
        return tuple(self._leaving)

    def _leave(self, key: Name) -> None:
        if self._pods.pop(key, None) is not None and (made := self._made.pop(key, None)):
            self._leaving[made.name] = made

    # ---- What it amounts to ----------------------------------------------------------------------

    def wanted(self) -> Sourced:
        """The limits of all pods whose addresses are known, and of their namespaces."""
        self._refused = []
        groups = {
            namespace: made
            for namespace in sorted(self._inhabited())
            if (made := self._group(namespace))
        }
        before, self._made = self._made, {}
        alive = {key: each for key, each in self._pods.items() if _is_alive(each)}
        for key in before.keys() - alive.keys():
            self._leaving[before[key].name] = before[key]
        owners = self._owners(alive)
        for key, pod in sorted(alive.items()):
            addresses = tuple(each for each, owner in owners.items() if owner == key)
            limited = self._pod(pod, addresses, groups)
            if limited is not None:
                self._made[key] = limited
        pods = [*self._made.values(), *self._still(owners, groups)]
        used = {each.group for each in pods}
        kept = tuple(each for each in groups.values() if each.name in used)
        self._forget()
        self._refusals = tuple(self._refused)
        return Sourced(OWNER, tuple(pods), kept)

    def refusals(self) -> list[Refusal]:
        """What of annotations isn't in force, as `wanted` has found."""
        return list(self._refusals)

    @property
    def waiting(self) -> int:
        """Pods that run, or are about to, and whose addresses nobody has told yet.

        For any thread, as `names`, `leaving` and `refusals` are.
        """
        return sum(
            _is_alive(each) and not each.spec.host_network and not self._addresses(each)
            for each in tuple(self._pods.values())
        )

    def _inhabited(self) -> set[str]:
        leaving = {name.partition(":")[0] for name in self._leaving}
        return leaving | {namespace for namespace, _ in self._pods}

    def _still(self, owners: Mapping[Address, Name], groups: Mapping[str, Group]) -> list[Pod]:
        """Those that are leaving, with the addresses that no other pod has."""
        taken = {each.name for each in self._made.values()}
        names = {each.name for each in groups.values()}
        found = []
        for name, pod in list(self._leaving.items()):
            addresses = tuple(each for each in pod.addresses or () if each not in owners)
            group = pod.group if pod.group in names else None
            if not addresses or not (pod.egress or pod.ingress or pod.priority or group):
                del self._leaving[name]
                continue
            other = f"{name}{_LEAVING}" if name in taken else name
            found.append(replace(pod, name=other, addresses=addresses, group=group))
        return found

    def _owners(self, alive: Mapping[Name, objects.Pod]) -> dict[Address, Name]:
        """Whose an address is. What the node has given counts more, then who is younger."""
        ranks: dict[Address, tuple[bool, str, Name]] = {}
        for key, pod in alive.items():
            if pod.spec.host_network:
                continue
            rank = (self._is_placed(pod), pod.metadata.creation_timestamp or "", key)
            for address in self._addresses(pod):
                if address not in ranks or ranks[address] < rank:
                    ranks[address] = rank
        return {address: key for address, (_, _, key) in ranks.items()}

    def _is_placed(self, pod: objects.Pod) -> bool:
        return bool(self._sandboxes.get(_runtime_uid(pod)))

    def _addresses(self, pod: objects.Pod) -> tuple[Address, ...]:
        placed = self._sandboxes.get(_runtime_uid(pod))
        if placed:
            return placed
        found: list[Address] = []
        for each in pod.status.pod_ips or ():
            try:
                found.append(read_unicast(each.ip))
            except ValueError:
                continue  # the kubelet has written it: not for users to mend
        return tuple(found)

    def _pod(
        self, pod: objects.Pod, addresses: tuple[Address, ...], groups: Mapping[str, Group]
    ) -> Pod | None:
        meta = pod.metadata
        if pod.spec.host_network:
            if meta.annotation(EGRESS) is not None or meta.annotation(INGRESS) is not None:
                what = "hostNetwork: its packets are the node's, and have no limit of their own"
                self._refuse("Pod", meta, "HostNetwork", what)
            return None
        limits = self._limits("Pod", meta, EGRESS, INGRESS)
        group = groups.get(meta.namespace)
        namespace = self._namespaces.get(meta.namespace)
        priority = limits.priority
        if priority is None and namespace is not None:
            priority = self._limits_of(namespace).priority
        if not addresses or not (limits.egress or limits.ingress or priority or group):
            return None
        return Pod(
            pod_name(meta.namespace, meta.name),
            addresses=addresses,
            egress=limits.egress,
            ingress=limits.ingress,
            priority=priority or 0,
            group=group.name if group else None,
        )

    def _group(self, namespace: str) -> Group | None:
        found = self._namespaces.get(namespace)
        if found is None:
            return None
        limits = self._limits("Namespace", found.metadata, GROUP_EGRESS, GROUP_INGRESS)
        if not (limits.egress or limits.ingress):
            return None
        return Group(group_name(namespace), egress=limits.egress, ingress=limits.ingress)

    # ---- Annotations -----------------------------------------------------------------------------

    def _limits_of(self, namespace: objects.Namespace) -> _Limits:
        return self._believed.get(_key("Namespace", namespace.metadata), _Limits())

    def _limits(self, kind: str, meta: objects.Meta, egress: str, ingress: str) -> _Limits:
        before = self._believed.get(_key(kind, meta), _Limits())
        found = _Limits(
            self._rate(kind, meta, egress, before.egress),
            self._rate(kind, meta, ingress, before.ingress),
            self._priority(kind, meta, before.priority),
        )
        self._believed[_key(kind, meta)] = found
        return found

    def _rate(self, kind: str, meta: objects.Meta, name: str, before: int | None) -> int | None:
        text = meta.annotation(name)
        if text is None:
            return None
        try:
            return rate(text)
        except ValueError as error:
            self._refuse(kind, meta, "InvalidBandwidth", f"{name}: {error}{_stays(before)}")
            return before

    def _priority(self, kind: str, meta: objects.Meta, before: int | None) -> int | None:
        text = meta.annotation(PRIORITY)
        if text is None:
            return None
        if len(text) == 1 and text.isascii() and text.isdigit() and int(text) <= _HIGHEST:
            return int(text)
        what = f"{PRIORITY}: {text[:40]!r} is no priority; allowed: 0 to {_HIGHEST}"
        self._refuse(kind, meta, "InvalidPriority", f"{what}{_stays(before)}")
        return before

    def _refuse(self, kind: str, meta: objects.Meta, reason: str, message: str) -> None:
        self._refused.append(Refusal(kind, meta.namespace, meta.name, reason, message))

    def _forget(self) -> None:
        known = {_key("Pod", each.metadata) for each in self._pods.values()}
        known |= {_key("Namespace", each.metadata) for each in self._namespaces.values()}
        for key in self._believed.keys() - known:
            del self._believed[key]


def _key(kind: str, meta: objects.Meta) -> tuple[str, str, str]:
    return kind, meta.namespace, meta.uid or meta.name


def _is_alive(pod: objects.Pod) -> bool:
    """Finished pods keep the addresses in their status, which others have by then."""
    return pod.status.phase not in _FINISHED


def _runtime_uid(pod: objects.Pod) -> str:
    return pod.metadata.annotation(STATIC) or pod.metadata.uid


def _stays(before: int | None) -> str:
    return "" if before is None else f"; {before} stays"
