# SPDX-License-Identifier: Apache-2.0
"""Which backends are on this node, as the program is told."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.unit.datapath.harness_memory import INDEX_BITS, LOCAL, SNAT
from tests.unit.datapath.harness_program import BTF

from towpath.core.lb.options import Options
from towpath.datapath.lb.local import LocalBackends
from towpath.datapath.lb.services import Installed
from towpath.model import Backend, ServiceKey
from towpath.model.service import Protocol

if TYPE_CHECKING:
    from towpath.model.service import Forwarding

HERE, ELSEWHERE = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
KEY = ServiceKey(IPv4Address("192.0.2.10"), 80, Protocol.TCP)


class Node:
    """Tables, and who is on the node."""

    def __init__(self) -> None:
        self.here = {("snat", HERE)}
        self.rows = np.zeros(8, np.uint64)
        self.services = np.zeros(4, BTF.dtype("service"))
        self.services["flags"] = SNAT
        self.local = LocalBackends(self.rows, self.services, LOCAL, INDEX_BITS, self._is_here)
        self.service = Installed(KEY, 2, Options(forwarding="snat"))
        backends = [Backend(HERE), Backend(ELSEWHERE)]
        self.service.noted.add(backends, [1 << INDEX_BITS | 3, 1 << INDEX_BITS | 4])

    def _is_here(self, forwarding: Forwarding, backend: Backend) -> bool:
        return backend.local or (forwarding, backend.address) in self.here


@pytest.fixture
def node() -> Node:
    """A service with a backend here and one elsewhere."""
    made = Node()
    made.local.sync((made.service,))
    return made


def test_who_is_here_is_entered_by_its_handle(node: Node) -> None:
    """And the service has the flag beside what it had."""
    handle = node.service.handles[HERE]
    assert node.rows.tolist() == [0, 0, 0, handle, 0, 0, 0, 0]
    assert node.services["flags"].tolist() == [SNAT, SNAT, SNAT | LOCAL, SNAT]
    assert node.local.has(handle)
    assert not node.local.has(node.service.handles[ELSEWHERE])
    assert node.local.handles() == {handle}


def test_another_backend_of_the_same_index_is_not(node: Node) -> None:
    """It has another generation, whatever the element still holds."""
    assert not node.local.has(2 << INDEX_BITS | 3)
    node.service.noted.set(Backend(HERE), 2 << INDEX_BITS | 3)
    node.here.clear()
    node.local.note(node.service, HERE)
    assert not node.local.has(2 << INDEX_BITS | 3)


def test_a_new_handle_is_entered(node: Node) -> None:
    """Of a backend that was down: one store."""
    node.service.noted.set(Backend(HERE), 2 << INDEX_BITS | 3)
    node.local.note(node.service, HERE)
    assert node.local.has(2 << INDEX_BITS | 3)


def test_who_moves_away_is_taken_out(node: Node) -> None:
    """The flag goes with the last of them."""
    node.here.add(("snat", ELSEWHERE))
    node.local.sync((node.service,))
    assert node.local.handles() == set(node.service.handles.values())
    node.here.clear()
    node.local.sync((node.service,))
    assert not node.local.handles()
    assert node.services["flags"][2] == SNAT


def test_other_forwarding_is_another_question(node: Node) -> None:
    """A pod is here to what translates, and a host like others to what doesn't."""
    node.service.options = Options(forwarding="dsr")
    node.local.sync((node.service,))
    assert not node.local.handles()


def test_what_was_said_is_known_again(node: Node) -> None:
    """Who is entered and isn't here by addresses and routes has been said to be."""
    told = Backend(ELSEWHERE, local=True)
    handle = node.service.noted.handle(ELSEWHERE)
    node.service.noted.set(told, handle)
    node.local.note(node.service, ELSEWHERE)
    for address, each in node.service.handles.items():
        found = node.local.as_told(node.service, Backend(address), each)
        assert found.local == (address == ELSEWHERE)
    node.service.noted.set(Backend(ELSEWHERE), handle)
    node.local.note(node.service, ELSEWHERE)
    assert not node.local.has(node.service.handles[ELSEWHERE])
