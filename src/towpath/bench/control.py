# SPDX-License-Identifier: Apache-2.0
"""How long changes take that an agent is asked for.

Until they are on disk, in the kernel and answered. With one service and with many in turn,
so that the one is the other's baseline.
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
from towpath.model.service import Backend, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS, CHANGES, SERVICES, BACKENDS = 7, 30, 1000, 10
_FIRST = IPv4Address("198.18.0.0")
_VIP, _PORT = IPv4Address("203.0.113.10"), 1000
_SLOTS = 16_384  # of a service's table, by default
_GLANCE, _PATIENCE = 0.01, 120.0  # seconds
_MEBIBYTE = 1 << 20
_DIGITS = 2


@dataclass(frozen=True, slots=True)
class ControlReport:
    """Milliseconds and their ratios, of the rounds' medians; ``all_ms``: from none to all services.

    ``many``: with all services there, as ``one`` with one. ``command``: ``towpath --help``, as
    ``python``: an interpreter that does nothing. ``resident``: MiB of the agent with all services.
    """

    kernel: str
    services: int
    backends: int
    one_ms: Spread
    many_ms: Spread
    ratio: Spread
    all_ms: Spread
    python_ms: Spread
    command_ms: Spread
    command_ratio: Spread
    resident_mib: float

    def as_json(self) -> dict[str, Any]:
        """As ``towpath bench control --json`` prints it."""
        return asdict(self)


def measure(
    *,
    services: int = SERVICES,
    rounds: int = ROUNDS,
    changes: int = CHANGES,
    progress: Callable[[str], None] = lambda _: None,
) -> ControlReport:
    """Start an agent in a network of its own and change weights; nothing is left behind.

    BenchError: the agent doesn't start. ClientError: it refuses something.
    """
    wanted = [_service(number) for number in range(services)]
    lines: tuple[list[float], ...] = ([], [], [], [], [])
    one, many, every, python, command = lines
    with _agent(services) as client:
        for turn in range(rounds):
            progress(f"round {turn + 1} of {rounds}")
            client.apply(wanted[:1], prune=True)
            one.append(_change(client, changes))
            every.append(_milliseconds(lambda: client.apply(wanted)))
            many.append(_change(client, changes))
            python.append(_milliseconds(lambda: _run(sys.executable, "-I", "-c", "")))
            command.append(_milliseconds(lambda: _run(*children.python("towpath", "--help"))))
        resident = client.status().resident_bytes / _MEBIBYTE
    return ControlReport(
        kernel=os.uname().release,
        services=services,
        backends=BACKENDS,
        one_ms=Spread.of(one, _DIGITS),
        many_ms=Spread.of(many, _DIGITS),
        ratio=_ratio(many, one),
        all_ms=Spread.of(every, _DIGITS),
        python_ms=Spread.of(python, _DIGITS),
        command_ms=Spread.of(command, _DIGITS),
        command_ratio=_ratio(command, python),
        resident_mib=round(resident, 1),
    )


def _service(number: int) -> Service:
    """With a table of the default size, and backends of its own."""
    first = _FIRST + 16 * number
    backends = tuple(Backend(first + each) for each in range(1, BACKENDS + 1))
    return Service(f"s{number}", _VIP, _PORT + number, backends=backends)


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


@contextmanager
def _agent(services: int) -> Iterator[Client]:
    """Run the block with a client of an agent that has room for so many services."""
    with ExitStack() as undo:
        undo.enter_context(bench_network())
        directory = Path(undo.enter_context(TemporaryDirectory(prefix="towpath-bench-")))
        pins = ROOT / directory.name
        undo.callback(remove_pins, pins)
        config = {
            "devices": [DEVICE],
            "limits": {
                "services": services + 1,
                "backends": (services + 1) * BACKENDS,
                "table_slots": (services + 2) * _SLOTS,
            },
            "api": {"socket": str(directory / "agent.sock")},
            "state": {"directory": str(directory), "pins": str(pins)},
            "services": [],
        }
        file, log = directory / "agent.yaml", directory / "agent.log"
        file.write_text(json.dumps(config))  # which is YAML, too
        with log.open("w") as output:
            command = children.python("towpath", "agent", "--config", str(file))
            running = subprocess.Popen([*command, "--detach-on-exit"], stderr=output)
        undo.callback(running.wait)
        undo.callback(running.terminate)
        client = undo.enter_context(Client(directory / "agent.sock"))
        deadline = time.monotonic() + _PATIENCE
        while not _serves(client):
            if running.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"the agent did not start: {log.read_text().strip()}")
            time.sleep(_GLANCE)
        yield client


def _serves(client: Client) -> bool:
    try:
        client.status()
    except ClientError:
        return False
    return True
