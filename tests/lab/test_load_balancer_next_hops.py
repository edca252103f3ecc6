# SPDX-License-Identifier: Apache-2.0
"""A script's own load balancer keeps its next hops resolved, and takes that back at its end."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_balancer import DEVICE, PINS, SECOND, SMALL, WEB, add_second, device, ip

from towpath import LoadBalancer
from towpath.datapath.neigh.keeper import PROTOCOL
from towpath.kernel.net.neighbours import neighbours
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BACKENDS = ["192.0.2.21", "192.0.2.22"]
SERVICE = WEB | {"backends": BACKENDS}


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with device():
        yield


def ours() -> list[str]:
    """The addresses of entries that Towpath has made."""
    found = (each for each in neighbours() if each.protocol == PROTOCOL)
    return sorted(str(each.key.address) for each in found)


def wait(until: Callable[[], bool]) -> None:
    """Wait for something to become so."""
    wait_until(until, seconds=60, what="next hops to be so")


def test_next_hops_are_kept_until_it_is_closed() -> None:
    """And say what is wrong with them."""
    with LoadBalancer(DEVICE, limits=SMALL) as balancer:
        balancer.add_service("web", **SERVICE)
        balancer.add_service("lost", **WEB | {"port": 81, "backends": ["198.51.100.77"]})
        wait(lambda: ours() == BACKENDS)
        wait(lambda: len(balancer.unreached()) == 3)
        (lost,) = balancer.unreached("lost")
        assert (lost.service.name, lost.reason) == ("lost", "no_route")
        (status,) = balancer.backend_status("lost")
        assert status.trouble == "no route"
        assert [str(each.address) for each in balancer.next_hops().next_hops] == BACKENDS
        balancer.remove_backend("web", BACKENDS[0], force=True)
        wait(lambda: ours() == BACKENDS[1:])
    assert ours() == []


def test_two_of_a_machine_do_not_meet() -> None:
    """Each keeps its own, and takes only these back."""
    add_second()
    ip(f"address add 198.51.100.1/24 dev {SECOND}")
    with LoadBalancer(DEVICE, limits=SMALL) as first:
        first.add_service("web", **SERVICE)
        with LoadBalancer(SECOND, limits=SMALL) as second:
            second.add_service("web", **WEB | {"backends": [BACKENDS[1], "198.51.100.9"]})
            wait(lambda: ours() == [*BACKENDS, "198.51.100.9"])
        wait(lambda: ours() == BACKENDS)
    assert ours() == []


def test_with_pins_they_stay() -> None:
    """And are taken back with the pins."""
    with LoadBalancer(DEVICE, limits=SMALL, pins=PINS) as balancer:
        balancer.add_service("web", **SERVICE)
        wait(lambda: ours() == BACKENDS)
    assert ours() == BACKENDS
    LoadBalancer(DEVICE, limits=SMALL, pins=PINS).detach()
    assert ours() == []


SCRIPT = f"""
import time
from towpath import LoadBalancer
lb = LoadBalancer({DEVICE!r})
lb.add_service("web", vip="203.0.113.10", port=80, backends={BACKENDS!r})
while {{each.owner for each in lb.next_hops().next_hops}} != {{"towpath"}}:
    time.sleep(0.02)
print(len(lb.next_hops().next_hops))
"""


def test_a_script_that_ends_without_closing_leaves_none() -> None:
    """As of everything else."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "2\n"
    assert ours() == []
