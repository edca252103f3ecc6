# SPDX-License-Identifier: Apache-2.0
"""What the tests of source NAT share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.snat.harness import NatRig, nat_rigged, services
from tests.prog.snat.harness_fragments import forget

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network


@pytest.fixture(scope="module")
def nat(net: Network) -> Iterator[NatRig]:
    """A load balancer that translates to one address of each family."""
    with nat_rigged(net) as made:
        yield made


@pytest.fixture
def nothing_known(nat: NatRig) -> None:
    """The test starts with a service of each kind, no translations, and no fragments."""
    nat.serve()
    nat.empty()
    forget(nat)
    nat.serve(*services())
