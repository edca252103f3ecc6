# SPDX-License-Identifier: Apache-2.0
"""What the newest compiler makes does with packets what the oracles say, on this kernel.

Few packets, of every kind: what is tried out thoroughly is what this machine's compiler makes. The
verifier says whether a program can be loaded. Whether the compiler has understood it as it was
meant, packets do.

These tests are for the guests of `make kernels`, which has the compiler make it first. Elsewhere
none is collected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from tests.guests import IN_GUEST
from tests.prog.lb import told
from tests.prog.lb.network import Network, network
from tests.unit.kernel import harness_clang
from tools.compilers.supported import NEWEST

from towpath.kernel.bpf import object as packaged

if TYPE_CHECKING:
    from collections.abc import Iterator

collect_ignore_glob = [] if IN_GUEST else ["test_*.py"]


@pytest.fixture(scope="module", autouse=True)
def newest() -> Iterator[None]:
    """What is loaded in a module is what the newest compiler has made."""
    objects, kept = NEWEST.made / "objects", NEWEST.made / "kept"
    made = {*objects.iterdir(), *kept.iterdir()}
    told._compiled.cache_clear()
    with patch.object(packaged, "OBJECTS", objects), patch.object(harness_clang, "KEPT", kept):
        yield
    told._compiled.cache_clear()
    assert {*objects.iterdir(), *kept.iterdir()} == made, "another compiler has made something"


@pytest.fixture(scope="module")
def net(newest: None) -> Iterator[Network]:
    """A network namespace of the module's own."""
    del newest
    with network() as made:
        yield made
