# SPDX-License-Identifier: Apache-2.0
"""Which cluster, and what of it is believed and allowed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 -- read by pydantic and by `build`
from typing import Annotated, Any, ClassVar

from towpath.model.kinds import AbsolutePath, Flag, Integer, OrNone, Prefix, Prefixes
from towpath.model.kinds.kubernetes import ObjectName, ServerUrl
from towpath.model.service import PYDANTIC


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
    events: Annotated[bool, Flag()] = True
    """Whether Events are written for objects that can't be served as they are."""
    health_checks: Annotated[bool, Flag()] = True
    """Whether ``healthCheckNodePort`` is answered."""
