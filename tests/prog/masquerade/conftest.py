# SPDX-License-Identifier: Apache-2.0
"""A rig for each test: no flow of one is another's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.masquerade.harness import Rig, node

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """The node that the module's tests run in."""
    with node():
        yield


@pytest.fixture
def masq(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """The programs, freshly loaded."""
    request.getfixturevalue("network")
    made = Rig()
    yield made
    made.close()
