# SPDX-License-Identifier: Apache-2.0
"""A large cluster of objects, one process that connects, and who serves Services: one at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tests.kubernetes.harness_source import NODE, endpoints, service, slice_of
from tests.lab.harness_agent import PINS
from tests.prog.socket.harness import BACKENDS
from tools.kubernetes import binaries
from tools.kubernetes.programs import Program

from towpath.datapath.host import detach_pinned
from towpath.datapath.socket.balancer import detach

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kubernetes.harness_source import Follower
    from tests.prog.socket.harness import Child
    from tools.kubernetes.control_plane import ControlPlane

WORKERS = 8
MEBIBYTE = 1 << 20
PROBE, OTHER = "probe", "other"
CHANGES_A_SECOND = 10
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
_PATHS = {"Service": "/api/v1/namespaces/default/services", "EndpointSlice": SLICES}
_CREATED, _OK = 201, 200

INSIDE = """
import time

def reached(vip, seconds=30):
    "Who answers there. Reset, so that no port stays taken: a search among ports that are takes ms."
    with socket(AF_INET, SOCK_STREAM) as made:
        made.settimeout(seconds)
        made.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        made.connect((vip, 80))
        return made.recv(100).decode()

def until(vip, to, seconds=30):
    "When a connection first reached a backend. Where nobody serves yet: SYNs come at 0, 1 and 3 s."
    while True:
        try:
            if reached(vip, seconds) == to:
                return time.monotonic()
        except OSError:
            pass
        time.sleep(0.0005)

def connects(host, port, number):
    "Microseconds of so many connect()."
    found = []
    for _ in range(number):
        with socket(AF_INET, SOCK_STREAM) as made:
            begun = time.perf_counter_ns()
            made.connect((host, port))
            found.append((time.perf_counter_ns() - begun) / 1000)
            made.recv(100)
    return found
"""


class Proxy(Protocol):
    """Who serves Services."""

    name: str

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End, and leave nothing behind."""

    def all_in_force(self) -> float:
        """When all was that there is, if that is later than the first connection."""

    @property
    def pid(self) -> int:
        """Its process."""

    def kernel(self) -> float | None:
        """MiB that the kernel holds for it; None: the kernel doesn't tell."""


class KubeProxy:
    """kube-proxy, in nftables mode, in this network namespace."""

    name = "kube-proxy"

    def __init__(self, plane: ControlPlane, directory: Path) -> None:
        self._program = Program(
            self.name,
            [
                binaries.program("kube-proxy"),
                f"--kubeconfig={plane.kubeconfig}",
                f"--hostname-override={NODE}",
                "--proxy-mode=nftables",
                "--conntrack-max-per-core=0",
            ],
            directory / "kube-proxy.log",
        )

    def start(self) -> None:
        """Begin."""
        self._program.start()

    def stop(self) -> None:
        """End; its tables go."""
        self._program.stop(signal.SIGTERM)
        subprocess.run(["nft", "flush", "ruleset"], check=True)

    def all_in_force(self) -> float:
        """It writes all that it knows at once."""
        return 0.0

    @property
    def pid(self) -> int:
        """Its process."""
        return self._program.pid

    def kernel(self) -> float | None:
        """Not told by table."""
        return None


class Towpath:
    """An agent with services at sockets, with room for twice what there is."""

    name = "towpath"

    def __init__(self, follower: Follower, services: int, endpoints_each: int) -> None:
        self._follower = follower
        follower.agent.config["limits"] = {
            "services": 2 * services + 64,
            "backends": 2 * services * endpoints_each + 1024,
            "flows": 1024,
            "clients": 1024,
            "sources": 500,
            "table_slots": 2 * services * 1021 + 65536,
        }

    def start(self) -> None:
        """Begin, with nothing that an earlier one has left."""
        self._follower.agent.write()
        self._follower.agent.start()

    def all_in_force(self) -> float:
        """It says so."""
        while (found := self._follower.status()).accepted is None or not found.kinds:
            time.sleep(0.01)
        return time.monotonic()

    def stop(self) -> None:
        """End; what is pinned and stored goes."""
        self._follower.agent.end()
        detach(PINS / "socket")
        detach_pinned(PINS)
        shutil.rmtree(self._follower.agent.directory / "state", ignore_errors=True)

    @property
    def pid(self) -> int:
        """Its process."""
        process = self._follower.agent.process
        assert process is not None  # noqa: S101 - it was started
        return process.pid

    def kernel(self) -> float | None:
        """Of all its maps, each once."""
        found: dict[str, int] = {}
        for each in Path(f"/proc/{self.pid}/fdinfo").iterdir():
            with suppress(OSError):
                fields = dict(
                    line.split(":", 1) for line in each.read_text().splitlines() if ":" in line
                )
                if "map_id" in fields:
                    found[fields["map_id"].strip()] = int(fields["memlock"])
        return sum(found.values()) / MEBIBYTE


class World:
    """Objects of a control plane."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self.services = 0
        for name in (PROBE, OTHER):
            self._make(name, [BACKENDS[0]])
        self.vip: str = self._ask("GET", f"{_PATHS['Service']}/{PROBE}")["spec"]["clusterIP"]

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = self._plane.request(method, path, body)
        if status not in {_OK, _CREATED}:
            raise SystemExit(f"{path}: {status}: {answer}")
        return answer

    def _make(self, name: str, addresses: list[str]) -> None:
        for each in (service(name), slice_of(name, endpoints(*addresses))):
            self._ask("POST", _PATHS[each["kind"]], each)

    def fill(self, services: int, endpoints_each: int) -> None:
        """Have so many Services, besides those that change."""

        def one(number: int) -> None:
            addresses = [
                f"10.{128 + each % 100}.{number >> 8}.{number & 255}"
                for each in range(endpoints_each)
            ]
            self._make(f"s{number}", addresses)

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(one, range(self.services, services)))
        self.services = max(self.services, services)

    def put(self, name: str, addresses: list[str]) -> None:
        """Have a slice say so."""
        self._ask("PUT", f"{SLICES}/{name}-a", slice_of(name, endpoints(*addresses)))

    def change(self, child: Child, number: int) -> float:
        """Move the probe; seconds from the PUT to the first connection that obeys."""
        to = BACKENDS[(number + 1) % 2]
        begin(child, f"until({self.vip!r}, {to!r})")
        begun = time.monotonic()
        self.put(PROBE, [to])
        return float(answer(child)) - begun

    @contextmanager
    def restless(self) -> Iterator[None]:
        """While another slice changes ten times a second."""
        ended = threading.Event()

        def run() -> None:
            due, number = time.monotonic(), 0
            while not ended.wait(max(0.0, due - time.monotonic())):
                due += 1 / CHANGES_A_SECOND
                number += 1
                self.put(OTHER, [BACKENDS[2 + number % 2]])

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def begin(child: Child, code: str) -> None:
    """Have a child begin with something."""
    assert child.process.stdin is not None  # noqa: S101 - a pipe
    print(json.dumps(code), file=child.process.stdin, flush=True)


def answer(child: Child) -> Any:
    """What came of it."""
    assert child.process.stdout is not None  # noqa: S101 - a pipe
    return json.loads(child.process.stdout.readline())


def cpu(pid: int) -> float:
    """Seconds of CPU time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Of a process, in RAM, in MiB, without maps of BPF: what it sees of them is the kernel's."""
    found, of_kernel = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            of_kernel = rest[-1] == "anon_inode:bpf-map"
        elif first == "Rss:" and not of_kernel:
            found += int(rest[0])
    return found * 1024 / MEBIBYTE
