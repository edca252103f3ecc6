# SPDX-License-Identifier: Apache-2.0
"""The programs freshly loaded for each test, in both variants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.bandwidth.harness import Rig

from towpath.kernel.bpf import probe

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["atomic", "locked"])
def bw(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Charges are atomic, or made under locks."""
    atomic = request.param == "atomic"
    if atomic and not probe.atomics():
        pytest.skip("this kernel has no atomics that return a value")
    made = Rig(atomic=atomic)
    yield made
    made.close()
