# SPDX-License-Identifier: Apache-2.0
"""Who serves Services on the nodes: kube-proxy, or Towpath."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from tools.kubernetes import binaries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.kubernetes.cluster import Cluster

PROXIES = (pytest.param("kube-proxy", marks=pytest.mark.thorough),)
"""In the order of the table. kube-proxy shows that the tests are fair: not in CI."""


@contextmanager
def proxies(cluster: Cluster, name: str) -> Iterator[None]:
    """One of them on each node; it leaves nothing there."""
    with {"kube-proxy": _kube_proxies}[name](cluster):
        yield


@contextmanager
def _kube_proxies(cluster: Cluster) -> Iterator[None]:
    for node in cluster.nodes:
        node.kube_proxy.start()
    try:
        yield
    finally:
        for node in cluster.nodes:
            node.kube_proxy.stop(signal.SIGTERM)
            node.run(binaries.program("kube-proxy"), "--cleanup")
