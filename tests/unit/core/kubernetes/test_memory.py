# SPDX-License-Identifier: Apache-2.0
"""What a large cluster takes: there are more endpoints than of anything else."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

from tests.unit.core.kubernetes.harness_cluster import read

from towpath.core.kubernetes.addresses import read_unicast
from towpath.core.kubernetes.cluster import Cluster, Settings
from towpath.model.sources.kubernetes import objects

SERVICES, EACH, NODES = 60, 10, 50


def service(number: int) -> dict[str, Any]:
    """As the API server has it."""
    address = f"10.96.{number >> 8}.{number & 255}"
    port = {"name": "web", "protocol": "TCP", "port": 80, "targetPort": 8080}
    return {
        "metadata": {
            "name": f"s{number}",
            "namespace": "default",
            "uid": f"0a000000-1111-4222-8333-{number:012}",
            "resourceVersion": str(number),
            "annotations": {"note": "not kept" * 20},
        },
        "spec": {
            "ports": [port],
            "selector": {"app": f"s{number}"},
            "clusterIP": address,
            "clusterIPs": [address],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    }


def slice_of(number: int) -> dict[str, Any]:
    """Of pods on different nodes."""
    return {
        "metadata": {
            "name": f"s{number}-a",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": f"s{number}"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [f"10.{128 + each}.{number >> 8}.{number & 255}"],
                "conditions": {"ready": True},
                "nodeName": f"node-{(number + each) % NODES}",
                "hints": {"forZones": [{"name": f"z{each % 3}"}]},
            }
            for each in range(EACH)
        ],
    }


def put(cluster: Cluster, first: int) -> None:
    """Tell of some more, each of which is gone once it was read."""
    for number in range(first, first + SERVICES):
        cluster.put(read(objects.Service, service(number)))
        cluster.put(read(objects.EndpointSlice, slice_of(number)))
    cluster.take(0.0)
    read_unicast.cache_clear()


def test_an_endpoint_takes_few_bytes() -> None:
    """80 for its address, 80 for its backend, and its part of what a Service takes."""
    cluster = Cluster(Settings("n1"))
    put(cluster, 0)
    tracemalloc.start()
    try:
        put(cluster, SERVICES)
        gc.collect()
        found, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found / (SERVICES * EACH) < 450
