# SPDX-License-Identifier: Apache-2.0
"""Threads that take a device's packets."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from towpath.bench.forward_network import forward_network
from towpath.kernel.errors import KernelError
from towpath.kernel.net import napi
from towpath.kernel.net.netns import new_netns

needs_threads = pytest.mark.skipif(
    not Path("/sys/class/net/lo/threaded").exists(),
    reason="this kernel gives no device a thread; 5.12 and newer do",
)


@needs_threads
def test_a_device_gets_a_thread() -> None:
    """One for its only queue, which is gone with the device; where it can be seen at all."""
    can_be_seen = Path("/proc/2/comm").exists() and Path("/proc/2/comm").read_text() == "kthreadd\n"
    with forward_network(1) as network:
        found = network.node_threads()
        assert len(found) == can_be_seen
        for process in found:
            assert napi.cpu_seconds(process) >= 0
            os.sched_setaffinity(process, os.sched_getaffinity(0))
    deadline = time.monotonic() + 120
    while any(Path("/proc", str(process)).exists() for process in found):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@needs_threads
def test_sysfs_stays_that_of_the_namespace_outside() -> None:
    """What the thread mounts to get there nobody else sees."""
    before = Path("/proc/self/mounts").read_text()
    with forward_network(1) as network:
        network.node_threads()
        assert Path("/proc/self/mounts").read_text() == before


def test_a_device_that_does_not_poll_is_told() -> None:
    """The loopback device has no NAPI."""
    with new_netns() as here, pytest.raises(KernelError, match="give lo threads for its packets"):
        napi.in_threads(here, "lo")


def test_no_such_device_is_told() -> None:
    """Named as it was asked for."""
    with new_netns() as here, pytest.raises(KernelError, match="give absent threads"):
        napi.in_threads(here, "absent")
