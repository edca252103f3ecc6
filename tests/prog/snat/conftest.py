# SPDX-License-Identifier: Apache-2.0
"""What the tests of source NAT share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.prog.lb.network import NEAR
from tests.prog.snat.harness import NARROW, NatRig, nat_rigged, services, snat_service
from tests.prog.snat.harness_fragments import forget

from towpath.model import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.prog.lb.network import Network


@pytest.fixture(scope="module")
def nat(net: Network, still: bool) -> Iterator[NatRig]:  # noqa: FBT001 - a fixture
    """A load balancer that translates to one address of each family."""
    with nat_rigged(net, still=still) as made:
        yield made


@pytest.fixture(scope="module")
def narrow(net: Network, still: bool) -> Iterator[NatRig]:  # noqa: FBT001 - a fixture
    """One address of each family, and sixteen ports."""
    with nat_rigged(net, NARROW, still=still) as made:
        yield made


@pytest.fixture
def narrowed(narrow: NatRig) -> NatRig:
    """The same, with a backend for each kind of service, and no translations."""
    narrow.serve()
    narrow.empty()
    narrow.serve(*(snat_service(v, NEAR[v][0], protocol=p) for v in (4, 6) for p in Protocol))
    return narrow


@pytest.fixture
def nothing_known(nat: NatRig) -> None:
    """The test starts with a service of each kind, no translations, and no fragments."""
    nat.serve()
    nat.empty()
    forget(nat)
    nat.serve(*services())
