# SPDX-License-Identifier: Apache-2.0
"""A cgroup of a test's own, and nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.cgroup.harness_nodes import NODES, Node, node
from tests.prog.kernel.harness_cgroups import new_cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Make a cgroup for the test."""
    with new_cgroup() as path:
        yield path


@pytest.fixture
def nodes(cgroup: Path) -> Iterator[list[Node]]:
    """Two nodes on this machine, as KIND makes them."""
    with node(cgroup / NODES[0]) as one, node(cgroup / NODES[1]) as other:
        yield [one, other]
