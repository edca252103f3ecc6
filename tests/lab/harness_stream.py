# SPDX-License-Identifier: Apache-2.0
"""Flows that never stop, for tests that change what they flow through: see ``stream.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from towpath.kernel.bpf.links import attach_xdp
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.interfaces import device_index

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def passing(device: str) -> Iterator[None]:
    """Have a device take what its peer sends by XDP: see ``bpf/lab/pass.bpf.c``."""
    with BpfObject.packaged("lab_pass") as made:
        made.load()
        with attach_xdp(made.programs["pass"], device_index(device), "native"):
            yield


class Stream:
    """The process that sends and receives."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def line(self) -> str:
        """What it says next."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def report(self) -> Any:
        """What it has seen so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("report\n")
        self._process.stdin.flush()
        return json.loads(self.line())


@contextmanager
def streaming(device: str, vip: str) -> Iterator[Stream]:
    """Traffic while the block runs, from when all old flows are known."""
    command = [sys.executable, "-m", "tests.lab.stream", device, vip, "80"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            stream = Stream(process)
            assert stream.line() == "known\n"
            yield stream
        finally:
            process.kill()
