# SPDX-License-Identifier: Apache-2.0
"""Agents of Towpath's image, by the manifests that users apply."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.kubernetes.control_plane import ControlPlane

MANIFESTS = Path("deploy/kubernetes")
PATIENCE = 120
LIMITS = {"services": 1024, "backends": 4096, "table_slots": 1_000_000}


def manifests(plane: ControlPlane, **sections: Any) -> list[dict[str, Any]]:
    """What is applied, for this cluster's API server and for tables that a test needs.

    ``sections``: others of the configuration.
    """
    text = (MANIFESTS / "towpath.yaml").read_text()
    found = list(yaml.safe_load_all(text.replace("https://192.0.2.1:6443", plane.node_url)))
    (settings,) = (each for each in found if each["kind"] == "ConfigMap")
    configuration = yaml.safe_load(settings["data"]["towpath.yaml"])
    settings["data"]["towpath.yaml"] = yaml.safe_dump(configuration | {"limits": LIMITS} | sections)
    return found


def pod_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The DaemonSet's pod among them."""
    (daemons,) = (each for each in found if each["kind"] == "DaemonSet")
    spec: dict[str, Any] = daemons["spec"]["template"]["spec"]
    return spec


def agents(plane: ControlPlane) -> list[dict[str, Any]]:
    """The agents' pods."""
    label = "app.kubernetes.io/name=towpath"
    found: list[dict[str, Any]] = plane.get("pods", "-n", "kube-system", "-l", label)["items"]
    return found


def agent_of(plane: ControlPlane, node: str) -> Mapping[str, Any]:
    """The agent's pod on a node; empty: none runs there."""
    for each in agents(plane):
        if each["spec"].get("nodeName") == node and each["status"]["phase"] == "Running":
            return each
    return {}
