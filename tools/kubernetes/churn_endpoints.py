# SPDX-License-Identifier: Apache-2.0
"""Where the endpoints of a service come from: pods, of which slices are made, or slices alone."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MERGE = "application/merge-patch+json"
_PODS = "/api/v1/namespaces/default/pods"
_SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
_OF_A_SLICE = 100
"""Endpoints, at most: as the controller-manager makes them."""


class Endpoints(Protocol):
    """What is known of endpoints that are ready, and how they come and go."""

    selector: Mapping[str, str] | None
    """Of the Service."""
    named: dict[str, str]
    """By address: of which object. Who takes one out deletes it."""

    def make(self, address: str) -> None:
        """Have one that is ready."""

    def delete(self, address: str, name: str) -> None:
        """Have it no more."""

    def read(self) -> None:
        """Know what the API has."""


class Pods:
    """Objects of the API; the controller-manager makes slices of them when it comes to it."""

    selector: Mapping[str, str] | None = {"app": "web"}

    def __init__(self, ask: Callable[..., Any], where: Callable[[str], str]) -> None:
        self._ask = ask
        self._where = where
        self.named: dict[str, str] = {}
        self._generation = itertools.count(1)

    def make(self, address: str) -> None:
        """Have a pod that is ready."""
        name = f"pod-{next(self._generation)}"
        container = {"name": "server", "image": "server", "ports": []}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": self.selector},
            "spec": {
                "nodeName": self._where(address),
                "containers": [container],
                "automountServiceAccountToken": False,
            },
        }
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        self._ask("POST", _PODS, pod)
        self._ask("PATCH", f"{_PODS}/{name}/status", {"status": status}, MERGE)
        self.named[address] = name

    def delete(self, address: str, name: str) -> None:
        """Have it no more."""
        del address
        self._ask("DELETE", f"{_PODS}/{name}?gracePeriodSeconds=0")

    def read(self) -> None:
        """Know the names of those that there are."""
        found = self._ask("GET", _PODS)["items"]
        self.named = {each["status"]["podIP"]: each["metadata"]["name"] for each in found}


class Slices:
    """Written by this program: as fast as the API server takes them.

    What has changed while one is written goes with the next write of it.
    """

    selector: Mapping[str, str] | None = None

    def __init__(
        self,
        ask: Callable[..., Any],
        where: Callable[[str], str],
        port: int,
        addresses: Sequence[str],
    ) -> None:
        self._ask = ask
        self._where = where
        self._port = port
        self.named: dict[str, str] = {}
        self._slice_of = {each: f"web-{n // _OF_A_SLICE}" for n, each in enumerate(addresses)}
        self._members: dict[str, dict[str, None]] = {name: {} for name in self._slice_of.values()}
        self._changed = dict.fromkeys(self._members, 0)
        self._written = dict.fromkeys(self._members, 0)
        self._locks = {name: threading.Lock() for name in self._members}
        self._members_lock = threading.Lock()
        for name in self._members:
            self._ask("POST", _SLICES, self._body(name))

    def make(self, address: str) -> None:
        """Have one that is ready; return once it is written."""
        name = self._slice_of[address]
        with self._members_lock:
            self._members[name][address] = None
            self._changed[name] += 1
            turn = self._changed[name]
        self._write(name, turn)
        self.named[address] = name

    def delete(self, address: str, name: str) -> None:
        """Have it no more; return once that is written."""
        with self._members_lock:
            del self._members[name][address]
            self._changed[name] += 1
            turn = self._changed[name]
        self._write(name, turn)

    def read(self) -> None:
        """Know what the API has."""
        for name, members in self._members.items():
            found = self._ask("GET", f"{_SLICES}/{name}")["endpoints"] or ()
            members.clear()
            members.update(dict.fromkeys(each["addresses"][0] for each in found))
        self.named = {each: name for name, of in self._members.items() for each in of}

    def _write(self, name: str, turn: int) -> None:
        with self._locks[name]:
            if self._written[name] >= turn:
                return
            with self._members_lock:
                now, body = self._changed[name], self._body(name)
            self._ask("PUT", f"{_SLICES}/{name}", body)
            self._written[name] = now

    def _body(self, name: str) -> dict[str, Any]:
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "web", "port": self._port, "protocol": "TCP"}],
            "endpoints": [
                {
                    "addresses": [each],
                    "conditions": {"ready": True},
                    "nodeName": self._where(each),
                }
                for each in self._members[name]
            ],
        }
