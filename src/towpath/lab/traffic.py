# SPDX-License-Identifier: Apache-2.0
"""Real clients: curl in the client's namespace, one connection for each request."""

from __future__ import annotations

import hashlib
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from towpath.lab import namespaces
from towpath.lab.errors import LabError
from towpath.lab.topology import CLIENT, Topology
from towpath.lab.waiting import wait_until
from towpath.lab.web import LARGE_SIZE, large_checksum

if TYPE_CHECKING:
    from pathlib import Path

Address = IPv4Address | IPv6Address

# A request that takes longer has not been answered.
TIMEOUT = 5
# Bytes after which a download counts as under way.
UNDER_WAY = 256 << 10


@dataclass(slots=True)
class Answers:
    """What came back: requests sent, and answers by the backend that named itself."""

    requests: int = 0
    by_backend: Counter[str] = field(default_factory=Counter)

    @property
    def answers(self) -> int:
        """Requests that were answered."""
        return self.by_backend.total()

    def add(self, other: Answers) -> None:
        """Count another run's."""
        self.requests += other.requests
        self.by_backend.update(other.by_backend)


def url(vip: Address, path: str = "/") -> str:
    """The address of a page on a VIP."""
    host = f"[{vip}]" if vip.version == 6 else str(vip)  # noqa: PLR2004
    return f"http://{host}{path}"


def request(topology: Topology, vip: Address, count: int) -> Answers:
    """Send count requests, spread over the client's addresses, each from its own port.

    One curl for each address, all at the same time.
    """
    link = topology.client
    sources = [one.ip for one in (link.node4 if vip.version == 4 else link.node6)]  # noqa: PLR2004
    shares = [len(range(i, count, len(sources))) for i in range(len(sources))]
    running = [
        _start_curl(vip, str(source), share)
        for source, share in zip(sources, shares, strict=True)
        if share
    ]
    answers = Answers()
    for curl, share in running:
        answers.add(_collect(curl, share))
    return answers


def _start_curl(vip: Address, source: str, count: int) -> tuple[subprocess.Popen[str], int]:
    # A closed connection makes the next request open another, from another port.
    command = [
        "curl", "--silent", "--noproxy", "*", "--header", "Connection: close",
        "--interface", source, "--max-time", str(TIMEOUT),
        "--write-out", " %{http_code}\\n", f"{url(vip)}?[1-{count}]",
    ]  # fmt: skip
    return namespaces.spawn(CLIENT, command, stdout=subprocess.PIPE), count


def _collect(curl: subprocess.Popen[str], count: int) -> Answers:
    """Each line is the answer's body and its status: ``be1 200``; ``000`` without one."""
    output, _ = curl.communicate()
    answers = Answers(requests=count)
    for line in output.splitlines():
        body, _, status = line.rpartition(" ")
        if status == "200":
            answers.by_backend[body] += 1
    return answers


class Download:
    """A long download from a VIP that goes on while other things happen.

    Attributes:
        backend: Who serves it, once it is under way.
        size: Bytes received, once it is finished.
    """

    def __init__(self, vip: Address, directory: Path) -> None:
        self.vip = vip
        name = f"download-v{vip.version}"
        self._body = directory / name
        self._headers = directory / f"{name}.headers"
        self._curl = namespaces.spawn(
            CLIENT,
            [
                "curl", "--silent", "--globoff", "--noproxy", "*", "--no-buffer",
                "--dump-header", str(self._headers), "--output", str(self._body),
                url(vip, "/large"),
            ],
        )  # fmt: skip
        self.backend = ""
        self.size = 0

    def wait_until_under_way(self) -> None:
        """Return once a good part has arrived and the backend is known."""
        wait_until(
            lambda: self.received() > UNDER_WAY or not self.running,
            seconds=10,
            what=f"the first bytes of a download from {self.vip}",
        )
        for line in self._headers.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.lower() == "x-backend":
                self.backend = value.strip()
        if not self.backend:
            raise LabError(f"the download from {self.vip} did not start: no backend named itself")

    @property
    def running(self) -> bool:
        """Whether it is still going on."""
        return self._curl.poll() is None

    def received(self) -> int:
        """Bytes so far."""
        return self._body.stat().st_size if self._body.exists() else 0

    def finish(self) -> bool:
        """Wait for the end; whether every byte is as that backend has it."""
        failed = self._curl.wait()
        self.size = self.received()
        return (
            not failed
            and self.size == LARGE_SIZE
            and hashlib.sha256(self._body.read_bytes()).hexdigest() == large_checksum(self.backend)
        )
