# SPDX-License-Identifier: Apache-2.0
"""Whatever a test does, the run ends and says which test it was.

A test that takes too long is ended by pytest-timeout's signal, and has failed by name.
Where Python doesn't get to see the signal, faulthandler ends the worker a while later,
and where the process is stopped, or is gone and a child of its own keeps that from being
seen, the controller does, here. A test that ends its worker has failed; it isn't run again, and
another worker does the rest.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xdist.workermanage import WorkerController

LOOK_SECONDS = 1.0
WORKER_SECONDS = 1020
"""More than the limits in pyproject.toml, which come first."""
_WORKER = "PYTEST_XDIST_WORKER"


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """As ``--dist loadfile``, also when a worker has ended.

    xdist's own gives a new worker what the old one had been given, files that are done
    included. It then waits for word of tests that nobody runs.
    """

    def remove_node(self, node: WorkerController) -> str | None:
        """Hand on what a worker that has ended had left to do; the test that it ended in."""
        work = self.assigned_work.pop(node)
        if (found := current(work)) is None:
            return None
        scope, test = found
        work[scope][test] = True
        self.workqueue.update(
            {scope: unit for scope, unit in work.items() if not all(unit.values())}
        )
        for each in self.nodes:
            self._reschedule(each)
        return test

    def _reschedule(self, node: WorkerController) -> None:
        """Have a worker know the test after the next: it begins none before it does."""
        super()._reschedule(node)
        while (
            self.workqueue
            and not node.shutting_down
            and self._pending_of(self.assigned_work[node]) <= 1
        ):
            self._assign_work_unit(node)

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Give a worker another file. One that has just ended can't be told: see `remove_node`."""
        with suppress(OSError):
            super()._assign_work_unit(node)


def current(work: dict[str, dict[str, bool]]) -> tuple[str, str] | None:
    """The first test of a worker that isn't done, and its file."""
    for scope, unit in work.items():
        for test, done in unit.items():
            if not done:
                return scope, test
    return None


class Watch:
    """The controller's: ends workers that nothing else ends, and what workers leave."""

    def __init__(self, config: pytest.Config) -> None:
        self._seconds = float(config.getini("worker_timeout"))
        self._config = config
        self._scheduling: Scheduling | None = None
        self._running: dict[str, float] = {}
        self._mounts: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def pytest_sessionstart(self) -> None:
        """Begin."""
        self._thread.start()

    def pytest_sessionfinish(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Scheduling | None:
        """For ``--dist loadfile``."""
        if config.getvalue("dist") == "loadfile":
            self._scheduling = Scheduling(config, log)
        return self._scheduling

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self, node: WorkerController) -> None:
        """Note where a worker is: what it starts is there, too, or has its name."""
        with suppress(OSError):
            self._mounts[node.gateway.id] = _mounts(_process(node))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: WorkerController, error: object) -> None:
        """End what a worker has left behind."""
        if error:
            self._clear(node)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._running[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """It has ended."""
        self._running.pop(nodeid, None)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        """It has ended, and so has its worker."""
        self._running.pop(crashitem, None)

    def pytest_keyboard_interrupt(self) -> None:
        """Say what was running: the run may have been ended for that."""
        reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        for test, since in list(self._running.items()):
            seconds = time.monotonic() - since
            reporter.write_line(f"interrupted after {seconds:.0f} s: {test}", red=True)

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            late = time.monotonic() - self._seconds
            for test in [test for test, since in list(self._running.items()) if since < late]:
                self._running.pop(test, None)
                if node := self._whose(test):
                    with suppress(ProcessLookupError):
                        os.kill(_process(node), signal.SIGKILL)
                    self._clear(node)

    def _whose(self, test: str) -> WorkerController | None:
        work = list(self._scheduling.assigned_work.items()) if self._scheduling else []
        return next((node for node, units in work if (current(units) or ("", ""))[1] == test), None)

    def _clear(self, node: WorkerController) -> None:
        """End a worker's processes. Until the last has, the worker's pipe may not be closed."""
        name, mounts = node.gateway.id, self._mounts.get(node.gateway.id)
        for process in _descendants(os.getpid()):
            with suppress(OSError):
                if _mounts(process) == mounts or _is_of(process, name):
                    os.kill(process, signal.SIGKILL)


def _process(node: WorkerController) -> int:
    return int(node.gateway._io.popen.pid)


def _mounts(process: int) -> int:
    """The mount namespace that a process is in."""
    return Path(f"/proc/{process}/ns/mnt").stat().st_ino


def _is_of(process: int, worker: str) -> bool:
    environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return f"{_WORKER}={worker}".encode() in environment


def _descendants(process: int) -> Iterator[int]:
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                yield child
                yield from _descendants(child)


def add_options(parser: pytest.Parser) -> None:
    """Have pytest know the last of the three limits."""
    told = "seconds in a test after which its worker is ended"
    parser.addini("worker_timeout", told, default=str(WORKER_SECONDS))


def watch(config: pytest.Config) -> None:
    """Watch from now on, where there are workers and this isn't one."""
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Watch(config), "watch")
