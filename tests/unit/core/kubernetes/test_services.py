# SPDX-License-Identifier: Apache-2.0
"""What is kept of a Service serves as all of it does."""

from __future__ import annotations

import msgspec
import pytest

from towpath.core.kubernetes.services import PROXY_NAME, kept
from towpath.core.kubernetes.translate import Here, translate
from towpath.model.kinds import address_of
from towpath.model.sources.kubernetes import objects

HERE = Here("n1", None, (address_of("192.0.2.1"),), (), None, frozenset())
WHOLE = b"""{"metadata": {"name": "web", "namespace": "default", "uid": "1", "resourceVersion": "7",
  "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "long"},
  "labels": {"app": "web", "service.kubernetes.io/service-proxy-name": "other"}},
 "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
  "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "selector": {"app": "web"},
  "ports": [{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353, "nodePort": 30053}],
  "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
  "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
  "healthCheckNodePort": 31000, "loadBalancerClass": "towpath", "loadBalancerIP": "198.51.100.9",
  "loadBalancerSourceRanges": ["198.51.100.0/24"], "allocateLoadBalancerNodePorts": true},
 "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9", "ipMode": "VIP"}]},
            "conditions": [{"type": "Ready", "status": "True", "message": "m"}]}}"""


def decoded(**spec: object) -> objects.Service:
    """One with everything, but for these."""
    found = msgspec.json.decode(WHOLE, type=objects.Service)
    return msgspec.structs.replace(found, spec=msgspec.structs.replace(found.spec, **spec))


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"type": "NodePort"},
        {"type": "ClusterIP", "session_affinity": None},
        {"cluster_ip": None},
        {"cluster_ip": None, "cluster_ips": None},
        {"cluster_ips": ["10.96.0.1", "fd00::1"], "ip_families": ["IPv4", "IPv6"]},
        {"ports": None, "external_ips": ["198.51.100.7"]},
    ],
)
def test_it_is_served_the_same(spec: dict[str, object]) -> None:
    """Whatever is left away."""
    whole = decoded(**spec)
    slim = kept(whole)
    assert kept(slim) == slim
    assert translate(slim, {}, HERE, {}) == translate(whole, {}, HERE, {})
    assert slim.metadata.label(PROXY_NAME) == "other"
    assert slim.metadata.uid == whole.metadata.uid


def test_what_nobody_needs_is_left_away() -> None:
    """And texts that many share are one object."""
    one, other = kept(decoded()), kept(decoded())
    assert one.metadata.annotations is None
    assert one.spec.selector is None
    assert one.status is not None
    assert one.status.conditions is None
    assert one.spec.type is other.spec.type
    assert one.metadata.namespace is other.metadata.namespace
    assert one.spec.ports is not None
    assert other.spec.ports is not None
    assert one.spec.ports[0].name is other.spec.ports[0].name
    assert one.spec.ports[0].target_port is other.spec.ports[0].target_port
