# SPDX-License-Identifier: Apache-2.0
"""An agent's life: from its configuration file to its exit."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from towpath.agent.agent import Agent
from towpath.agent.config.file import ConfigFile
from towpath.agent.errors import AgentError
from towpath.agent.files import own_names
from towpath.agent.http.listen import metrics_socket, unix_socket
from towpath.agent.http.server import serve
from towpath.agent.signals import Signals
from towpath.kernel import lock
from towpath.kernel.errors import KernelError
from towpath.kernel.memory import keep_little
from towpath.kernel.private import make_private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

# A thread that computes gives way after this many seconds. The default, 5 ms, is
# as long as a change of a backend may take altogether.
SWITCH_INTERVAL = 0.0005


def run(path: Path, *, detach_on_exit: bool = False) -> None:
    """Run an agent until SIGTERM or SIGINT.

    What it attached stays attached when it ends, unless detach_on_exit. Where it needs other
    tables it begins again in this process. Raises
    ConfigError, AgentError, DatapathError or KernelError when it can't start;
    whatever was in force before then still is.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    keep_little()
    with Signals() as signals:
        if _run_once(path, signals, detach_on_exit=detach_on_exit) and not signals.hold():
            logging.shutdown()
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - itself


def _run_once(path: Path, signals: Signals, *, detach_on_exit: bool) -> bool:
    """Run an agent; whether it is to begin again."""
    with ExitStack() as stack:
        file = ConfigFile(path)
        config = file.first
        _make_state(config.state.directory)
        stack.enter_context(sole(config.state.directory))
        listener = stack.enter_context(unix_socket(config.api.socket))
        agent = stack.enter_context(Agent(file, detach_on_exit=detach_on_exit))
        metrics = stack.enter_context(metrics_socket(config.metrics.address))
        log.info("serving %s at %s", agent.summary(), config.api.socket)
        asyncio.run(serve(agent, signals, listener, metrics))
    return agent.anew


def _make_state(directory: Path) -> None:
    """Make the state directory, which others have no business in. AgentError."""
    try:
        make_private(directory, lambda name: name.startswith(own_names()))
    except OSError as error:
        raise AgentError(f"state.directory: can't make {directory}: {error.strerror}") from error


@contextmanager
def sole(directory: Path) -> Iterator[None]:
    """Be the only agent on a state directory."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.exclusive(directory))
        except KernelError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise AgentError(
                f"another agent runs on {directory}, or somebody else has locked it:"
                f" {error.hint}; stop that, or give this one a state.directory of its own"
            ) from error
        yield
