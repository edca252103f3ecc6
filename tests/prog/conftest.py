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


@pytest.fixture(scope="module")
def rig(net: Network) -> Iterator[Rig]:
    """The load balancer on two devices of it, with the usual source addresses."""
    with rigged(net) as made:
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
