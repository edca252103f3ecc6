# SPDX-License-Identifier: Apache-2.0
"""New connections through source NAT while its table is moved to others again and again."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from tests.guests import examples
from tests.lab.harness_snat import CLOSED, VIPS, answering_late, snat_lab
from tests.lab.test_snat_agent import Agents

from towpath.kernel.bpf.maps import Map
from towpath.kernel.bpf.pinned_btf import pinned_types
from towpath.kernel.net.netns import in_netns
from towpath.lab.topology import CLIENT
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.lab import Lab

SIZES = (1 << 16, 1 << 15)
MOVES = examples(8, 2)
BETWEEN = 200  # connections, at least
CLIENTS = 32
PATIENCE = 20.0  # seconds; a lost segment costs one, or three


class Clients:
    """Threads that connect, ask, wait for the answer and go, again and again.

    While they wait they send nothing: an answer that is lost for good is waited for in vain.
    """

    def __init__(self) -> None:
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._go_on, args=(n,)) for n in range(CLIENTS)]
        self._counts = [0] * CLIENTS
        self.failed: list[str] = []

    @property
    def answered(self) -> int:
        """How many connections were answered."""
        return sum(self._counts)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Connect in the block."""
        for each in self._threads:
            each.start()
        try:
            yield
        finally:
            self._done.set()
            for each in self._threads:
                each.join()

    def _go_on(self, number: int) -> None:
        version = (4, 6)[number % 2]
        while not self._done.is_set():
            try:
                self._connect(version)
            except OSError as error:
                self.failed.append(repr(error))
            else:
                self._counts[number] += 1

    @staticmethod
    def _connect(version: int) -> None:
        family = {4: socket.AF_INET, 6: socket.AF_INET6}[version]
        with in_netns(CLIENT):
            made = socket.socket(family, socket.SOCK_STREAM)
        with made:
            made.settimeout(PATIENCE)
            made.connect((str(VIPS[version]), CLOSED))
            made.sendall(b"towpath\n")
            with made.makefile("rb") as file:
                if file.readline() != b"towpath\n":
                    raise ConnectionError("ended before it was answered")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Shared by the tests."""
    with snat_lab() as lab, ExitStack() as undo:
        for link in lab.topology.backend_links:
            undo.enter_context(answering_late(link.node, link.port))
        yield lab


def halves(pins: Path) -> int:
    """Entries of the table that the head of their set doesn't know of."""
    types = pinned_types(pins / "types")
    with (
        Map.from_pin(pins / "nat_flows", types) as flows,
        Map.from_pin(pins / "nat_heads", types) as heads,
        flows.mmap(writable=False) as ways,
        heads.mmap(writable=False) as head,
    ):
        known = [
            np.ascontiguousarray(head.array[side]).view(np.uint8).reshape(-1, 8) != 0
            for side in ("forward", "reply")
        ]
        return int(((ways.array["way"]["ref"] != 0) & ~(known[0] & known[1])).sum())


def limit(agents: Agents, flows: int) -> None:
    """Have the next agent use a table of another size."""
    config = yaml.safe_load(agents.file.read_text())
    config["limits"]["nat_flows"] = flows
    agents.file.write_text(yaml.safe_dump(config))


def test_no_connection_hangs(lab: Lab, tmp_path: Path) -> None:
    """Whatever is copied while they begin and end; no entry is half there afterwards."""
    agents = Agents(lab, tmp_path)
    limit(agents, SIZES[0])
    agents.start()
    clients = Clients()
    with clients.running():
        for move in range(MOVES):
            before = clients.answered
            wait_until(
                lambda: clients.answered > before + BETWEEN,  # noqa: B023
                seconds=120,
                what="connections",
            )
            agents.kill()
            limit(agents, SIZES[(move + 1) % len(SIZES)])
            agents.start()
    agents.kill()
    left = halves(lab.bpffs / "snat" / "maps")
    agents.start()
    agents.end()
    assert (sorted(set(clients.failed)), len(clients.failed), left) == ([], 0, 0)
