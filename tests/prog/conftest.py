# SPDX-License-Identifier: Apache-2.0
"""What the tests of programs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.harness import Rig, rigged
from tests.prog.lb.network import Network, network

from towpath.kernel.bpf import bpffs, links

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    """A network namespace of the module's own, with every kind of way to a backend."""
    with network() as made:
        yield made


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a module that says BOTH_WAYS a second time, where time stands still.

    So next hops stay known, and the packets that can go the fast way do. By the real clock almost
    all go the general way: a jiffy ends between any two of a test's packets.
    """
    if getattr(metafunc.module, "BOTH_WAYS", False) and "still" in metafunc.fixturenames:
        metafunc.parametrize("still", [False, True], ids=["", "still"], scope="module")


@pytest.fixture(scope="module")
def still() -> bool:
    """Whether load balancers are in a jiffy that doesn't end."""
    return False


@pytest.fixture(scope="module")
def rig(net: Network, still: bool) -> Iterator[Rig]:  # noqa: FBT001 - a fixture
    """The load balancer on two devices of it, with the usual source addresses."""
    with rigged(net, still=still) as made:
        yield made


@pytest.fixture
def pins() -> Iterator[Path]:
    """Where a load balancer can outlive its object; what is there then goes with the test."""
    directory = bpffs.ROOT / "towpath-test"
    yield directory
    # The kernel ends an attachment some time after its last pin is gone: the next test may meet it.
    for link in (directory / "links").glob("*"):
        links.from_pin(link).detach()
    bpffs.remove_pins(directory)
