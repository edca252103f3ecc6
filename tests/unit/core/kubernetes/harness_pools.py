# SPDX-License-Identifier: Apache-2.0
"""Services whose status says what pools have decided, and what may be said of it by plain rules."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import yaml
from tests.unit.core.kubernetes.harness_cluster import read as decoded

from towpath.core.kubernetes.claims import CONDITION, read
from towpath.core.kubernetes.pools import Pools
from towpath.model.sources.kubernetes import Section, objects
from towpath.model.sources.kubernetes.pools import parse_pools

if TYPE_CHECKING:
    from towpath.core.kubernetes.pools import Decision

SECTION = Section(pools="kube-system/towpath-pools")
OURS = SECTION.load_balancer_class


class World:
    """An API server of Services, and one who decides."""

    def __init__(self, *pools: dict[str, Any], section: Section = SECTION) -> None:
        self.section = section
        self.services: dict[tuple[str, str], dict[str, Any]] = {}
        self.version = 100
        self.decided: list[Decision] = []
        self.pools = Pools()
        self.configure(*pools)

    def configure(self, *pools: dict[str, Any]) -> None:
        """These are the pools."""
        self.listed = parse_pools(yaml.safe_dump({"pools": list(pools)}), "pools.yaml")
        self.pools.configure(self.listed)

    def service(self, name: str, *, status: dict[str, Any] | None = None, **more: Any) -> None:
        """Make a Service, or another of it; its status stays."""
        namespace = more.pop("namespace", "default")
        key = (namespace, name)
        before = self.services.get(key)
        meta = {
            "name": name,
            "namespace": namespace,
            "annotations": more.pop("annotations", {}),
            "labels": more.pop("labels", {}),
            "uid": before["metadata"]["uid"] if before else f"u{self.version}",
            "creationTimestamp": before["metadata"]["creationTimestamp"]
            if before
            else f"2026-01-01T00:00:{self.version:05}Z",
        }
        spec = {
            "type": "LoadBalancer",
            "loadBalancerClass": OURS,
            "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "protocol": "TCP"}],
        } | more
        kept = before["status"] if before and spec["type"] == "LoadBalancer" else {}
        if before and spec["type"] != "LoadBalancer":
            # As the API server has it: conditions stay.
            kept = {"conditions": before["status"].get("conditions")}
        self.services[key] = {"metadata": meta, "spec": spec, "status": status or kept}
        self.told(key)

    def told(self, key: tuple[str, str]) -> None:
        """A watch tells of it."""
        self.version += 1
        raw = self.services[key]
        raw["metadata"]["resourceVersion"] = str(self.version)
        claim = read(decoded(objects.Service, raw), self.section)
        if claim is None:
            self.pools.remove(key)
        else:
            self.pools.put(claim)

    def delete(self, name: str, namespace: str = "default") -> None:
        """It is gone."""
        del self.services[namespace, name]
        self.pools.remove((namespace, name))

    def settle(self) -> None:
        """Write what is decided until nothing is."""
        for _ in range(20):
            self.decided = self.pools.decisions()
            if not self.decided and not self.pools.undecided:
                return
            for each in self.decided:
                self.write(each)
        raise AssertionError("it decides one thing after another")

    def write(self, decision: Decision) -> None:
        """As the API server would."""
        raw, told = self.services[decision.claim.name], decision.told
        ingress = [{"ip": str(each), "ipMode": "VIP"} for each in decision.addresses]
        raw["status"] = {"loadBalancer": {"ingress": ingress or None}, "conditions": None}
        if told is not None:
            ok = "True" if told.ok else "False"
            condition = {"type": CONDITION, "status": ok} | told._asdict()
            raw["status"]["conditions"] = [condition]
        self.told(decision.claim.name)

    def anew(self) -> None:
        """Another agent decides from now on, who knows statuses and nothing else."""
        self.pools = Pools()
        self.pools.configure(self.listed)
        found = [read(decoded(objects.Service, raw), self.section) for raw in self._all()]
        self.pools.replace(each for each in found if each is not None)
        self.pools.begin()

    def _all(self) -> list[dict[str, Any]]:
        return list(self.services.values())

    def has(self, name: str, namespace: str = "default") -> list[str]:
        """What its status has."""
        balancer = self.services[namespace, name]["status"].get("loadBalancer") or {}
        return [each["ip"] for each in balancer.get("ingress") or []]

    def reason(self, name: str, namespace: str = "default") -> str:
        """What its condition says."""
        (found,) = self.services[namespace, name]["status"]["conditions"]
        return str(found["reason"])

    # ---- By plain rules --------------------------------------------------------------------------

    def holders(self) -> dict[str, list[tuple[str, str]]]:
        """Who has which address by its status."""
        found: dict[str, list[tuple[str, str]]] = {}
        for namespace, name in self.services:
            for each in self.has(name, namespace):
                found.setdefault(each, []).append((namespace, name))
        return found

    def pooled(self, key: tuple[str, str], *, automatic: bool = False) -> set[str]:
        """All addresses of pools that are for a Service, one by one."""
        raw = self.services[key]
        named = raw["metadata"]["annotations"].get("towpath.alt/pool")
        found = set()
        for pool in self.listed:
            fits = named in {None, pool.name}
            fits = fits and (pool.namespaces is None or key[0] in pool.namespaces)
            labels = raw["metadata"]["labels"].items()
            fits = fits and all(each in labels for each in pool.selector or ())
            if fits and (not automatic or pool.auto_assign or named):
                for each in pool.addresses:
                    numbers = range(int(each.first), int(each.last) + 1)
                    found |= {str(type(each.first)(number)) for number in numbers}
        return found

    def check(self) -> None:
        """No address twice but where it is shared, none lost, none refused that is free."""
        holders = self.holders()
        for address, keys in holders.items():
            seen: set[tuple[str, int]] = set()
            shares = set()
            for key in keys:
                raw = self.services[key]
                ports = {(each["protocol"], each["port"]) for each in raw["spec"]["ports"]}
                assert not ports & seen, f"{address}: {keys}"
                seen |= ports
                shares.add((key[0], raw["metadata"]["annotations"].get("towpath.alt/share")))
            assert len(keys) == 1 or (len(shares) == 1 and None not in shares.pop()), keys
        for usage, pool in zip(self.pools.usage(), self.listed, strict=True):
            inside = [a for a in holders if any(_is_in(a, each) for each in pool.addresses)]
            assert usage.used == len(inside)
        for key, raw in self.services.items():
            if raw["spec"]["type"] != "LoadBalancer" or raw["spec"]["loadBalancerClass"] != OURS:
                continue
            reason = self.reason(key[1], key[0])
            if reason == "Given":
                assert set(self.has(key[1], key[0])) <= self.pooled(key)
            if reason == "PoolExhausted":
                families = {4 if each == "IPv4" else 6 for each in raw["spec"]["ipFamilies"]}
                free = self.pooled(key, automatic=True) - holders.keys()
                missing = families - {ip_address(a).version for a in self.has(key[1], key[0])}
                assert not {ip_address(each).version for each in free} >= missing


def _is_in(address: str, found: Any) -> bool:
    number = ip_address(address)
    same = number.version == found.first.version
    return same and int(found.first) <= int(number) <= int(found.last)
