# SPDX-License-Identifier: Apache-2.0
"""Programs that run until they are stopped, each with a log of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

PATIENCE = 240.0
"""How long something may take until it is ready, in seconds: it ends what hangs. Beside other work
an API server has taken more than a minute."""
_SAID = 3000
"""Characters of a log that an error shows: its end."""


class Program:
    """One of them. Started again, it goes on with the same log."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = [str(word) for word in command]
        self.log = log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process. KubernetesError: it isn't running."""
        if not self.running:
            raise KubernetesError(f"{self.name} isn't running")
        assert self._process  # noqa: S101 - it is running
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self, *more: str) -> None:
        """Start it, with further arguments. KubernetesError: it runs already."""
        if self.running:
            raise KubernetesError(f"{self.name} is running already")
        environment = os.environ | (self._environment or {})
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.command, *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, such as SIGSTOP."""
        os.kill(self.pid, number)

    def stop(self, number: signal.Signals = signal.SIGTERM, patience: float = 10.0) -> None:
        """Send it a signal and wait for its end; killed if that takes longer. Twice is no error."""
        if self._process is None:
            return
        if self.running:
            self.send(number)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._process = None

    def wait_for(self, ready: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Return when it is. KubernetesError: it has ended, or that takes too long."""
        limit = time.monotonic() + seconds
        while not ready():
            if not self.running:
                raise KubernetesError(f"{self.name} has ended:\n{self.said()}")
            if time.monotonic() > limit:
                raise KubernetesError(f"{self.name} isn't ready after {seconds} s:\n{self.said()}")
            time.sleep(0.05)

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-_SAID:] if self.log.exists() else ""
