# SPDX-License-Identifier: Apache-2.0
"""What the configuration means to the source: whose node, which objects."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from towpath.agent.sources.kubernetes.watch import Resource
from towpath.core.kubernetes.cluster import Settings
from towpath.core.kubernetes.services import PROXY_NAME
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from towpath.model import Config
    from towpath.model.sources.kubernetes import Section

_HEADLESS = "!service.kubernetes.io/headless"


def node_name(section: Section) -> str:
    """Return this node's name in the cluster, by the kubelet's rule if nobody says."""
    return section.node or os.environ.get("NODE_NAME") or socket.gethostname().lower().strip()


def settings_of(section: Section, config: Config) -> Settings:
    """Return what translation needs to know."""
    outside = {each for each in (4, 6) if config.devices and config.snat.addresses(each)}
    return Settings(
        node_name(section),
        section.external_ips or (),
        section.node_port_addresses,
        section.service_proxy_name,
        frozenset(outside),
    )


def resources(section: Section) -> tuple[Resource, ...]:
    """Return the kinds that are followed."""
    name = section.service_proxy_name
    proxy = f"!{PROXY_NAME}" if name is None else f"{PROXY_NAME}={name}"
    return (
        Resource(objects.Service, "/api/v1/services", "services", f"{_HEADLESS},{proxy}"),
        Resource(
            objects.EndpointSlice,
            "/apis/discovery.k8s.io/v1/endpointslices",
            "endpointslices",
            _HEADLESS,
        ),
        Resource(objects.Node, "/api/v1/nodes", "nodes"),
    )
