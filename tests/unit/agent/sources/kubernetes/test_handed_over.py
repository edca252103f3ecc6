# SPDX-License-Identifier: Apache-2.0
"""Services that somebody else has had until now, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.agent.samples import MemoryDatapath
from tests.unit.agent.sources.kubernetes.harness_followed import PORT, outcome, service

if TYPE_CHECKING:
    from pathlib import Path

LABEL = {"service.kubernetes.io/service-proxy-name": "towpath"}
SOCKETS = "default:web:http:cluster:10.96.0.10"
DEVICES = "default:web:http:node:192.0.2.1:all"


class Looked:
    """Notes what is in force when others' connections are looked at."""

    def __init__(self, datapath: MemoryDatapath, *, of_pods: bool) -> None:
        self._datapath = datapath
        self.of_pods = of_pods
        self.log: list[tuple[str, set[str]]] = []

    async def begin(self, *, first: bool) -> None:
        """Services come."""
        self.log.append(("first" if first else "more", set(self._datapath.held)))

    async def settle(self) -> None:
        """They have come."""
        self.log.append(("settled", set(self._datapath.held)))


@pytest.mark.parametrize("of_pods", [False, True], ids=["sockets", "packets"])
def test_sockets_have_it_at_once(tmp_path: Path, *, of_pods: bool) -> None:
    """What devices take waits until it is known which connections are others', as pods' packets."""
    datapath = MemoryDatapath()
    looked = Looked(datapath, of_pods=of_pods)
    spec: dict[str, Any] = {"type": "NodePort", "ports": [PORT | {"nodePort": 30080}]}
    got = outcome(
        tmp_path,
        later=[service("web", {"labels": LABEL}, **spec)],
        datapath=datapath,
        tracking=looked,
        section={"service_proxy_name": "towpath"},
        devices=["eth0"],
        snat={"ipv4": ["192.0.2.9"]},
    )
    assert got.served == {SOCKETS, DEVICES}
    assert looked.log == [
        ("first", set()),
        ("settled", set()),
        ("more", set() if of_pods else {SOCKETS}),
        ("settled", {SOCKETS, DEVICES}),
    ]
