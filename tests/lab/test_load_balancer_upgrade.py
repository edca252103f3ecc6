# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201 - what was measured is printed
"""From one version to another while packets come: none is lost, and none goes elsewhere.

What was measured is printed with ``pytest -rP``.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.harness_balancer import DEVICE, PEER, PINS, SMALL, VIP, device, ip
from tests.lab.harness_stream import passing, streaming
from tests.prog.lb.harness_layout import version

from towpath import LoadBalancer
from towpath.kernel.bpf.bpffs import remove_pins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from towpath.model.fields import BackendFields

BACKENDS = ["192.0.2.11", "192.0.2.12", "192.0.2.13"]
UPGRADES = 4
LARGE = replace(SMALL, flows=1 << 16)
LESS = replace(SMALL, flows=1 << 14)


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with device():
        ip(f"neighbour add 192.0.2.13 lladdr 02:00:00:00:00:13 dev {DEVICE}")
        with passing(PEER):
            yield
    remove_pins(PINS)


def balancer(limits: Any) -> LoadBalancer:
    """The load balancer of these pins, whichever version is at hand."""
    return LoadBalancer(DEVICE, limits=limits, pins=PINS)


def serve(where: LoadBalancer, *weights: int) -> None:
    """The service with these weights of its backends."""
    backends: list[BackendFields] = [
        {"address": address, "weight": weight}
        for address, weight in zip(BACKENDS, weights, strict=True)
    ]
    where.add_service("web", vip=str(VIP), port=80, table_size=251, backends=backends)


def this() -> AbstractContextManager[None]:
    """The version that is packaged."""
    return nullcontext()


@pytest.mark.parametrize(
    ("other", "limits"),
    [(lambda: version("records"), LARGE), (lambda: version("numbers"), LARGE), (this, LESS)],
    ids=["records", "numbers", "limits"],
)
def test_upgrades_under_traffic(other: Any, limits: Any) -> None:
    """There and back, with other weights in between, so that only what is remembered holds."""
    with other(), balancer(limits) as first:
        serve(first, 1, 1, 1)
        with streaming(PEER, str(VIP)) as stream:
            serve(first, 0, 5, 1)
            first.close()
            for turn in range(UPGRADES):
                here = other if turn % 2 else this
                begun = time.perf_counter()
                with here(), balancer(limits if turn % 2 else LARGE) as heir:
                    taken = time.perf_counter() - begun
                    serve(heir, *((1, 0, 9) if turn % 2 else (0, 9, 0)))
                print(f"upgrade {turn}: {taken:.3f} s")
            seen = stream.report()
    print(seen)
    assert seen["moved"] == {}
    assert (seen["lost"], seen["twice"]) == (0, 0)
    assert seen["sent"] > 1000
    with this(), balancer(LARGE) as last:
        counted = last.counters().service(last.services()[0].key)
        assert counted.drops == 0
        # The program and the last copy may have met at a counter.
        assert abs(seen["sent"] - counted.packets) <= UPGRADES
        last.detach()
