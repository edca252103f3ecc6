# SPDX-License-Identifier: Apache-2.0
"""Reads a configuration file in a process of its own.

The YAML parser does not let go of the interpreter: a file with a thousand
services would hold up everything else for a good part of a second, and leave the
agent a quarter larger than it was. A child does neither.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

from towpath.model import Config, ConfigError, Problem, parse_config

# Many times what a thousand services take on a slow machine.
TIMEOUT_SECONDS = 60


def read_config(path: Path) -> Config:
    """What the file says; raises ConfigError when it can't be read or is wrong."""
    command = (sys.executable, "-m", __name__, str(path))
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError([Problem("takes too long to parse", file=str(path))]) from error
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConfigError([Problem(f"can't be parsed: {last}", file=str(path))]) from error
    found: Config | tuple[Problem, ...] = pickle.loads(child.stdout)  # noqa: S301 - our own child
    if isinstance(found, Config):
        return found
    raise ConfigError(found)


def parse(path: Path) -> Config | tuple[Problem, ...]:
    """The configuration in a file, or what is wrong with it."""
    try:
        return parse_config(path.read_text(encoding="utf-8"), str(path))
    except ConfigError as error:
        return error.problems
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return (Problem(f"can't be read: {reason}", file=str(path)),)


if __name__ == "__main__":
    sys.stdout.buffer.write(pickle.dumps(parse(Path(sys.argv[1]))))
