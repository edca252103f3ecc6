# SPDX-License-Identifier: Apache-2.0
"""Which cluster, and what of it is believed and allowed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from towpath.model.kinds import AbsolutePath, Flag, Integer, OrNone, PortRange, Prefix, Prefixes
from towpath.model.kinds.kubernetes import ObjectName, ObjectPath, QualifiedName, ServerUrl
from towpath.model.kinds.patterns import DevicePatterns
from towpath.model.masquerade import MASQUERADE_DEVICES
from towpath.model.service import PYDANTIC
from towpath.model.snat import NO_SNAT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.model.decode import Findings, Tree

_NODE_PORTS = PortRange(30000, 32767)
"""Those of an API server that isn't told otherwise."""
LOAD_BALANCER_CLASS = "towpath.alt/load-balancer"


@dataclass(frozen=True, slots=True)
class Section:
    """Services of a cluster. ``kubernetes`` in the configuration."""

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    kubeconfig: Annotated[Path | None, OrNone(AbsolutePath())] = None
    """Where the API server is, and credentials. None: those that a pod is given."""
    context: Annotated[str | None, OrNone(ObjectName())] = None
    """Of the kubeconfig. None: its current one."""
    server: Annotated[str | None, OrNone(ServerUrl())] = None
    """The API server, in place of what the kubeconfig or the pod's environment names. An agent that
    serves the Service ``kubernetes`` itself must not need it to get there."""
    node: Annotated[str | None, OrNone(ObjectName())] = None
    """This node's name in the cluster. None: NODE_NAME in the environment, or the host's name."""
    external_ips: Annotated[tuple[Prefix, ...] | None, Prefixes()] = None
    """Which ``externalIPs`` of Services are served. None: no one's. Whoever may edit a Service
    could have any address's traffic otherwise."""
    node_port_addresses: Annotated[tuple[Prefix, ...] | None, Prefixes()] = None
    """Which of the Node's addresses have node ports. None: its first internal one of each
    family."""
    service_proxy_name: Annotated[str | None, OrNone(ObjectName())] = None
    """Only Services with this label ``service.kubernetes.io/service-proxy-name`` are served. None:
    only those without one."""
    lost_share: Annotated[int, Integer(1, 100)] = 50
    """Per cent. A list that lacks so many of the services or backends in force, or more, isn't
    believed: what it lacks stays until it is accepted. 100: only one that lacks all."""
    grow_to: Annotated[int, Integer(0, 1 << 20)] = 1024
    """MiB. Limits that are too small for the cluster's services grow until the tables take so much
    of the kernel's memory. 0: they don't grow."""
    events: Annotated[bool, Flag()] = True
    """Whether Events are written for objects that can't be served as they are."""
    health_checks: Annotated[bool, Flag()] = True
    """Whether ``healthCheckNodePort`` is answered."""
    pools: Annotated[str | None, OrNone(ObjectPath())] = None
    """The ConfigMap with pools of addresses for Services of type LoadBalancer. None: addresses are
    given by others."""
    load_balancer_class: Annotated[str, QualifiedName()] = LOAD_BALANCER_CLASS
    """Services with this ``loadBalancerClass`` get addresses of ``pools``."""
    default_load_balancer: Annotated[bool, Flag()] = False
    """Whether Services without a ``loadBalancerClass`` get them as well."""
    pod_limits: Annotated[bool, Flag()] = False
    """Whether annotations limit this node's pods, by ``bandwidth``."""
    cni_results: Annotated[Path, AbsolutePath()] = Path("/var/lib/cni/results")
    """Where the container runtime keeps what CNI plugins have given to pods: it has a pod's
    addresses before the pod runs, the API server after."""
    node_neighbours: Annotated[bool, Flag()] = False
    """Whether all Nodes are next hops that are kept resolved."""
    masquerade_devices: Annotated[tuple[str, ...] | None, OrNone(DevicePatterns())] = None
    """Devices by which this node's pods send, such as cni0: they are masqueraded, by
    ``masquerade``, with the prefixes that the Node was given. None: no rule is made of these."""
    non_masquerade_cidrs: Annotated[tuple[Prefix, ...] | None, Prefixes()] = None
    """Destinations that no rule of ``masquerade`` is for, as are then all Nodes' pods. None, and no
    ``masquerade_devices``: rules are what they are configured to be."""

    @property
    def masquerades(self) -> bool:
        """Whether masquerade is told anything."""
        return self.masquerade_devices is not None or self.non_masquerade_cidrs is not None


def check_beside(tree: Tree, sections: Mapping[str, Tree | None], found: Findings) -> None:
    """Note what is asked for and needs a part of the configuration that isn't there."""
    section = sections["kubernetes"] or {}
    needs = (
        ("pod_limits", "bandwidth", "bandwidth" in sections),
        ("node_neighbours", "devices", bool(tree.get("devices"))),
        (MASQUERADE_DEVICES, "masquerade", "masquerade" in sections),
        ("non_masquerade_cidrs", "masquerade", "masquerade" in sections),
    )
    for name, other, there in needs:
        if section.get(name) and not there:
            found.add(("kubernetes", name), f"needs {other}, which isn't configured")
    if section.get("default_load_balancer") and section.get("pools", "") is None:
        found.add(("kubernetes", "default_load_balancer"), "needs kubernetes.pools, which has none")
    _check_ports(tree.get("snat") or {}, found)


def _check_ports(snat: Tree, found: Findings) -> None:
    """Note ports of flows that are node ports at the same address: answers would go there."""
    ports = snat.get("ports", NO_SNAT.ports)
    addresses = (*(snat.get("ipv4") or ()), *(snat.get("ipv6") or ()))
    if ports is None or not any(each.is_unspecified for each in addresses):
        return
    if ports.first <= _NODE_PORTS.last and _NODE_PORTS.first <= ports.last:
        what = (
            f"{ports} has node ports ({_NODE_PORTS}) in it, and snat is for the node's own address;"
            " allowed: others, such as 10000-29999"
        )
        found.add(("snat", "ports"), what)
