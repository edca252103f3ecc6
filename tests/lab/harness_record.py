# SPDX-License-Identifier: Apache-2.0
"""`towpath record` against an agent, packets for it, and its files."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.lab.harness_agent import DEVICE, PEER, TOWPATH, Agent, ip
from tests.prog.lb.frames import flows
from tests.read_pcapng import Capture, read

from towpath.api.client import Client
from towpath.kernel.bpf import links
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAC = "02:00:00:00:00:99"
BACKENDS = ("192.0.2.11", "192.0.2.12")


def resolve_backends() -> None:
    """Let the backends' addresses have a MAC address."""
    for address in BACKENDS:
        ip("neigh", "replace", address, "lladdr", MAC, "dev", DEVICE)


@contextmanager
def recording(agent: Agent, path: Path | str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command, from when it captures; killed at the end if it still runs."""
    with Client(agent.socket) as client:
        before = len(client.captures())
        command = [*TOWPATH, "record", "-w", str(path), *arguments]
        environment = os.environ | {"TOWPATH_SOCKET": str(agent.socket)}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            last = before and client.captures()[-1].id
            wait_until(
                lambda: any(c.id > last for c in client.captures()) or process.poll() is not None,
                seconds=120,
                what="the capture to begin",
            )
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def send(*frames: bytes) -> None:
    """Have frames come in on the agent's device."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((PEER, 0))
        for each in frames:
            wire.send(each)


def captured(agent: Agent, packets: int) -> None:
    """Wait until the newest capture has so many packets."""
    with Client(agent.socket) as client:
        wait_until(
            lambda: client.captures()[-1].packets >= packets, seconds=120, what=f"{packets} packets"
        )


def end(process: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[int, str]:
    """Send it a signal; returns exit code and what it said."""
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def accepted(path: Path) -> Capture:
    """Read a file, after Wireshark's tools have."""
    for command in (
        ["capinfos", str(path)],
        ["tshark", "-r", str(path), "-T", "fields", "-e", "frame.number"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        complaints = [
            line for line in done.stderr.splitlines() if line and not line.startswith("Running as")
        ]
        assert (done.returncode, complaints) == (0, [])
    found = read(path.read_bytes())
    assert len(done.stdout.split()) == len(found.packets)
    return found


def program_of_device() -> int:
    """The program that is attached."""
    return links.xdp_program_id(socket.if_nametoindex(DEVICE))


def going(agent: Agent) -> list[int]:
    """The captures that go on."""
    with Client(agent.socket) as client:
        return [each.id for each in client.captures() if not each.ended]


def send_until_it_ends(process: subprocess.Popen[Any]) -> None:
    """Send packets for as long as the command runs."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        send(*flows(100))
        time.sleep(0.05)
