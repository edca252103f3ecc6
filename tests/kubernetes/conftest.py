# SPDX-License-Identifier: Apache-2.0
"""Tests with a real Kubernetes, which `make kubernetes` has: elsewhere none is collected.

A control plane is shared by the tests of a module. What is in it before a test is in it after it:
each test works in a Kubernetes namespace of its own, or puts back what it changes.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from tests.kubernetes import harness_conformance as conformance
from tests.kubernetes.harness_proxies import PROXIES, proxies
from tests.kubernetes.harness_services import Services, make_pods
from tools.kubernetes import cluster as clusters
from tools.kubernetes import control_plane as control

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tools.kubernetes.cluster import Cluster
    from tools.kubernetes.control_plane import ControlPlane

collect_ignore_glob = [] if os.environ.get("TOWPATH_KUBERNETES") else ["test_*.py"]


# In CI, whose time is all but used up, no test begins when so much time has passed.
_SECONDS = float(os.environ.get("TOWPATH_KUBERNETES_SECONDS") or "inf")
_BEGAN = time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin nothing, fixtures included, that would take more time than there is."""
    if time.monotonic() - _BEGAN > _SECONDS:
        pytest.skip(f"not begun: {_SECONDS:.0f} s are over")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what came of rules that are tried with several proxies."""
    report = yield
    del call
    callspec = getattr(item, "callspec", None)
    if isinstance(item, pytest.Function) and callspec and "services" in callspec.params:
        conformance.note(item, report)
    return report


def pytest_sessionfinish() -> None:
    """Write the table, if that is asked for and every rule was tried."""
    if os.environ.get("TOWPATH_KUBERNETES_WRITE"):
        conformance.write()


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    """A control plane without nodes: Services, Pods and Nodes are objects, and nothing else."""
    with control.control_plane() as made:
        yield made


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A control plane with two nodes that run pods."""
    with clusters.cluster() as made:
        yield made


@pytest.fixture(scope="module", params=PROXIES)
def services(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Services]:
    """The cluster, served by one proxy after the other: for rules of the table of conformance."""
    if not cluster.pod("a"):
        make_pods(cluster)
    with proxies(cluster, request.param):
        yield Services(cluster, request.param)
