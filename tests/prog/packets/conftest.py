# SPDX-License-Identifier: Apache-2.0
"""Programs for each test: no flow of one is another's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.packets.harness import Rig, devices

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """The devices that the module's tests run at."""
    with devices():
        yield


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """The programs, freshly loaded, and no service."""
    request.getfixturevalue("network")
    with Rig() as made:
        yield made
