# SPDX-License-Identifier: Apache-2.0
"""What a Service wants of pools, and what it has: nothing else is known of either."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from towpath.core.kubernetes.addresses import read_unicast
from towpath.core.kubernetes.problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from towpath.model.kinds import Address
    from towpath.model.sources.kubernetes import Section, objects

CONDITION = "towpath.alt/addresses"
"""In a Service's status: it was written here, and what came of it."""
ADDRESSES = "towpath.alt/addresses"
"""Annotation: the addresses that are wanted, with commas between them."""
POOL = "towpath.alt/pool"
"""Annotation: of which pool."""
SHARE = "towpath.alt/share"
"""Annotation: Services of one namespace with the same value may have one address."""

Name = tuple[str, str]


class Told(NamedTuple):
    """What the condition says."""

    ok: bool
    reason: str
    message: str


class Claim(NamedTuple):
    """A Service, as pools see it."""

    name: Name
    uid: str
    version: str
    """Of the object: what is written is for this one only."""
    age: tuple[str, str]
    """Older ones are less."""
    mine: bool
    """Whether addresses are ours to give. If not, what it has is another's."""
    leaves: bool
    """It had some of ours, and wants none any more."""
    families: tuple[int, ...] = ()
    required: bool = False
    """It can't do without any of the families."""
    has: tuple[Address, ...] = ()
    exact: bool = True
    """Whether status has these addresses and nothing else."""
    told: Told | None = None
    wishes: tuple[Address, ...] = ()
    problems: tuple[Refusal, ...] = ()
    """Of the wishes."""
    pool: str | None = None
    share: tuple[object, ...] | None = None
    ports: frozenset[tuple[str, int]] = frozenset()
    labels: Mapping[str, str] = {}

    def refuse(self, reason: str, message: str) -> Refusal:
        """Say something of the Service."""
        return Refusal("Service", *self.name, reason, message)

    def may_share(self, other: Claim) -> bool:
        """Whether both may have one address."""
        return (
            self.share is not None
            and self.mine
            and other.mine
            and self.share == other.share
            and not self.ports & other.ports
        )


def read(service: objects.Service, section: Section) -> Claim | None:
    """Return what a Service claims; None: nothing that pools have to do with."""
    meta, spec = service.metadata, service.spec
    name = (meta.namespace, meta.name)
    told = _told(service)
    balanced = spec.type == "LoadBalancer"
    has, exact = _has(service) if balanced else ((), True)
    age = (meta.creation_timestamp or "", meta.uid)
    if not balanced:
        if told is None:
            return None
        return Claim(name, meta.uid, meta.resource_version, age, mine=False, leaves=True, told=told)
    mine = spec.load_balancer_class == section.load_balancer_class
    if spec.load_balancer_class is None and section.default_load_balancer:
        # Who has none may have been given an address by another before.
        mine = told is not None or (not has and exact)
    claim = Claim(name, meta.uid, meta.resource_version, age, mine, leaves=False, has=has)
    if not mine:
        return claim if has else None
    families = _families(spec)
    wishes, problems = _wishes(service, claim, families)
    return claim._replace(
        families=families,
        required=spec.ip_family_policy == "RequireDualStack",
        exact=exact,
        told=told,
        wishes=wishes,
        problems=problems,
        pool=meta.annotation(POOL),
        share=_share(service),
        ports=frozenset((each.protocol, each.port) for each in spec.ports or ()),
        labels=meta.labels or {},
    )


def _told(service: objects.Service) -> Told | None:
    for each in (service.status.conditions if service.status else None) or ():
        if each.type == CONDITION:
            return Told(each.status == "True", each.reason, each.message)
    return None


def _has(service: objects.Service) -> tuple[tuple[Address, ...], bool]:
    balancer = service.status.load_balancer if service.status else None
    ingress = (balancer.ingress if balancer else None) or ()
    found: list[Address] = []
    exact = True
    for each in ingress:
        try:
            found.append(read_unicast(each.ip or ""))
        except ValueError:
            exact = False
            continue
        exact = exact and each.ip_mode != "Proxy" and str(found[-1]) == each.ip
    return tuple(dict.fromkeys(found)), exact


def _families(spec: objects.ServiceSpec) -> tuple[int, ...]:
    known = {"IPv4": 4, "IPv6": 6}
    named = [known[each] for each in spec.ip_families or () if each in known]
    if named:
        return tuple(named)
    texts = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    return tuple(dict.fromkeys(each.version for each in _readable(texts)))


def _readable(texts: Iterable[str]) -> Iterable[Address]:
    for text in texts:
        try:
            yield read_unicast(text)
        except ValueError:
            continue


def _wishes(
    service: objects.Service, claim: Claim, families: tuple[int, ...]
) -> tuple[tuple[Address, ...], tuple[Refusal, ...]]:
    annotated = service.metadata.annotation(ADDRESSES)
    where = ADDRESSES if annotated is not None else "loadBalancerIP"
    text = annotated if annotated is not None else service.spec.load_balancer_ip or ""
    found: dict[int, Address] = {}
    problems = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        try:
            address = read_unicast(each)
        except ValueError as error:
            problems.append(claim.refuse("InvalidAddress", f"{where}: {each!r}: {error}"))
            continue
        version = address.version
        if version not in families:
            what = f"{where}: {address} isn't given: the Service has no IPv{version}"
            problems.append(claim.refuse("OtherFamily", what))
        elif found.setdefault(version, address) != address:
            what = f"{where}: {address} isn't given: one of each family is, and {found[version]}"
            problems.append(claim.refuse("OneOfEachFamily", f"{what} is named before it"))
    return tuple(found.values()), tuple(problems)


def _share(service: objects.Service) -> tuple[object, ...] | None:
    key = service.metadata.annotation(SHARE)
    if not key:
        return None
    # What announces an address where its endpoints are can do so for one set of them only.
    local = service.spec.external_traffic_policy == "Local"
    selector = tuple(sorted((service.spec.selector or {}).items())) if local else None
    return service.metadata.namespace, key, local, selector
