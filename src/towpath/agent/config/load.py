# SPDX-License-Identifier: Apache-2.0
"""Reads a configuration file in a process of its own.

The YAML parser does not let go of the interpreter: a file with a thousand
services would hold up everything else for a good part of a second, and leave the
agent a quarter larger than it was. A child does neither.
"""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from towpath.agent.errors import AgentError
from towpath.children import expendable, python
from towpath.kernel.memory import keep_little
from towpath.model import Config, ConfigError, Problem, parse_config

if TYPE_CHECKING:
    from towpath.model import Service

# Many times what a thousand services take on a slow machine.
TIMEOUT_SECONDS = 60

_AT_ONCE = 100  # services

# What says nothing of the file, and may be over the next time.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.ESTALE)


def read_config(path: Path) -> Config:
    """What the file says; raises ConfigError when it can't be read or is wrong.

    AgentError, OSError: something else is wrong, and nothing is known of the file.
    """
    try:
        child = subprocess.run(
            python(__name__, str(path)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError([Problem("takes too long to parse", file=str(path))]) from error
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        if error.returncode == os.EX_TEMPFAIL or error.returncode < 0:
            raise AgentError(f"{path} could not be read: {last or error}") from error
        raise ConfigError([Problem(f"can't be parsed: {last}", file=str(path))]) from error
    return _received(BytesIO(child.stdout))


def _received(pieces: BinaryIO) -> Config:
    """What a child has written. ConfigError."""
    found: Config | tuple[Problem, ...] = pickle.load(pieces)  # noqa: S301 - our own child
    if not isinstance(found, Config):
        raise ConfigError(found)
    services: list[Service] = []
    while some := pickle.load(pieces):  # noqa: S301 - our own child
        services += some
    return replace(found, services=tuple(services))


def _send(found: Config | tuple[Problem, ...], to: BinaryIO) -> None:
    """Write what was found, services some at a time: what a pickle notes takes most memory."""
    if not isinstance(found, Config):
        pickle.dump(found, to)
        return
    pickle.dump(replace(found, services=()), to)
    for start in range(0, len(found.services), _AT_ONCE):
        pickle.dump(found.services[start : start + _AT_ONCE], to)
    pickle.dump((), to)


def parse(path: Path) -> Config | tuple[Problem, ...]:
    """The configuration in a file, or what is wrong with it. OSError: something else is."""
    try:
        return parse_config(path.read_text(encoding="utf-8"), str(path))
    except ConfigError as error:
        return error.problems
    except UnicodeDecodeError as error:
        return (Problem(f"can't be read: {error}", file=str(path)),)
    except OSError as error:
        if error.errno in _PASSING:
            raise
        return (Problem(f"can't be read: {error.strerror}", file=str(path)),)


def main() -> None:
    """Parse a file, and write what was found to standard output."""
    expendable()
    keep_little()
    try:
        found = parse(Path(sys.argv[1]))
    except OSError as error:
        sys.stderr.write(f"{error.strerror}\n")
        sys.exit(os.EX_TEMPFAIL)
    _send(found, sys.stdout.buffer)


if __name__ == "__main__":
    main()
