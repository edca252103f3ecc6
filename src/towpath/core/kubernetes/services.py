# SPDX-License-Identifier: Apache-2.0
"""What of a Service is kept: there are thousands, and annotations are longer than all the rest."""

from __future__ import annotations

from sys import intern

import msgspec

from towpath.model.sources.kubernetes import objects

PROXY_NAME = "service.kubernetes.io/service-proxy-name"
"""The label by which a Service is somebody else's than kube-proxy's."""


def kept(found: objects.Service) -> objects.Service:
    """Return a Service with what it is served by, and texts that many share once."""
    meta, spec, status = found.metadata, found.spec, found.status
    proxy = meta.label(PROXY_NAME)
    given = status.load_balancer if status else None
    one_address = spec.cluster_ip is not None and spec.cluster_ips == [spec.cluster_ip]
    return objects.Service(
        objects.Meta(
            meta.name,
            intern(meta.namespace),
            meta.uid,
            creation_timestamp=_once(meta.creation_timestamp),
            labels=None if proxy is None else {PROXY_NAME: proxy},
        ),
        msgspec.structs.replace(
            spec,
            type=intern(spec.type),
            ports=None if spec.ports is None else [_port(each) for each in spec.ports],
            selector=None,
            cluster_ips=None if one_address else spec.cluster_ips,
            ip_families=None,
            ip_family_policy=None,
            load_balancer_ip=None,
            load_balancer_class=None,
            session_affinity=_once(spec.session_affinity),
            external_traffic_policy=_once(spec.external_traffic_policy),
            internal_traffic_policy=_once(spec.internal_traffic_policy),
        ),
        objects.ServiceStatus(given) if given is not None and given.ingress else None,
    )


def _port(found: objects.ServicePort) -> objects.ServicePort:
    target = found.target_port
    return objects.ServicePort(
        found.port,
        intern(found.name),
        intern(found.protocol),
        found.node_port,
        intern(target) if isinstance(target, str) else target,
    )


def _once(text: str | None) -> str | None:
    return None if text is None else intern(text)
