# SPDX-License-Identifier: Apache-2.0
"""How long changes take that an agent is asked for, and what they cost it.

Until they are on disk, in the kernel and answered. With one service and with many in turn,
so that the one is the other's baseline. And what it costs an agent to begin over the tables
of many more, and to fill these at first.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from towpath import children
from towpath.api.client import Client
from towpath.api.errors import ClientError
from towpath.bench.errors import BenchError
from towpath.bench.forward import Spread
from towpath.bench.network import DEVICE, bench_network
from towpath.kernel.bpf.bpffs import ROOT, remove_pins
from towpath.kernel.net.napi import cpu_seconds
from towpath.model.service import Backend, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS, CHANGES, SERVICES, BACKENDS = 7, 30, 1000, 10
LARGE, STARTS = 10_000, 3
_FIRST = IPv4Address("198.18.0.0")
_VIP, _PORT = IPv4Address("203.0.113.10"), 1000
_PORTS = 60_000
_SLOTS = 16_384  # of a service's table, by default
_GLANCE, _PATIENCE = 0.01, 120.0  # seconds
_MEBIBYTE = 1 << 20
_DIGITS = 2
_AT_ONCE = 2000  # services in one request
_SPARE = 64  # tables that there is room for besides, as with the limits that an agent has
_SETTLED = 3.0  # seconds after which an agent that has begun does nothing more


@dataclass(frozen=True, slots=True)
class LargeReport:
    """Seconds of CPU time: of an agent with nothing, with many services, and until it has these.

    ``begin_bare_s``: from its start until it answers, with nothing there; ``begin_s`` the same over
    the tables of the one before, which was killed; ``settle_s``: until it does nothing more.
    ``apply_s``: until it has been given all services. ``resident``: MiB of the agent that was
    given them, and of one that has taken them over.
    """

    services: int
    backends: int
    begin_bare_s: Spread
    apply_s: Spread
    begin_s: Spread
    settle_s: Spread
    resident_mib: float
    resident_again_mib: float


@dataclass(frozen=True, slots=True)
class ControlReport:
    """Milliseconds and their ratios, of the rounds' medians; ``all_ms``: from none to all services.

    ``cpu_ms``: CPU time of the agent, all of its threads, for a change with all services there.

    ``many``: with all services there, as ``one`` with one. ``command``: ``towpath --help``, as
    ``python``: an interpreter that does nothing. ``resident``: MiB of the agent with all services.
    """

    kernel: str
    services: int
    backends: int
    one_ms: Spread
    many_ms: Spread
    ratio: Spread
    cpu_ms: Spread
    all_ms: Spread
    python_ms: Spread
    command_ms: Spread
    command_ratio: Spread
    resident_mib: float
    large: LargeReport | None

    def as_json(self) -> dict[str, Any]:
        """As ``towpath bench control --json`` prints it."""
        return asdict(self)


def measure(
    *,
    services: int = SERVICES,
    rounds: int = ROUNDS,
    changes: int = CHANGES,
    large: int = LARGE,
    progress: Callable[[str], None] = lambda _: None,
) -> ControlReport:
    """Start an agent in a network of its own and change weights; nothing is left behind.

    BenchError: the agent doesn't start. ClientError: it refuses something.
    """
    wanted = [_service(number) for number in range(services)]
    lines: tuple[list[float], ...] = ([], [], [], [], [], [])
    one, many, cpu, every, python, command = lines
    with _Agent.ready(services) as agent:
        client = agent.client
        for turn in range(rounds):
            progress(f"round {turn + 1} of {rounds}")
            client.apply(wanted[:1], prune=True)
            one.append(_change(client, changes))
            every.append(_milliseconds(lambda: client.apply(wanted)))
            used = agent.cpu_seconds()
            many.append(_change(client, changes))
            cpu.append(1000 * (agent.cpu_seconds() - used) / changes)
            python.append(_milliseconds(lambda: _run(sys.executable, "-I", "-c", "")))
            command.append(_milliseconds(lambda: _run(*children.python("towpath", "--help"))))
        resident = agent.resident_mib()
    return ControlReport(
        kernel=os.uname().release,
        services=services,
        backends=BACKENDS,
        one_ms=Spread.of(one, _DIGITS),
        many_ms=Spread.of(many, _DIGITS),
        ratio=_ratio(many, one),
        cpu_ms=Spread.of(cpu, _DIGITS),
        all_ms=Spread.of(every, _DIGITS),
        python_ms=Spread.of(python, _DIGITS),
        command_ms=Spread.of(command, _DIGITS),
        command_ratio=_ratio(command, python),
        resident_mib=round(resident, 1),
        large=_measure_large(large, progress) if large else None,
    )


def _measure_large(services: int, progress: Callable[[str], None]) -> LargeReport:
    """Fill an agent's tables, kill it, and start it over them, several times."""
    wanted = [_service(number) for number in range(services)]
    bare: list[float] = []
    apply: list[float] = []
    begin: list[float] = []
    settle: list[float] = []
    resident, again = 0.0, 0.0
    for turn in range(STARTS):
        progress(f"{services} services, {turn + 1} of {STARTS}")
        with _Agent.ready(services) as agent:
            used = agent.cpu_seconds()
            bare.append(used)
            for first in range(0, services, _AT_ONCE):
                agent.client.apply(wanted[first : first + _AT_ONCE])
            apply.append(agent.cpu_seconds() - used)
            resident = agent.resident_mib()
            agent.kill()
            agent.start()
            begin.append(agent.cpu_seconds())
            time.sleep(_SETTLED)
            settle.append(agent.cpu_seconds())
            again = agent.resident_mib()
    return LargeReport(
        services=services,
        backends=BACKENDS,
        begin_bare_s=Spread.of(bare, _DIGITS),
        apply_s=Spread.of(apply, _DIGITS),
        begin_s=Spread.of(begin, _DIGITS),
        settle_s=Spread.of(settle, _DIGITS),
        resident_mib=round(resident, 1),
        resident_again_mib=round(again, 1),
    )


def _service(number: int) -> Service:
    """With a table of the default size, and backends of its own."""
    first = _FIRST + 16 * number
    backends = tuple(Backend(first + each) for each in range(1, BACKENDS + 1))
    vip, port = _VIP + number // _PORTS, _PORT + number % _PORTS
    return Service(f"s{number}", vip, port, backends=backends)


def _change(client: Client, changes: int) -> float:
    """Milliseconds that a change of a weight takes, the median of so many."""
    address = _FIRST + 1
    return statistics.median(
        _milliseconds(lambda: client.set_backend("s0", address, 1 + number % 2))  # noqa: B023
        for number in range(1, changes + 1)
    )


def _milliseconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - begun)


def _run(*arguments: str) -> None:
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)


def _ratio(these: list[float], those: list[float]) -> Spread:
    """Of each of these to what came just before it."""
    found = [this / that for this, that in zip(these, those, strict=True)]
    return Spread.of(found, _DIGITS)


class _Agent:
    """An agent in this network namespace, and its client; what it needs is in ``directory``."""

    def __init__(self, directory: Path, pins: Path, services: int) -> None:
        self._file, self._log = directory / "agent.yaml", directory / "agent.log"
        self._socket = directory / "agent.sock"
        config = {
            "devices": [DEVICE],
            "limits": {
                "services": services + 1,
                "backends": (services + 1) * BACKENDS,
                "table_slots": (services + _SPARE) * _SLOTS,
            },
            "api": {"socket": str(self._socket)},
            "state": {"directory": str(directory), "pins": str(pins)},
            "services": [],
        }
        self._file.write_text(json.dumps(config))  # which is YAML, too
        self.client = Client(self._socket)
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextmanager
    def ready(cls, services: int) -> Iterator[_Agent]:
        """Run the block with an agent that has room for so many services."""
        with ExitStack() as undo:
            undo.enter_context(bench_network())
            directory = Path(undo.enter_context(TemporaryDirectory(prefix="towpath-bench-")))
            pins = ROOT / directory.name
            undo.callback(remove_pins, pins)
            made = cls(directory, pins, services)
            undo.callback(made._end)
            made.start()
            yield made

    def start(self) -> None:
        """Start it; returns when it answers. BenchError: it doesn't."""
        command = children.python("towpath", "agent", "--config", str(self._file))
        with self._log.open("w") as output:
            running = subprocess.Popen([*command, "--detach-on-exit"], stderr=output)
        self._process = running
        deadline = time.monotonic() + _PATIENCE
        while not _serves(self.client):
            if running.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"the agent did not start: {self._log.read_text().strip()}")
            time.sleep(_GLANCE)

    def kill(self) -> None:
        """End it as a power failure would: it leaves everything as it is."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self) -> float:
        """CPU time that its threads have used so far."""
        assert self._process is not None  # noqa: S101 - asked while it runs
        return cpu_seconds(self._process.pid)

    def resident_mib(self) -> float:
        """MiB of memory that it has."""
        return self.client.status().resident_bytes / _MEBIBYTE

    def _end(self) -> None:
        self.client.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def _serves(client: Client) -> bool:
    try:
        client.status()
    except ClientError:
        return False
    return True
